"""Trees in which faults kept every episode from ending: told with the cause, never a success of 0, and grown anew."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treewright.agent.cli import main as cli
from treewright.agent.config import load_config
from treewright.agent.runs import workers
from treewright.agent.runs.workers import Job
from treewright.search.store import TreeStore

WORLD = """
import os
from treewright.envs import BaseEnvironment, EnvFault, Observation, StepResult, ToolSpec
from treewright.envs.types import Effect

def trouble(task):
    at = open("trouble").read()
    return at if at != "a" or task.id == "a" else ""

class World(BaseEnvironment):
    sandboxed = True
    tools = (ToolSpec("go", "go", {"type": "object", "properties": {"to": {"type": "string"}}}, Effect.READ),)
    async def reset(self, task, key):
        self.task = task
        if trouble(task) == "reset":
            raise EnvFault("no line")
        return Observation("here", "here")
    async def step(self, action, key):
        if trouble(self.task) in ("step", "a"):
            raise EnvFault("the line is dead")
        return StepResult(Observation("there", "there"), reward=1.0, terminated=True)

def walker(task, turns, tools, rng):
    return 'go {"to": "%d"}' % rng.randrange(9)
"""
SPLITS = {"a": "train", "b": "train", "c": "test"}
TASKS = "".join(f'{{"id": "{name}", "goal": "go", "split": "{split}"}}\n' for name, split in SPLITS.items())
PARTS = ("--suites", "lost_world:World", "--tasks-file", "tasks.jsonl", "--set", "search.retries=0")
POLICY = ("--policy", "scripted:lost_world:walker", "--set", "search.max_tokens=32", "--set", "search.expansions=3")


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Types a line in a folder with a world whose trouble can be chosen: (exit code, what was printed)."""
    (tmp_path / "lost_world.py").write_text(WORLD)
    (tmp_path / "tasks.jsonl").write_text(TASKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "lost_world", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def line(trouble: str, *words: str) -> tuple[Any, str]:
        (tmp_path / "trouble").write_text(trouble)
        monkeypatch.setattr(sys, "argv", ["treewright", *words])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        out = capsys.readouterr()
        told = out.out + out.err
        assert "Traceback" not in told and "nan" not in told
        return code, told

    return line


@pytest.mark.parametrize(("trouble", "cause"), [("step", "the line is dead"), ("reset", "no line")])
def test_collect_fails_with_the_cause_and_grows_these_trees_when_the_line_is_typed_again(
    typed: Callable[..., Any], trouble: str, cause: str
) -> None:
    line = ("collect", *PARTS, *POLICY)
    code, told = typed(trouble, *line)
    assert code == 2 and f"EnvFault: {cause}" in told and "2 of 2 trees" in told
    assert "type the same line again: these trees are grown anew" in told
    assert "0 %" not in told.replace("100 %", "") and "next:" not in told
    code, told = typed("", *line)
    assert code == 0 and "100 %" in told and "next:" in told
    with TreeStore.open("runs/run/trees.sqlite", read_only=True) as store:
        assert sorted(row.success is None for row in store.trees()) == [False, False, True, True]
    code, told = typed("step", *line)
    assert code == 0 and "no result" not in told, "what has a result is not grown again"


def test_some_lost_trees_are_told_and_the_others_count(typed: Callable[..., Any]) -> None:
    code, told = typed("a", "collect", *PARTS, *POLICY)
    assert code == 0 and "1 of 2 trees have no result, own: EnvFault: the line is dead" in told and "100 %" in told


@pytest.mark.parametrize("trouble", ["step", "reset"])
def test_eval_and_run_fail_with_the_cause(typed: Callable[..., Any], trouble: str) -> None:
    cause = {"step": "the line is dead", "reset": "no line"}[trouble]
    for line in (("eval", *PARTS, *POLICY), ("run", "lost_world:World/c", *PARTS[2:], *POLICY)):
        code, told = typed(trouble, *line)
        assert code == 2 and f"EnvFault: {cause}" in told and " 0.0 %" not in told, line


def test_a_loop_without_a_result_fails_with_the_cause_and_trains_on_nothing(typed: Callable[..., Any]) -> None:
    words = (*PARTS, "--policy", "seedling", "--set", "search.max_tokens=8", "--set", "search.expansions=1")
    line = ("loop", "--name", "l", *words, "--set", "loop.tasks=2", "--set", "loop.iterations=1")
    code, told = typed("reset", *line)
    assert code == 2 and "2 of 2 tasks have no result, EnvFault: no line" in told and "type the same line again" in told
    assert not list(Path("runs/l/checkpoints").glob("step-*"))


async def test_workers_grow_lost_trees_anew(
    typed: Callable[..., Any], new_database: Callable[[], str], tmp_path: Path
) -> None:
    config = load_config(None, [
        "name=w", "policy.spec=scripted:lost_world:walker", 'worlds.suites=["lost_world:World"]',
        f"worlds.tasks_file={tmp_path / 'tasks.jsonl'}", "search.expansions=2", "search.max_tokens=32",
        "search.retries=0",
    ])  # fmt: skip
    url = new_database()
    job = Job(config.model_dump_json(), url, 2)
    for trouble, lost in (("step", [True, True]), ("", [False, False, True, True]), ("", [False, False, True, True])):
        (tmp_path / "trouble").write_text(trouble)
        with TreeStore.open(url) as store:
            ids = await workers._tree_ids(config, job, store)
            await asyncio.to_thread(store.queue.add, "w", ids)
            await workers.Worker(job).run()
            assert sorted(row.success is None for row in store.trees(run="w", status="done")) == lost
