"""Collecting, killed at random moments for real and resumed, ends where an uninterrupted run ends."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from speed import patient
from walker import Likelihood, Walker

from treewright.envs import TreewrightError
from treewright.envs.maze import SUITE
from treewright.search.engine import Settings, search
from treewright.search.rules import best_first, breadth_first
from treewright.search.store import TreeStore
from treewright.search.types import Budget

CHILD = [sys.executable, "-P", str(Path(__file__).parent / "collect_child.py")]
HELPERS = str(Path(__file__).parents[1] / "helpers")
TASK = SUITE.tasks("train", 2)[1]


def start(path):
    return subprocess.Popen([*CHILD, str(path), HELPERS], stdout=subprocess.PIPE, text=True)


def test_twenty_kills_and_a_resume_give_the_tree_of_an_uninterrupted_run(tmp_path):
    plain = start(tmp_path / "plain.sqlite")
    began = None
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
        child = start(path)
        assert child.stdout.readline().startswith("begun")
        time.sleep(rng.random() * length * 0.25)  # a random moment is the point here
        child.send_signal(signal.SIGKILL)
        cut += child.wait() == -signal.SIGKILL
        kills += 1
    assert cut >= 10
    last = start(path)
    assert last.wait() == 0
    with TreeStore.open(path, read_only=True) as store:
        assert store.check() == []
        rows = store.trees()
        assert {r.status for r in rows} == {"done"}
        assert [store.load(r.tree_id).digest() for r in sorted(rows, key=lambda r: r.tree_id)] == expected


async def grow(store, rule=None, **settings):
    return await search(
        TASK, SUITE, Walker(), rule=rule or best_first(), evaluator=Likelihood(), budget=Budget(expansions=9),
        settings=Settings(close=True, in_flight=2, **settings), store=store,
    )  # fmt: skip


class Stop(Exception):
    pass


async def interrupted(path, after):
    """Grows until `after` expansions were applied, then fails as if the process went down."""

    def count(tree, new):
        if len(tree.pops) == after:
            raise Stop

    with TreeStore.open(path) as store, pytest.raises(Stop):
        await search(
            TASK, SUITE, Walker(), rule=best_first(), evaluator=Likelihood(), budget=Budget(expansions=9),
            settings=Settings(close=True, in_flight=2), store=store, on_expansion=count,
        )  # fmt: skip


@pytest.mark.parametrize("after", [1, 4, 9, 12])
async def test_a_resumed_search_recomputes_nothing_that_was_stored(tmp_path, after):
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
    assert tree.spent.policy_tokens == plain.spent.policy_tokens
    assert rest.asked < whole.asked


async def test_a_finished_tree_is_not_grown_again(tmp_path):
    with TreeStore.open(tmp_path / "t.sqlite") as store:
        first = await grow(store)
        again = await grow(store)
    assert again.digest() == first.digest() and again.chosen == first.chosen


async def test_a_resume_with_other_settings_is_refused_by_name(tmp_path):
    await interrupted(tmp_path / "t.sqlite", 4)
    with TreeStore.open(tmp_path / "t.sqlite") as store:
        with pytest.raises(TreewrightError, match="max_tokens"):
            await grow(store, max_tokens=7)
        with pytest.raises(TreewrightError, match="rule"):
            await grow(store, rule=best_first(draws=3))
        with pytest.raises(TreewrightError, match="rule"):
            await grow(store, rule=breadth_first())


async def test_a_resume_with_other_weights_seals_the_tree_inexact(tmp_path):
    await interrupted(tmp_path / "t.sqlite", 4)
    walker = Walker()
    walker.version = "walker-2"
    with TreeStore.open(tmp_path / "t.sqlite") as store:
        tree = await search(
            TASK, SUITE, walker, rule=best_first(), evaluator=Likelihood(), budget=Budget(expansions=9),
            settings=Settings(close=True, in_flight=2), store=store,
        )  # fmt: skip
    assert not tree.exact


async def test_what_was_grown_is_stored_while_the_search_waits_for_its_policy(tmp_path):
    class Stuck(Walker):
        async def draw(self, context, seeds, max_tokens):
            if self.asked >= 3:
                await asyncio.Event().wait()
            return await super().draw(context, seeds, max_tokens)

    with TreeStore.open(tmp_path / "t.sqlite") as store:
        running = asyncio.create_task(search(TASK, SUITE, Stuck(), budget=Budget(expansions=9), store=store))
        stored, deadline = [], time.monotonic() + patient(20)
        while len(stored) < 3 and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
            stored = [e.seq for row in store.trees() for e in store.expansions(row.tree_id)]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert stored == [0, 1, 2]
