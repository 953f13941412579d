"""A world that changes under a search: the step is taken again, what hung on it is validated, the rest goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from not_none import not_none
from speed import patient
from walker import Likelihood, Walker

from treewright.envs import InvalidAction, Restore, TreewrightError
from treewright.envs.maze import SUITE, Faults, Maze
from treewright.envs.types import Action, StepResult
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.retake import diverged_at
from treewright.search.rules import best_first, breadth_first
from treewright.search.rules.base import Rule
from treewright.search.stepper import Stepper
from treewright.search.store import TreeStore
from treewright.search.store.arrays import STATUSES
from treewright.search.tree import Tree
from treewright.search.types import Budget, NodeStatus
from treewright.training.credit import estimate
from treewright.training.credit.trees import tree_arrays

TASK = SUITE.tasks("train", 3)[2]
REPLAY = frozenset({Restore.REPLAY})
LOST = NodeStatus.UNREACHABLE


class Door(Maze):
    """A maze whose steps from one cell to one side are walled up for all sessions once `shut` is set."""

    shut: set[Any] = set()

    async def step(self, action: Action, key: int) -> StepResult:
        if (getattr(self, "at", None), action.arguments.get("to")) in self.shut:
            self._alive()
            raise InvalidAction("somebody closed this door")
        return await super().step(action, key)


def pool(size: int = 1, make: type[Door] | type[Maze] = Maze, **options: Any) -> Pool:
    async def opened() -> Maze:
        return make(ways=REPLAY, **options)

    return Pool(opened, size, deadline=patient(0.5))


async def grow(
    where: Pool,
    policy: Walker | None = None,
    repairs: int = 2,
    expansions: int = 14,
    width: int = 1,
    run: str = "run",
    eager: bool = True,
    rule: Rule | None = None,
    **options: Any,
) -> Tree:
    settings = Settings(run=run, in_flight=width, repairs=repairs)
    rule = rule or best_first(eager=eager)
    return await search(
        TASK, where, policy or Walker(), rule=rule, evaluator=Likelihood(), budget=Budget(expansions=expansions),
        settings=settings, **options,
    )  # fmt: skip


def at_pop(number: int, pick: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    """Says from pop `number` on that the step into `pick(tree)` has changed; it is taken again once."""
    return lambda tree: [pick(tree)] if len(tree.pops) >= number else []


def inner(tree: Tree) -> int:
    """The first step that the world took and that has children of its own."""
    seen = [o.text if o else "" for o in tree.observation]
    steps = (i for i in range(1, len(tree)) if seen[i].startswith("at") and seen[tree.parent[i]].startswith("at"))
    return next((i for i in steps if tree.children[i]), 0)


@pytest.mark.parametrize("eager", [True, False])
async def test_a_state_nobody_asked_for_is_repaired_and_the_drafts_below_are_not_drawn_again(eager: bool) -> None:
    policy = Walker()
    tree = await grow(pool(faults=Faults({15: "wrong"})), policy, eager=eager, expansions=40)
    lost = [i for i in range(len(tree)) if tree.status[i] is LOST]
    assert lost and "a replay diverged" in tree.reasons
    again = again_of(tree)
    assert again and all(tree.supersedes(i) < i for i in again)
    taken_up = [i for i in again if tree.drawn[i] and tree.drawn[not_none(tree.supersedes(i))]]
    assert taken_up and policy.asked < len(tree.pops) - 1
    for i in taken_up:
        assert {tree.text[c] for c in tree.children[i]} == {
            tree.text[c] for c in tree.children[not_none(tree.supersedes(i))]
        }


def through(tree: Tree, cell: tuple[int, int], way: str) -> list[Any]:
    """Nodes whose step went this way from this cell."""
    return [
        i
        for i in range(1, len(tree))
        if tree.action[i]
        and not_none(tree.action[i]).arguments.get("to") == way
        and not_none(tree.observation[tree.parent[i]]).text.startswith(f"at {cell[0]},{cell[1]} ")
    ]


async def test_a_closed_door_ends_what_hung_on_it_and_the_search_goes_on_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = await grow(pool(make=Door), rule=breadth_first(eager=True), expansions=40)
    step = inner(free)
    x, y = not_none(free.observation[free.parent[step]]).text.split()[1].split(",")
    cell, way = (int(x), int(y)), not_none(free.action[step]).arguments["to"]

    def shut(tree: Tree) -> list[Any]:
        if len(tree.pops) != 12:
            return []
        monkeypatch.setattr(Door, "shut", {(cell, way)})
        return through(tree, cell, way)

    tree = await grow(pool(make=Door), rule=breadth_first(eager=True), expansions=40, changes=shut)
    lost = {i for i in range(len(tree)) if tree.status[i] is LOST}
    taken = [i for i in through(tree, cell, way) if i not in lost]
    assert step in lost and taken and all("closed this door" in tree.error[i] for i in taken)
    later = [i for i in range(len(tree)) if tree.born[i] >= 12 and i not in lost]
    assert len(later) > 10 and len(lost) < len(tree) / 2


def again_of(tree: Tree) -> list[Any]:
    return [i for i in range(1, len(tree)) if tree.supersedes(i) is not None]


async def test_an_announced_change_that_comes_out_the_same_costs_steps_but_no_draws() -> None:
    policy, plain = Walker(), Walker()
    without = await grow(pool(), plain)
    tree = await grow(pool(), policy, changes=at_pop(8, inner), expansions=40)
    first = inner(without)
    twins = [c for c in tree.children[tree.parent[first]] if tree.slot[c] == tree.slot[first]]
    assert len(twins) == 2 and tree.status[twins[0]] is LOST and tree.supersedes(twins[1]) == twins[0]
    assert [tree.text[c] for c in tree.children[twins[1]]] == [tree.text[c] for c in tree.children[twins[0]]]
    assert tree.drawn[twins[1]] == tree.drawn[twins[0]]
    reused = sum(tree.drawn[i] > 0 and tree.drawn[not_none(tree.supersedes(i))] > 0 for i in again_of(tree))
    assert reused and policy.asked == len(tree.pops) - 1 - reused


async def test_one_session_and_eight_repair_alike() -> None:
    one = await grow(pool(1), width=4, changes=at_pop(8, inner), expansions=20)
    eight = await grow(pool(8), Walker(delay=True), width=4, changes=at_pop(8, inner), expansions=20)
    assert one.repaired and one.digest() == eight.digest()


async def test_a_search_resumed_in_mid_repair_ends_in_the_same_tree(tmp_path: Path) -> None:
    whole = await grow(pool(), changes=at_pop(8, inner), expansions=24)
    assert whole.repaired

    class Stop(Exception):
        pass

    def stop(tree: Tree, new: Any) -> None:
        if len(tree.pops) == 16:
            raise Stop

    with TreeStore.open(tmp_path / "trees.db") as store, pytest.raises(Stop):
        await grow(pool(), changes=at_pop(8, inner), expansions=24, store=store, on_expansion=stop)
    with TreeStore.open(tmp_path / "trees.db") as store:
        tree = await grow(pool(), expansions=24, store=store)
        assert tree.digest() == whole.digest()
        assert store.load(tree.tree_id).digest() == whole.digest() and store.check() == []
        status = [STATUSES[code] for code in store.arrays([tree.tree_id])["status"]]
        assert status == tree.status


async def test_credit_leaves_out_what_is_unreachable() -> None:
    tree = await grow(pool(), changes=at_pop(8, inner), expansions=24)
    credit = estimate("split_loo", tree_arrays([tree]), allow_biased=True)
    lost = [i for i in range(len(tree)) if tree.status[i] is LOST]
    assert lost and not credit.coef[lost].any() and np.isfinite(credit.value[0])


async def test_a_step_that_never_comes_out_right_is_given_up() -> None:
    tree = await grow(pool(), repairs=2, expansions=40, changes=lambda tree: range(1, len(tree)))
    times: dict[Any, Any] = {}
    for i in range(1, len(tree)):
        times[tree.parent[i], tree.slot[i]] = times.get((tree.parent[i], tree.slot[i]), 0) + 1
    assert max(times.values()) == 3


async def test_without_repairs_a_divergence_is_recorded_and_left() -> None:
    tree = await grow(pool(faults=Faults({15: "wrong"})), repairs=0)
    assert not tree.repaired and not tree.exact


async def test_a_stepped_search_repairs_too() -> None:
    budget, rule, settings = Budget(expansions=14), best_first(eager=True), Settings()
    bare = await grow(pool(faults=Faults({15: "wrong"})))
    stepper = Stepper(
        TASK, pool(faults=Faults({15: "wrong"})), Walker(), rule=rule, evaluator=Likelihood(), budget=budget,
        settings=settings,
    )  # fmt: skip
    assert await stepper.start() is None
    while (pop := stepper.pop()) is not None:
        await stepper.work.propose(pop)
        stepper.work.screen(pop)
        await stepper.work.explore(pop)
        await stepper.work.judge(pop)
        stepper.apply(pop)
    tree = await stepper.finish()
    assert bare.repaired and tree.digest() == bare.digest()


def test_the_depth_is_read_from_the_recorded_fault_only() -> None:
    assert diverged_at("Divergence: replay diverged at step 3: expected fingerprint a, found b") == 3
    assert diverged_at("RestoreUnsupported: no way") is None and diverged_at(None) is None
    with pytest.raises(TreewrightError, match="must be at least 0"):
        Settings(repairs=-1)
