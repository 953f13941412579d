"""A run whose stored trees are of other tasks refuses them in one sentence, before anything is grown."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from treewright.agent.cli import main as cli
from treewright.agent.config import load_config
from treewright.agent.runs.collect import open_worlds, suites_of
from treewright.agent.runs.workers import collect_with_workers
from treewright.envs import TreewrightError
from treewright.search.store import TreeStore

WORLDS = """
import os

class A:
    effects = {"look": "read"}
    def look(self) -> str:
        return "something"

class B(A):
    pass

def ra(task, history):
    if os.path.exists("trouble"):
        raise ValueError("the judge is away")
    return 0.0

def rb(task, history): return 1.0

def mover(task, turns, tools, rng):
    return "look {}" if not turns else 'done {"answer": "x"}'
"""
COLLECT = ("collect", "--name", "y", "--policy", "scripted:two_worlds:mover", "--set", "search.expansions=2")


def tasks(goal: str, **more: Any) -> str:
    return "".join(json.dumps({"id": f"{i}", "goal": f"{goal} {i}", "horizon": 3, **more}) + "\n" for i in (1, 2, 3))


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Types a line in a folder with two worlds and two files of tasks: (exit code, what was printed)."""
    (tmp_path / "two_worlds.py").write_text(WORLDS)
    (tmp_path / "one.jsonl").write_text(tasks("one"))
    (tmp_path / "two.jsonl").write_text(tasks("two"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "two_worlds", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")

    def line(*words: str) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["treewright", *words])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        out = capsys.readouterr()
        assert "Traceback" not in out.out + out.err
        return code, out.out + out.err

    return line


def own(world: str = "A", file: str = "one.jsonl", reward: str = "ra") -> tuple[str, ...]:
    return "--suites", f"two_worlds:{world}", "--tasks-file", file, "--reward", f"two_worlds:{reward}"


def stored() -> Mapping[str, str]:
    with TreeStore.open("runs/y/trees.sqlite", read_only=True) as store:
        return {row.tree_id: store.load(row.tree_id).digest() for row in store.trees()}


@pytest.mark.parametrize(
    ("second", "differs"),
    [
        (own("B", "two.jsonl", "rb"), "its world was 'two_worlds:A' and is 'two_worlds:B' now, its reward was "),
        (own(file="two.jsonl"), "its goal was 'one 1' and is 'two 1' now; take another --name"),
        (own(reward="rb"), "its reward was 'two_worlds:ra' and is 'two_worlds:rb' now; take another --name"),
        (own("B"), "its world was 'two_worlds:A' and is 'two_worlds:B' now; take another --name"),
    ],
    ids=["all", "goals", "reward", "world"],
)
def test_a_second_own_suite_in_a_run_is_refused(
    typed: Callable[..., Any], second: tuple[str, ...], differs: str
) -> None:
    assert typed(*COLLECT, *own())[0] == 0
    before = stored()
    assert typed(*COLLECT, *own())[0] == 0  # the same line again
    code, told = typed(*COLLECT, *second)
    assert code == 2 and "task own/1 of run 'y' (and 2 more) is stored as another task: " + differs in told
    assert stored() == before and "cost:" not in told


def test_the_line_that_a_refusal_names_makes_room(typed: Callable[..., Any]) -> None:
    typed(*COLLECT, *own())
    _, told = typed(*COLLECT, *own(file="two.jsonl"))
    code, _ = typed(*shlex.split(told[told.index("treewright store delete") :].splitlines()[0])[1:])
    assert code == 0 and not stored()
    assert typed(*COLLECT, *own(file="two.jsonl"))[0] == 0 and len(stored()) == 3


def test_a_changed_task_alone_is_deleted_by_the_line_that_is_named(typed: Callable[..., Any]) -> None:
    typed(*COLLECT, *own())
    Path("one.jsonl").write_text(Path("one.jsonl").read_text().replace("one 2", "another 2"))
    code, told = typed(*COLLECT, *own())
    assert code == 2 and "task own/2 of run 'y' is stored as another task" in told
    typed(*shlex.split(told[told.index("treewright store delete") :].splitlines()[0])[1:])
    assert len(stored()) == 2
    assert typed(*COLLECT, *own())[0] == 0 and len(stored()) == 3


def test_tasks_that_come_in_addition_are_grown_beside_those_that_are_there(typed: Callable[..., Any]) -> None:
    typed(*COLLECT, *own())
    with Path("one.jsonl").open("a") as file:
        file.write('{"horizon": 3, "goal": "one more", "id": "4"}\n')
    assert typed(*COLLECT, *own())[0] == 0 and len(stored()) == 4


def test_a_task_that_was_mended_after_faults_is_grown_anew(typed: Callable[..., Any]) -> None:
    Path("trouble").write_text("")
    assert "type the same line again" in typed(*COLLECT, *own(), "--set", "search.retries=0")[1]
    Path("trouble").unlink()
    Path("one.jsonl").write_text(tasks("mended", data={"more": 1}))
    assert typed(*COLLECT, *own(), "--set", "search.retries=0")[0] == 0 and len(stored()) == 6


def test_questions_graded_otherwise_are_refused(typed: Callable[..., Any]) -> None:
    Path("corpus.jsonl").write_text('{"id": "a", "text": "the sky is blue"}\n')
    Path("asked.jsonl").write_text('{"id": "1", "question": "what colour?", "answers": ["blue"]}\n')
    parts = ("--corpus", "corpus.jsonl", "--questions", "asked.jsonl", "--tasks", "1")
    assert typed(*COLLECT, *parts)[0] == 0
    code, told = typed(*COLLECT, *parts, "--set", "worlds.grading=f1")
    assert code == 2 and "its reward was 'exact' and is 'f1' now" in told


async def test_a_round_of_a_loop_is_not_mixed_of_two_files_of_tasks(typed: Callable[..., Any]) -> None:
    from treewright.agent.policies.propose import open_proposer
    from treewright.agent.runs.loop import grow_for_training

    async def grown(file: str) -> list[Any]:
        config = load_config(None, [
            "name=l", 'worlds.suites=["two_worlds:A"]', f"worlds.tasks_file={file}", "worlds.reward=two_worlds:ra",
            "policy.spec=scripted:two_worlds:mover", "search.expansions=2",
        ])  # fmt: skip
        async with open_worlds(suites_of(config)) as worlds:
            given = worlds["own"].suite.tasks("train", 2)
            return await grow_for_training(
                config, [*given, *given], worlds, open_proposer(config.policy), "l/0", 0, store
            )

    with TreeStore.open("t.sqlite") as store:
        first = await grown("one.jsonl")
        assert [t.digest() for t in await grown("one.jsonl")] == [t.digest() for t in first] and len(first) == 4
        with pytest.raises(TreewrightError, match="of run 'l/0' \\(and 3 more\\) is stored as another task: its goal"):
            await grown("two.jsonl")


def test_workers_refuse_other_tasks_before_they_begin(
    typed: Callable[..., Any], new_database: Callable[[], str]
) -> None:
    url = new_database()

    def grow(file: str) -> dict[str, int]:
        config = load_config(None, [
            "name=w", 'worlds.suites=["two_worlds:A"]', f"worlds.tasks_file={Path(file).resolve()}",
            "worlds.reward=two_worlds:ra", "policy.spec=scripted:two_worlds:mover", "search.expansions=2",
        ])  # fmt: skip
        return collect_with_workers(config, url, 1, tasks=3)

    assert grow("one.jsonl")["done"] == grow("one.jsonl")["done"] == 3
    with pytest.raises(TreewrightError, match="task own/1 of run 'w' \\(and 2 more\\) is stored as another task"):
        grow("two.jsonl")
