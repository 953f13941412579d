"""The command line as a user meets it: real processes, real files."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import forked
import pytest
from not_none import not_none
from speed import patient

HELPERS = str(Path(__file__).parents[1] / "helpers")
WALK = ["--policy", "scripted:mazewalk:walker"]


def environment() -> dict[str, Any]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*os.environ.get("PYTHONPATH", "").split(os.pathsep), HELPERS]),
            "COLUMNS": "120", "NO_COLOR": "1"}  # fmt: skip


def call(*words: Any, cwd: Path, code: int = 0) -> str:
    done = forked.treewright(words, cwd, environment())
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_collect_show_and_eval(tmp_path: Path) -> None:
    out = call("collect", "--name", "a", "--suites", "maze", "--tasks", "3", *WALK, cwd=tmp_path)
    assert "runs/a/trees.sqlite" in out and "maze" in out
    again = call("collect", "--name", "a", "--suites", "maze", "--tasks", "3", *WALK, cwd=tmp_path)
    assert re.findall(r"maze.*\d", again)[-1] == re.findall(r"maze.*\d", out)[-1]
    listed = call("show", "--name", "a", cwd=tmp_path)
    assert listed.count("train-3-") == 3 and "done" in listed
    tree = not_none(re.search(r"([0-9a-f]{8}).*train-3-1", listed)).group(1)
    assert "reach 2,2" in call("show", tree, "--name", "a", cwd=tmp_path)
    call("show", "--name", "a", "--html", "t.html", cwd=tmp_path)
    assert (tmp_path / "t.html").read_text().lower().startswith("<!doctype html>")
    assert "maze" in call("eval", "--suites", "maze", "--tasks", "5", *WALK, cwd=tmp_path)
    assert "oracle pick" in call("eval", "--suites", "maze", "--tasks", "3", "--expansions", "4", *WALK, cwd=tmp_path)


def test_collect_train_and_eval_with_the_seedling(tmp_path: Path) -> None:
    few = ["--set", "search.expansions=2"]
    call("collect", "--name", "s", "--suites", "kg", "--tasks", "4", *few, cwd=tmp_path)
    out = call("train", "--name", "s", *few, cwd=tmp_path)
    assert "4 to train on" in out
    saved = not_none(re.search(r"saved (\S+);", out)).group(1)
    assert "kg" in call("eval", "--suites", "kg", "--tasks", "4", "--policy", f"hf:{saved}", cwd=tmp_path)
    assert "4 trained on before" in call("train", "--name", "s", *few, cwd=tmp_path, code=2)


def test_loop_resumes_where_it_stood(tmp_path: Path) -> None:
    line = ["loop", "--name", "l", "--suites", "kg", "--set", "loop.tasks=3", "--set", "search.expansions=1"]
    assert "iteration 1" in call(*line, "--set", "loop.iterations=1", cwd=tmp_path)
    out = call(*line, "--set", "loop.iterations=2", cwd=tmp_path)
    assert "going on" in out and "iteration 2" in out and "iteration 1:" not in out


def test_run_prints_the_tree_of_one_task(tmp_path: Path) -> None:
    out = call("run", "maze/1", *WALK, cwd=tmp_path)
    assert "maze/test-3-1" in out and "start" in out


def test_ctrl_c_closes_saves_and_prints_the_line_that_resumes(tmp_path: Path) -> None:
    line = ["collect", "--name", "b", "--suites", "maze", "--tasks", "20", "--policy", "scripted:mazewalk:slow"]
    child = forked.Child([forked.COMMAND, *line], tmp_path, environment(), merged=True)
    store = tmp_path / "runs" / "b" / "trees.sqlite"
    deadline = time.monotonic() + patient(60)
    while time.monotonic() < deadline and not (store.exists() and store.stat().st_size > 0):
        time.sleep(0.05)
    time.sleep(0.6)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=300)
    assert child.returncode == 130, out
    assert "treewright collect --name b --suites maze" in out
    call(*line, cwd=tmp_path)
    assert call("show", "--name", "b", cwd=tmp_path).count("done") == 20


def test_every_command_explains_itself(tmp_path: Path) -> None:
    for name in ("run", "collect", "train", "loop", "eval", "show", "demo", "bench", "config"):
        assert "Usage" in call(name, "--help", cwd=tmp_path)


def test_own_tasks_with_a_reward_function_and_an_own_world(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from treewright.envs.maze import Maze\n"
        "class Corner(Maze):\n    name = 'corner'\n"
        "def reward(task, history):\n    return float(any('goal' in t.observation.text for t in history))\n"
    )
    (tmp_path / "tasks.jsonl").write_text('{"id": "one", "goal": "reach the corner", "data": {"size": 2}}\n')
    values = ("worlds.tasks_file=tasks.jsonl", 'worlds.suites=["own:Corner"]', "worlds.reward=own:reward")
    line = ["collect", "--name", "o", "--tasks", "1", *WALK, *(w for v in values for w in ("--set", v))]
    here = {**environment(), "PYTHONPATH": f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"}
    done = forked.treewright(line, tmp_path, here)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "own" in done.stdout


def test_a_corpus_and_questions_run_without_code(tmp_path: Path) -> None:
    (tmp_path / "guess.py").write_text(
        "def make(task, turns, tools, rng):\n"
        "    return 'search krill' if not turns else rng.choice(['answer krill', 'answer ice'])\n"
    )
    (tmp_path / "c.jsonl").write_text('{"title": "Whale", "text": "Whales eat krill."}\n')
    (tmp_path / "q.jsonl").write_text(
        "".join(f'{{"id": "q{i}", "question": "what do whales eat?", "answer": "Krill"}}\n' for i in range(8))
    )
    line = ["collect", "--name", "c", "--corpus", "c.jsonl", "--questions", "q.jsonl", "--tasks", "4"]
    here = {**environment(), "PYTHONPATH": f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return forked.treewright([*line, "--policy", "scripted:guess:make", *more], tmp_path, here)

    done = run()
    assert done.returncode == 0 and "own" in done.stdout, done.stdout + done.stderr
    shown = call("show", "--name", "c", cwd=tmp_path)
    assert shown.count("own-q") == 4
    wrong = run("--set", "worlds.retriever=lexicle", "--set", "name=d")
    assert wrong.returncode == 2 and "no retriever 'lexicle'" in wrong.stderr


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["collect", "--set", "search.expansion=3"], "search.expansions"),
        (["collect", "--suites", "mase"], "maze"),
        (["collect", "--policy", "seedlign"], "seedling"),
        (["show", "--name", "nothing"], "treewright collect --name nothing"),
        (["bench", "kernel"], "kernels"),
        (["run", "maze/no-such-task", *WALK], "maze/0"),
        (["collect", "--workers", "2", "--suites", "maze"], "--url postgresql://USER@HOST/NAME"),
        (["collect", "--corpus", "c.jsonl"], "--questions FILE.jsonl"),
    ],
)
def test_a_mistake_is_one_line_with_what_to_type(words: list[str], hint: str, tmp_path: Path) -> None:
    out = call(*words, cwd=tmp_path, code=2)
    assert hint in out and "Traceback" not in out


def test_a_hint_with_brackets_stays_whole(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from treewright.agent.cli import main as cli
    from treewright.envs import TreewrightError

    def fails() -> None:
        raise TreewrightError("type: pip install 'treewright[data]'")

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit):
        cli.main()
    assert "treewright[data]" in capsys.readouterr().err


def test_the_version_is_told_by_the_command_and_by_the_module(tmp_path: Path) -> None:
    import treewright

    assert call("--version", cwd=tmp_path).strip() == f"treewright {treewright.__version__}"
    done = subprocess.run([sys.executable, "-P", "-m", "treewright", "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == f"treewright {treewright.__version__}" and done.returncode == 0
