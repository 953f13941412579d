"""What a stranger meets: own modules in the working directory, names in files, too few tasks, worlds that stay down."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from view_trees import Growth

from treewright.agent.cli import main as cli
from treewright.agent.config import ConfigError, load_config
from treewright.agent.policies.opening import loading_model
from treewright.agent.view.report import render_text
from treewright.envs import TreewrightError
from treewright.envs.custom import import_named
from treewright.envs.types import Observation
from treewright.search.tree import Tree
from treewright.search.types import NodeStatus, Outcome

WALKER = (
    "def walker(task, turns, tools, rng):\n"
    "    return 'move {\"direction\": \"%s\"}' % rng.choice(['north', 'east', 'south', 'west'])\n"
)
WORLD = (
    "from treewright.envs.errors import EnvFault\n"
    "from treewright.envs.maze import Maze\n"
    "class Down(Maze):\n"
    "    name = 'down'\n"
    "    async def reset(self, task, key):\n"
    "        if task.id.startswith('bad'):\n"
    "            raise EnvFault('the server is not up\\nand a long log')\n"
    "        return await super().reset(task, key)\n"
    "def reward(task, history):\n"
    "    return 0.0\n"
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that is not in the search path, as a console script meets it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    return tmp_path


def call(*words: str) -> str:
    done = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(cli.app, words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_modules_of_the_working_directory_are_found_and_the_search_path_stays_as_it_was(here: Path) -> None:
    (here / "stranger_sibling.py").write_text("NUMBER = 3\n")
    (here / "stranger_module.py").write_text("from stranger_sibling import NUMBER\n")
    before = list(sys.path)
    assert import_named("stranger_module").NUMBER == 3 and sys.path == before
    with pytest.raises(ImportError):
        import_named("stranger_module_that_is_not_there")
    assert sys.path == before


def test_an_installed_module_is_not_hidden_by_a_file_of_the_working_directory(here: Path) -> None:
    (here / "colorsys.py").write_text("raise RuntimeError('the wrong one')\n")
    sys.modules.pop("colorsys", None)
    assert hasattr(import_named("colorsys"), "rgb_to_hls")


def own_world(here: Path, ids: list[Any]) -> list[Any]:
    (here / "stranger_walk.py").write_text(WALKER)
    (here / "stranger_world.py").write_text(WORLD)
    (here / "t.jsonl").write_text(
        "".join(json.dumps({"id": i, "goal": "reach the corner", "data": {"size": 2}}) + "\n" for i in ids)
    )
    sys.modules.pop("stranger_world", None)
    values = (
        "worlds.tasks_file=t.jsonl",
        'worlds.suites=["stranger_world:Down"]',
        "worlds.reward=stranger_world:reward",
    )
    sets = [word for value in (*values, "search.expansions=1") for word in ("--set", value)]
    return [*sets, "--policy", "scripted:stranger_walk:walker"]


def test_a_suite_with_fewer_tasks_than_asked_for_is_grown_once_each_under_the_name_of_the_file(here: Path) -> None:
    (here / "run.toml").write_text('name = "named"\n')
    line = own_world(here, ["one", "two"])
    out = call("collect", "--config", "run.toml", "--tasks", "7", *line)
    assert "2/2" in out and "failed" not in out and "runs/named/trees.sqlite" in out
    other = call("collect", "--config", "run.toml", "--tasks", "2", *line, "--set", "search.draws=3")
    assert "2 of these trees were there already" in other and "draws=3" in other
    assert "grown by" not in call("collect", "--config", "run.toml", "--tasks", "2", *line)


def test_a_world_that_does_not_come_up_is_told_with_its_cause_and_grows_when_the_line_is_typed_again(
    here: Path,
) -> None:
    line = own_world(here, ["one", "bad"])
    out = call("collect", "--name", "some", *line)
    assert "1 of 2 trees never began, own: EnvFault: the server is not up" in out and "long log" not in out
    assert "type the same line again: these trees are grown anew" in " ".join(out.split())
    world = Path("stranger_world.py")
    world.write_text(world.read_text().replace("startswith('bad')", "startswith('never')"))
    sys.modules.pop("stranger_world", None)
    assert "never began" not in call("collect", "--name", "some", *line)


def test_nothing_is_measured_where_no_world_came_up(here: Path) -> None:
    with pytest.raises(TreewrightError, match="1 of 1 trees never began, own: EnvFault"):
        call("collect", "--name", "none", *own_world(here, ["bad"]))


def test_expansions_of_the_configuration_hold_in_run_and_the_option_is_stronger(here: Path) -> None:
    (here / "stranger_walk.py").write_text(WALKER)
    line = ("run", "maze/1", "--policy", "scripted:stranger_walk:walker")
    assert "expansions 3," in call(*line, "--set", "search.expansions=3")
    assert "expansions 2," in call(*line, "--set", "search.expansions=3", "--expansions", "2")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("collect", "--suites", ""), "no suite is named"),
        (("collect", "--suites", "kg", "--split", "dev"), "split must be 'train' or 'test'"),
        (("run", "kg/1", "--split", "dev"), "no task 1 in the split 'dev'"),
        (("run", "kg/1", "--set", "search.rule=bestfirst"), "did you mean 'best_first'"),
        (("train", "--name", "nothing"), "treewright collect --name nothing"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(
    words: tuple[str, ...], told: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(TreewrightError) as error:
        call(*words)
    assert told in str(error.value)


def test_a_folder_without_a_model_is_told_without_asking_the_network(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-1" / "config.json").write_text("{}")
    for source, told in ((tmp_path, "did you mean .*step-1"), (tmp_path / "gone", "there is no folder")):
        with pytest.raises(TreewrightError, match=told), loading_model(source):
            raise AssertionError("not reached")
    with pytest.raises(TreewrightError, match="cannot load a model from 'NAME': no network"), loading_model("NAME"):
        raise OSError("no network\nand more")
    with pytest.raises(TreewrightError, match="KeyError: 'rope'") as told_of, loading_model("NAME"):
        raise KeyError("rope")  # files that somebody made up make readers raise whatever they like
    assert isinstance(told_of.value.__cause__, KeyError)


def test_files_that_are_no_configuration_are_named(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="it is not UTF-8 text, see byte 0"):
        load_config(tmp_path / "b.toml")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path)


def test_a_place_that_cannot_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "runs/x")

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and "error: runs/x: Permission denied" in capsys.readouterr().err


def test_the_head_of_a_tree_is_wrapped_and_a_fault_of_the_root_is_shown() -> None:
    grown = Growth("Find the mill " + "behind the hill " * 8).grow(2)
    lines = render_text(grown.tree, 60).splitlines()
    assert all(len(line) <= 60 for line in lines)
    head = " ".join(line.strip() for line in lines[: next(i for i, x in enumerate(lines) if "start" in x)])
    assert head.count("behind the hill") == 8 and "exact yes" in head and "…" not in head
    root = Outcome(
        Observation("x", "", provenance="error"), NodeStatus.FAULT, reward=math.nan, fault="SessionDied: no browser"
    )
    assert "! SessionDied: no browser" in render_text(Tree.start(replace(grown.tree.header, root=root)), 60)


def test_a_terminal_that_is_not_utf_8_shows_what_it_can(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii", write_through=True))
    monkeypatch.setattr(cli, "app", lambda: print("○ open …"))
    cli.main()
    assert raw.getvalue() == b"? open ?\n"
