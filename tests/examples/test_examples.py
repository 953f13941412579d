"""Every example runs as its first lines say, as a script and on the command line, and shows what it should."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import chat_server
import forked
import pytest
from not_none import not_none

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the examples: what they write, and the interpreter's caches, stay out of the repository."""
    return Path(shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__", "runs")))


def started(words: Sequence[str | Path], cwd: Path) -> str:
    """A script with its arguments, in a process of its own."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    env = {**os.environ, "PATH": path, "COLUMNS": "120", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONSAFEPATH", None)  # `python FILE` finds the modules that lie beside the file
    done = forked.run(words, cwd, env, timeout=300)
    out = done.stdout + done.stderr
    assert done.returncode == 0 and "Traceback" not in out, f"{shlex.join(map(str, words))}\n{out}"
    return out


def script(folder: Path, name: str, *words: str) -> str:
    return started([folder / name, *words], folder)


def typed(folder: Path, line: str) -> str:
    return started([forked.COMMAND, *shlex.split(line)], folder)


def lines(name: str) -> list[str]:
    """The command lines in the docstring of an example."""
    doc = (EXAMPLES / name).read_text().split('"""')[1].replace("\\\\\n", " ")
    return re.findall(r"^ {4}treewright (.*?)(?:  +#.*)?$", doc, re.MULTILINE)


def test_a_plain_class_is_a_world(folder: Path) -> None:
    out = script(folder, "own_tools.py")
    assert re.search(r"^two: \d+ nodes, best end 1.00, mean 0\.\d", out, re.MULTILINE)


def test_a_rule_of_ones_own_goes_deeper_than_breadth_first_and_its_trees_are_exact(folder: Path) -> None:
    own, breadth = re.findall(r"([\d.]+) turns deep on average, exact: (\w+)", script(folder, "own_rule.py"))
    assert float(own[0]) > float(breadth[0]) and own[1] == breadth[1] == "True"


def test_a_judge_of_ones_own_solves_more_mazes(folder: Path) -> None:
    without, judged = map(int, re.findall(r": (\d+) of", script(folder, "own_judge.py")))
    assert judged > without


def test_an_estimator_of_ones_own_is_the_worked_example(folder: Path) -> None:
    out = script(folder, "own_estimator.py")
    # Leaves earn 0 twice, 1 and 0: the mean is 1/4; below node 2 it is 1/2.
    assert "own_estimator:above_average [ 0.   -0.25  0.25  0.75 -0.25]" in out and "split_loo [" in out


def test_questions_over_own_documents_are_asked_of_a_chat_server(folder: Path) -> None:
    with chat_server.serving() as url:
        out = script(folder, "own_corpus.py", "chat", url)
        (line,) = lines("own_corpus.py")
        typed_out = typed(folder, line.replace("MODEL@http://HOST:PORT/v1", f"chat@{url}"))
    assert 'What does the blue whale eat? answer {"text": "krill"}; reward 1' in out and out.count("reward 1") == 2
    assert "reward 1" in typed_out


def test_an_answer_that_is_wrong_earns_nothing(folder: Path) -> None:
    with chat_server.serving(lambda messages: 'answer {"text": "stones"}') as url:
        assert script(folder, "own_corpus.py", "chat", url).count("reward 0") == 2


def test_a_searched_langgraph_agent_does_better_than_alone(folder: Path) -> None:
    alone, searched = map(int, re.findall(r": (\d+) of 6 mazes", script(folder, "langgraph_agent.py")))
    assert searched > alone


def test_an_mcp_server_is_searched_and_only_what_is_declared_is_explored(folder: Path) -> None:
    out = script(folder, "mcp_server.py")
    right, ends = (
        int(not_none(re.search(r"(\d+) of them right", out))[1]),
        int(not_none(re.search(r"(\d+) ends", out))[1]),
    )
    assert 0 < right < ends and "exact: True" in out
    bare, told = lines("mcp_server.py")
    assert "nothing is explored" in typed(folder, bare)
    assert "add milk" in typed(folder, f"{told} --expansions 1")


def test_a_website_is_read_and_nothing_is_bought(folder: Path) -> None:
    pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")
    from treewright.envs.web.browser import find_chromium

    if find_chromium() is None:
        pytest.skip("no Chromium: apt-get install chromium-headless-shell")
    assert 'answer {"text": "9"}, reward 1; bought 0' in script(folder, "website.py")
    assert "oracle pick 1" in typed(folder, f"{lines('website.py')[0]} --expansions 8")


def test_a_tiny_run_is_trained_with_the_estimator_of_ones_own(folder: Path, tmp_path: Path) -> None:
    out = script(folder, "train.py", str(tmp_path / "run"))
    assert "next: treewright train" in out and re.search(r"step 1 has weights \w+, made of 6 trees", out)
    assert "acting with" in out and re.search(r"kg +│ 6 ", out), "eval measures the new weights in the run's own world"


def test_a_store_is_read_as_rows_nodes_and_columns(folder: Path, tmp_path: Path) -> None:
    out = script(folder, "read_store.py", str(tmp_path / "mazes"))
    trees, nodes = map(int, not_none(re.match(r"(\d+) trees, (\d+) nodes", out)).groups())
    assert 0 < trees <= 8 and nodes >= 3 * trees and "put at node" in out
    assert float(not_none(re.search(r"credit of the best step: ([\d.]+)", out))[1]) > 0
    assert out == script(folder, "read_store.py", str(tmp_path / "mazes")), "what was stored is what is read"


@pytest.mark.parametrize("name", ["own_tools.py", "own_rule.py", "own_judge.py", "langgraph_agent.py"])
def test_the_command_line_of_an_example_works_as_it_stands(name: str, folder: Path) -> None:
    for line in lines(name):
        assert "stored in runs/run/trees.sqlite" in typed(folder, line)


def test_every_example_is_in_the_table_and_every_file_of_the_table_is_there() -> None:
    shown = set(re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text()))
    assert shown == {path.name for path in EXAMPLES.glob("*.py")}
