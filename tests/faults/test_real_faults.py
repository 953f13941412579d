"""A tool server and a browser, killed for real in the middle of a search: retried, then masked, never a crash."""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from not_none import not_none
from speed import patient

from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.agent.runs.collect import collect, open_worlds
from treewright.envs import SessionDied, TreewrightError, suite
from treewright.envs.types import Action, Environment, StepResult, Suite, Task
from treewright.search.engine import Settings
from treewright.search.rules import best_first
from treewright.search.tree import Tree
from treewright.search.types import Budget, NodeStatus
from treewright.training.credit import estimate
from treewright.training.credit.trees import tree_arrays


def noisy_expert(found: Suite) -> ScriptedPolicy:
    """The oracle's action half of the time, else nonsense of several kinds."""

    def script(task: Task, turns: Any, tools: Any, rng: random.Random) -> str:
        if rng.random() < 0.5:
            return str(not_none(found.oracle)(task, turns, tools))
        return rng.choice(["fly {}", "click {", f'{tools[0].name} {{"nonsense": 1}}', "\x00\ud800", ""])

    return ScriptedPolicy(script)


def children(pattern: str) -> list[Any]:
    """Ids of this process's descendants whose command line holds `pattern`."""
    parent, named = {}, set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, above = int(stat.parent.name), int(stat.read_text().rsplit(")", 1)[1].split()[1])
            parent[pid] = above
            if pattern in (stat.parent / "cmdline").read_text():
                named.add(pid)
        except (OSError, ValueError):
            continue

    def below(pid: int) -> bool:
        while pid in parent:
            pid = parent[pid]
            if pid == os.getpid():
                return True
        return False

    return [pid for pid in named if below(pid)]


async def grow(found: Suite, count: int, killing: str | None = None, sessions: int = 1) -> tuple[list[Tree], list[Any]]:
    rng = random.Random(3)

    def kill(tree: Tree, new: Any) -> None:
        if killing and rng.random() < 0.25:
            for pid in children(killing):
                with contextlib.suppress(ProcessLookupError):  # it ended with one that was killed before it
                    os.kill(pid, signal.SIGKILL)
                    hits.append(pid)

    hits: list[Any] = []
    from treewright.search.engine import search

    trees = []
    async with open_worlds([found], sessions=sessions, deadline=patient(20)) as worlds:
        for task in found.tasks("train", count):
            trees.append(
                await search(
                    task, worlds[found.name].pool, noisy_expert(found), rule=best_first(draws=2, root_draws=2),
                    budget=Budget(expansions=4), settings=Settings(close=True, max_tokens=400), on_expansion=kill,
                )
            )  # fmt: skip
    return trees, hits


def available(name: str) -> Suite:
    found = suite(name)
    try:
        if found.available is not None:
            found.available()
    except TreewrightError as error:
        pytest.skip(str(error))
    return found


@pytest.mark.parametrize(("name", "process"), [("workbench", "workbench_server"), ("market", "chrom")])
async def test_what_was_killed_is_replaced_and_the_tree_is_that_of_a_quiet_run(name: str, process: str) -> None:
    found = available(name)
    quiet, _ = await grow(found, 2)
    shaken, hits = await grow(found, 2, killing=process)
    assert hits, "nothing was killed: the test shows nothing"
    assert [t.digest() for t in shaken] == [t.digest() for t in quiet]
    assert all(t.exact for t in shaken)


@pytest.mark.parametrize("name", ["workbench", "market"])
async def test_a_world_that_stays_away_is_masked_and_the_run_goes_on(name: str) -> None:
    found = available(name)
    opened: list[Any] = []

    class Mortal:
        """The real environment until its third step; then, and whenever it is opened again, it is gone."""

        def __init__(self, inner: Environment) -> None:
            self.inner = inner
            self.steps = 0

        def __getattr__(self, attribute: Any) -> Any:
            return getattr(self.inner, attribute)

        async def step(self, action: Action, key: int) -> StepResult:
            self.steps += 1
            if self.steps > 2:
                raise SessionDied("gone for good")
            return await self.inner.step(action, key)

    async def open_once() -> Any:
        if opened:
            raise SessionDied("cannot be opened again")
        opened.append(Mortal(await found.open()))
        return opened[0]

    trees, _ = await grow(replace(found, open=open_once), 1)
    (tree,) = trees
    lost = [i for i in range(len(tree)) if tree.status[i] is NodeStatus.FAULT]
    assert lost and not tree.exact
    assert all(math.isnan(tree.reward(i)) for i in lost)
    credit = estimate("split_loo", tree_arrays(trees), allow_biased=True)
    assert all(credit.coef[i] == 0 for i in lost)


@pytest.mark.parametrize("name", ["kg", "workbench"])
async def test_wrong_output_is_an_observation_and_is_trained_on(name: str) -> None:
    found = available(name)
    trees, _ = await grow(found, 4)
    arrays = tree_arrays(trees)
    wrong = [sum(map(len, trees[:t])) + i for t, tree in enumerate(trees) for i in range(len(tree)) if tree.error[i]]
    assert len(wrong) > 10
    assert all(arrays.trainable[wrong])
    assert all(tree.exact for tree in trees)
    assert (estimate("split_loo", arrays).coef[wrong] < 0).any()


async def test_a_task_whose_world_cannot_be_opened_fails_alone() -> None:
    found = suite("maze")

    async def broken() -> Environment:
        raise SessionDied("no such place")

    kg = suite("kg")
    policy = noisy_expert(kg)
    async with open_worlds([replace(found, open=broken), kg]) as worlds:
        trees = await collect(
            [*found.tasks("train", 2), *kg.tasks("train", 2)], worlds, policy,
            rule=best_first(), budget=Budget(expansions=2), settings=Settings(close=True, max_tokens=400),
        )  # fmt: skip
    assert [t.task.suite for t in trees] == ["kg", "kg"]
