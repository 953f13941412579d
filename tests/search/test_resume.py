"""Collecting, killed at random moments for real and resumed, ends where an uninterrupted run ends."""

from __future__ import annotations

import asyncio
import math
import os
import random
import runpy
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from speed import patient
from walker import MOVES, Likelihood, Walker

from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.envs import TreewrightError
from treewright.envs.maze import SUITE
from treewright.envs.types import Task
from treewright.search.engine import Running, Settings, search
from treewright.search.rules import best_first, breadth_first
from treewright.search.rules.base import Rule
from treewright.search.store import TreeStore
from treewright.search.tree import Tree
from treewright.search.types import Budget, Completion, Context, Expansion, NodeStatus

CHILD = str(Path(__file__).parent / "collect_child.py")
HELPERS = str(Path(__file__).parents[1] / "helpers")
TASK = SUITE.tasks("train", 2)[1]


class Child:
    """A process of its own that collects into a store; forked, since what it imports takes longer than what it does."""

    def __init__(self, path: Path) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                sys.stdout = os.fdopen(writing, "w")
                sys.argv = [CHILD, str(path), HELPERS]
                runpy.run_path(CHILD, run_name="__main__")
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        self.stdout = os.fdopen(reading)

    def kill(self) -> int:
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def wait(self) -> int:
        self.stdout.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_twenty_kills_and_a_resume_give_the_tree_of_an_uninterrupted_run(tmp_path: Path) -> None:
    plain = Child(tmp_path / "plain.sqlite")
    began = math.nan
    for line in plain.stdout:
        if line.startswith("begun"):
            began = time.monotonic()
    assert plain.wait() == 0
    length = time.monotonic() - began
    with TreeStore.open(tmp_path / "plain.sqlite", read_only=True) as store:
        expected = [store.load(row.tree_id).digest() for row in sorted(store.trees(), key=lambda r: r.tree_id)]

    rng, kills, cut = random.Random(7), 0, 0
    path = tmp_path / "killed.sqlite"
    while kills < 20:
        child = Child(path)
        assert child.stdout.readline().startswith("begun")
        time.sleep(rng.random() * length * 0.25)  # a random moment is the point here
        cut += child.kill() == -signal.SIGKILL
        kills += 1
    assert cut >= 10
    last = Child(path)
    assert last.wait() == 0
    with TreeStore.open(path, read_only=True) as store:
        assert store.check() == []
        rows = store.trees()
        assert {r.status for r in rows} == {"done"}
        assert [store.load(r.tree_id).digest() for r in sorted(rows, key=lambda r: r.tree_id)] == expected


async def grow(store: TreeStore, rule: Rule | None = None, **settings: Any) -> Tree:
    return await search(
        TASK, SUITE, Walker(), rule=rule or best_first(), evaluator=Likelihood(), budget=Budget(expansions=9),
        settings=Settings(close=True, in_flight=2, **settings), store=store,
    )  # fmt: skip


class Stop(Exception):
    pass


class Slow(Walker):
    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> Sequence[Completion]:
        await asyncio.sleep(0.03)
        return await super().draw(context, seeds, max_tokens)


async def interrupted(path: Path, after: int) -> None:
    """Grows until `after` expansions were applied, then fails as if the process went down."""

    def count(tree: Tree, new: Any) -> None:
        if len(tree.pops) == after:
            raise Stop

    with TreeStore.open(path) as store, pytest.raises(Stop):
        await search(
            TASK, SUITE, Walker(), rule=best_first(), evaluator=Likelihood(), budget=Budget(expansions=9),
            settings=Settings(close=True, in_flight=2), store=store, on_expansion=count,
        )  # fmt: skip


@pytest.mark.parametrize("after", [1, 4, 9, 12])
async def test_a_resumed_search_recomputes_nothing_that_was_stored(tmp_path: Path, after: int) -> None:
    whole = Walker()
    plain = await search(
        TASK, SUITE, whole, rule=best_first(), evaluator=Likelihood(), budget=Budget(expansions=9),
        settings=Settings(close=True, in_flight=2),
    )  # fmt: skip
    await interrupted(tmp_path / "t.sqlite", after)
    rest = Walker()
    with TreeStore.open(tmp_path / "t.sqlite") as store:
        tree = await search(
            TASK, SUITE, rest, rule=best_first(), evaluator=Likelihood(), budget=Budget(expansions=9),
            settings=Settings(close=True, in_flight=2), store=store,
        )  # fmt: skip
    assert tree.digest() == plain.digest()
    assert tree.stopped_by == plain.stopped_by == "expansions"  # where closing had begun, too
    assert tree.spent.policy_tokens == plain.spent.policy_tokens
    assert rest.asked < whole.asked


async def test_a_tree_that_the_clock_stopped_still_says_so_when_its_closing_is_gone_on_with(tmp_path: Path) -> None:
    def stop(tree: Tree, new: Any) -> None:
        if tree.closing[-1]:
            raise Stop

    with TreeStore.open(tmp_path / "t.sqlite") as store:
        hurried: dict[str, Any] = {"budget": Budget(seconds=0.2), "settings": Settings(close=True, max_tokens=64)}
        with pytest.raises(Stop):
            await search(TASK, SUITE, Slow(), rule=best_first(), store=store, on_expansion=stop, **hurried)
        tree = await search(TASK, SUITE, Walker(), rule=best_first(), store=store, **hurried)
    assert tree.stopped_by == "seconds" and tree.closing[-1]


async def test_a_tree_of_a_version_that_saw_answers_later_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of a lazy rule ends at its own pop, where it was not counted."""
    applied = Running._apply

    def later(running: Running, expansion: Expansion) -> None:
        applied(running, expansion)
        running.finished -= running.tree.status[expansion.node] in (NodeStatus.TERMINAL, NodeStatus.TRUNCATED)

    likely = [("stop {}", 0.4), *((move, 0.15) for move in MOVES)]

    async def grown(store: TreeStore, after: int | None) -> Tree:
        def count(tree: Tree, new: Any) -> None:
            if len(tree.pops) == after:
                raise Stop

        return await search(
            TASK, SUITE, Walker(likely), rule=best_first(eager=False), budget=Budget(expansions=12), store=store,
            settings=Settings(answers=1, close=True), on_expansion=count,
        )  # fmt: skip

    with TreeStore.open(tmp_path / "t.sqlite") as store:
        monkeypatch.setattr(Running, "_apply", later)
        with pytest.raises(Stop):
            await grown(store, 6)
        monkeypatch.undo()
        tree = await grown(store, None)
    assert tree.stopped_by == "answers" and len(tree.pops) > 6 and not any(tree.closing[: tree.born.index(5)])


async def test_a_finished_tree_is_not_grown_again(tmp_path: Path) -> None:
    with TreeStore.open(tmp_path / "t.sqlite") as store:
        first = await grow(store)
        again = await grow(store)
    assert again.digest() == first.digest() and again.chosen == first.chosen


async def test_a_resume_with_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    await interrupted(tmp_path / "t.sqlite", 4)
    with TreeStore.open(tmp_path / "t.sqlite") as store:
        with pytest.raises(TreewrightError, match="max_tokens"):
            await grow(store, max_tokens=7)
        with pytest.raises(TreewrightError, match="rule"):
            await grow(store, rule=best_first(draws=3))
        with pytest.raises(TreewrightError, match="rule"):
            await grow(store, rule=breadth_first())


async def test_a_resume_with_other_weights_seals_the_tree_inexact(tmp_path: Path) -> None:
    await interrupted(tmp_path / "t.sqlite", 4)
    walker = Walker()
    walker.version = "walker-2"
    with TreeStore.open(tmp_path / "t.sqlite") as store:
        tree = await search(
            TASK, SUITE, walker, rule=best_first(), evaluator=Likelihood(), budget=Budget(expansions=9),
            settings=Settings(close=True, in_flight=2), store=store,
        )  # fmt: skip
    assert not tree.exact


async def test_what_was_grown_is_stored_while_the_search_waits_for_its_policy(tmp_path: Path) -> None:
    class Stuck(Walker):
        async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> Sequence[Completion]:
            if self.asked >= 3:
                await asyncio.Event().wait()
            return await super().draw(context, seeds, max_tokens)

    with TreeStore.open(tmp_path / "t.sqlite") as store:
        running = asyncio.create_task(search(TASK, SUITE, Stuck(), budget=Budget(expansions=9), store=store))
        stored: list[Any]
        stored, deadline = [], time.monotonic() + patient(20)
        while len(stored) < 3 and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
            stored = [e.seq for row in store.trees() for e in store.expansions(row.tree_id)]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert stored == [0, 1, 2]


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("after", [1, 3, 5, 7])
async def test_a_resumed_search_shows_the_policy_the_same_tools(tmp_path: Path, eager: bool, after: int) -> None:
    seen: list[int] = []

    def script(task: Task, turns: Any, tools: Any, rng: random.Random) -> str:
        seen.append(len(tools))
        return rng.choice(['move {"to": "0"}', "press {}", "nonsense", 'fly {"to": 1}'])

    async def grown(store: TreeStore, stop: int | None = None) -> Tree:
        def count(tree: Tree, new: Any) -> None:
            if len(tree.pops) == stop:
                raise Stop

        return await search(
            TASK, SUITE, ScriptedPolicy(script), rule=best_first(draws=2, eager=eager), budget=Budget(expansions=6),
            settings=Settings(close=True), store=store, on_expansion=count,
        )  # fmt: skip

    with TreeStore.open(tmp_path / "whole.db") as store:
        whole = (await grown(store)).digest()
    known = set(seen)
    assert len(known) == 1 and known != {0}
    with TreeStore.open(tmp_path / "cut.db") as store, pytest.raises(Stop):
        await grown(store, after)
    seen.clear()
    with TreeStore.open(tmp_path / "cut.db") as store:
        assert (await grown(store)).digest() == whole
    assert set(seen) == known
