"""The backward curriculum: exact against everything that a round can give, and how its starts move."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections.abc import Coroutine
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from all_draws import outcomes
from choices import REWARD, STATES, Choices, Guide, Softmax, opened, p_a, tree_gradient
from numpy.typing import NDArray

from treewright.envs import Effect, Task, ToolSpec
from treewright.envs.types import Action, StepResult
from treewright.search.engine import Settings, search
from treewright.search.rooted import Start, search_from, start_at
from treewright.search.rules import best_first, chains
from treewright.search.tree import Tree
from treewright.search.types import Budget, NodeStatus
from treewright.training.credit import Credit, estimate
from treewright.training.credit.trees import tree_arrays
from treewright.training.crediting import credit_of
from treewright.training.manifest import BEGUN
from treewright.training.recipes.curriculum import Curriculum, start_value
from treewright.training.sections import CurriculumSection
from treewright.training.settings import TrainSettings
from treewright.training.step import Trainer

TASK = Task("choices", "t", "choose", horizon=3)
CLOSED = Settings(close=True)


def gradient_from(start: str) -> NDArray[Any]:
    """[S] the exact gradient of the value of `start`."""
    value, reach = dict(REWARD), dict.fromkeys([*STATES, *REWARD], 0.0) | {start: 1.0}
    for s in STATES:
        for a, p in (("a", p_a(s)), ("b", 1 - p_a(s))):
            reach[s + a] += reach[s] * p
    for s in sorted(STATES, key=len, reverse=True):
        value[s] = p_a(s) * value[s + "a"] + (1 - p_a(s)) * value[s + "b"]
    return np.array([reach[s] * p_a(s) * (1 - p_a(s)) * (value[s + "a"] - value[s + "b"]) for s in STATES])


async def path_to(end: str, task: Task = TASK) -> Any:
    """A tree of one chain that goes to `end`."""
    for _, tree in await outcomes(
        lambda policy: search(task, Choices(), policy, rule=chains(1), budget=Budget(expansions=1), settings=CLOSED)
    ):
        if "".join(tree.action[i].name for i in range(1, 4)) == end:
            return tree
    raise AssertionError(end)


def curriculum(*trees: Any, **settings: Any) -> Curriculum:
    load: Any = {t.tree_id: t for t in trees}.get
    made = Curriculum(CurriculumSection(**{"share": 0.5, "rare": 1.0} | settings), load)
    made.gather(trees)
    return made


def from_start(start: Start, policy: Any, draws: int = 2, run: str = "s") -> Coroutine[Any, Any, Tree]:
    return search_from(
        start, opened, policy, rule=chains(draws), budget=Budget(expansions=1),
        settings=replace(CLOSED, run=run),
    )  # fmt: skip


def at_temperature_1(pack: Any) -> NDArray[Any]:
    raise AssertionError("no draw was made at another temperature")


def gradient(trees: list[Any], baselines: dict[str, float] | None = None) -> NDArray[Any]:
    """[S] what an update makes of the trees: their own credit, over their number. Baselines by `origin_of`."""
    nothing_seen: Any = SimpleNamespace(consumed=set())
    fresh = Trainer.unseen(nothing_seen, trees)
    arrays, credit, _, _ = credit_of(fresh, TrainSettings(), dict(baselines or {}), at_temperature_1)
    starts, total = np.flatnonzero(arrays.parent < 0), np.zeros(len(STATES))
    for tree, at in zip(fresh, starts, strict=True):
        own = Credit(**{f: getattr(credit, f)[at : at + len(tree)] for f in ("value", "coef", "weight", "ess")})
        total += tree_gradient(tree, own)
    return total / len(trees)


@pytest.fixture(scope="module")
def every() -> tuple[Any, Any, Any, dict[int, Any]]:
    return asyncio.run(everything())


async def everything() -> tuple[Any, Any, Any, dict[int, Any]]:
    """The stored success, all trees from the root (two tasks, single chains), and all from each start, with chances."""
    source = await path_to("aab")
    other = replace(TASK, id="u")

    async def roots(task: Task) -> Any:
        return await outcomes(
            lambda p: search(task, Choices(), p, rule=chains(1), budget=Budget(expansions=1), settings=CLOSED)
        )

    starts = {}
    for kept in (2, 1):
        start = start_at(source, kept)
        starts[kept] = await outcomes(partial(from_start, start))
    return source, await roots(TASK), await roots(other), starts


async def test_the_expected_gradient_of_a_round_is_that_of_the_objective_it_states_wherever_starts_have_moved(
    every: tuple[Any, Any, Any, dict[int, Any]],
) -> None:
    source, first, second, starts = every
    assert math.isclose(sum(p for p, _ in starts[1]), 1) and len(starts[1]) > 4
    moved = {1: 0.0, 2: 0.0}
    for chance, tree in starts[2]:  # the round before: its outcome decides where the next one begins
        plan = curriculum(source, target=0.75)
        ((front, start),) = plan.choose(1)
        assert start.ids == start_at(source, 2).ids
        plan.note([], [tree], [front])
        ((front, start),) = plan.choose(2)[:1]
        assert front.kept == (1 if start_value(tree) >= 0.75 else 2)
        moved[front.kept] += chance
    assert 0.01 < moved[1] < 0.99 and math.isclose(sum(moved.values()), 1)
    _, root = first[3]
    _, twin = second[5]
    fixed = {"choices" + BEGUN: 0.35}
    for kept, state in ((2, "aa"), (1, "a")):
        want = (2 * gradient_from("") + gradient_from(state)) / 3
        parts = [gradient([root, twin, tree], fixed) for _, tree in starts[kept]]
        begun = sum(p * g for (p, _), g in zip(starts[kept], parts, strict=True))
        drawn = sum(
            p * q * gradient([a, b, starts[kept][0][1]], fixed) for (p, a), (q, b) in itertools.product(first, second)
        )
        alone = gradient([root, twin, starts[kept][0][1]], fixed)  # what both sums have in common, once too often
        assert np.abs(begun + drawn - alone - want).max() < 1e-12 * np.abs(want).max()
        assert np.linalg.norm(want - gradient_from("")) > 0.02, "the objective is another one than the root's"


async def test_the_credit_of_trees_from_the_root_does_not_depend_on_those_from_stored_nodes(
    every: tuple[Any, Any, Any, dict[int, Any]],
) -> None:
    _, first, second, starts = every
    base = {"choices": 0.2, "choices" + BEGUN: 0.6}
    for (_, a), (_, b) in ((starts[2][0], starts[2][-1]), (starts[1][0], starts[1][-1])):
        for (_, x), (_, y) in ((first[0], second[3]), (first[6], second[1])):
            one, two = (gradient([x, y, tree], base) for tree in (a, b))
            lone = [gradient([tree], base) for tree in (a, b)]
            np.testing.assert_allclose(one - two, (lone[0] - lone[1]) / 3, atol=1e-14)


async def test_the_same_check_catches_starts_that_are_dropped_after_looking(
    every: tuple[Any, Any, Any, dict[int, Any]],
) -> None:
    _, first, _, starts = every
    _, root = first[0]
    base = {"choices": 0.3, "choices" + BEGUN: 0.3}

    def used(tree: Tree) -> NDArray[Any]:
        return gradient([root, tree], base) if start_value(tree) > 0 else gradient([root], base)

    want = (gradient([root], base) + gradient_from("a")) / 2
    kept = sum(p * gradient([root, tree], base) for p, tree in starts[1])
    dropped = sum(p * used(tree) for p, tree in starts[1])
    assert np.abs(kept - want).max() < 1e-12 < 1e-3 < np.abs(dropped - want).max()


async def test_searched_trees_from_a_start_give_its_gradient_within_noise(
    every: tuple[Any, Any, Any, dict[int, Any]],
) -> None:
    source, _, _, _ = every
    start, found = start_at(source, 1), []
    for i in range(160):
        tree = await search_from(
            start, opened, Softmax(), rule=best_first(draws=2, root_draws=3), evaluator=Guide(),
            budget=Budget(expansions=2), settings=replace(CLOSED, seed=i),
        )  # fmt: skip
        found.append(tree_gradient(tree, estimate("split_loo", tree_arrays([tree]), root_baseline=0.3)))
    error = np.mean(found, 0) - gradient_from("a")
    noise = np.std(found, 0, ddof=1) / math.sqrt(len(found))
    assert (np.abs(error) <= 4 * noise + 1e-12).all() and (noise > 0).sum() == 3


def test_what_is_best_for_the_mixture_is_best_from_the_root_and_starts_alone_are_not_enough() -> None:
    """Ascent on the exact objective: every α below 1 ends at the best value from the root, α = 1 need not."""

    def solved(alpha: float) -> float:
        logit = {s: -2.0 for s in STATES}

        def p(s: str) -> float:
            return 1 / (1 + math.exp(-logit[s]))

        for _ in range(4000):
            value, reach = dict(REWARD), dict.fromkeys([*STATES, *REWARD], 0.0)
            reach[""], reach["aa"] = 1 - alpha, alpha
            for s in STATES:
                reach[s + "a"] += reach[s] * p(s)
                reach[s + "b"] += reach[s] * (1 - p(s))
            for s in sorted(STATES, key=len, reverse=True):
                value[s] = p(s) * value[s + "a"] + (1 - p(s)) * value[s + "b"]
            for s in STATES:
                logit[s] += 5 * reach[s] * p(s) * (1 - p(s)) * (value[s + "a"] - value[s + "b"])
        return value[""]

    assert solved(0.5) > 0.97 and solved(0.0) > 0.97
    assert solved(1.0) < 0.5, "states above the starts were never trained"


async def test_a_start_moves_to_the_root_with_success_and_to_the_end_without_and_is_then_left_alone() -> None:
    source = await path_to("aab")
    plan = curriculum(source, patience=2)
    front = plan.fronts["choices", "t"]
    assert (front.units, front.kept) == (3, 2)
    every = await outcomes(lambda p: from_start(start_at(source, 2), p))
    won = next(t for _, t in every if start_value(t) == 1)
    lost = next(t for _, t in every if start_value(t) == 0)
    half = next(t for _, t in every if start_value(t) == 0.5)
    for tree, kept, left in [
        (half, 1, False), (lost, 1, False), (lost, 2, False), (lost, 2, False), (half, 1, False), (won, 0, False),
    ]:  # fmt: skip
        plan.note([], [tree], [front])
        assert (front.kept, front.left) == (kept, left)
    assert not front.active and plan.choose(4) == [], "at the root it is a task like any other"
    again = curriculum(source, patience=1)
    front = again.fronts["choices", "t"]
    told = again.note([], [lost], [front])
    assert front.left and again.choose(4) == [] and told["starts_left"] == 1
    assert told["starts_given"] == pytest.approx(2 / 3) and told["starts_success"] == 0
    again.gather([source])
    assert front.left, "the same path is not taken up again"
    better = await path_to("baa")
    load: Any = {better.tree_id: better}.get
    again._load = load
    again.gather([replace_id(better, source)])
    assert again.fronts["choices", "t"].active, "another success of the task is"


def replace_id(tree: Tree, other: Tree) -> Tree:
    """The tree as one of another attempt at the same task."""
    tree.header = replace(tree.header, attempt=7)
    assert tree.tree_id != other.tree_id
    return tree


async def test_only_rare_tasks_get_starts_the_rarely_visited_first_and_the_same_ones_when_begun_again() -> None:
    tasks = [replace(TASK, id=f"t{i}") for i in range(5)]
    trees = [await path_to("aab", task) for task in tasks]
    failed = await path_to("aaa", tasks[0])
    plan = curriculum(*trees, rare=0.6, share=0.4)
    assert [len(plan.choose(n)) for n in (0, 1, 3, 6, 30)] == [0, 1, 2, 4, 5]
    assert [s.task.id for _, s in plan.choose(3)] == [s.task.id for _, s in plan.choose(3)]
    plan.note([*trees[1:3], failed], [], [])
    assert plan.rate("choices", "t1") > 0.6 > plan.rate("choices", "t0")
    assert {f.task for f, _ in plan.choose(30)} == {"t0"}, "what is unknown goes by the suite's rate, here 2/3"
    plan.settings = CurriculumSection(share=0.4, rare=1.0)
    plan.fronts["choices", "t3"].visits = -1
    assert plan.choose(30)[0][0].task == "t3"
    back = Curriculum(plan.settings, plan._load)
    back.restore(json.loads(json.dumps(plan.state())))
    assert [f for f, _ in back.choose(4)] == [f for f, _ in plan.choose(4)] and back.state() == plan.state()


async def test_a_start_in_tokens_lies_within_a_turn_and_paths_of_one_unit_have_none() -> None:
    source = await path_to("aab")
    assert curriculum(source, unit="token").fronts["choices", "t"].units == 3
    assert curriculum(source, step=5).fronts["choices", "t"].kept == 1, "a step that is too long still gives a start"
    assert curriculum(await path_to("aaa")).fronts == {}, "no success, no start"


async def test_what_happened_for_real_is_not_taken_again_and_such_a_start_is_left_alone() -> None:
    class Live(Choices):
        done = 0
        tools = (ToolSpec("a", effect=Effect.IRREVERSIBLE), ToolSpec("b", effect=Effect.IRREVERSIBLE))

        async def effect(self, action: Action) -> Effect:
            return Effect.IRREVERSIBLE

        async def step(self, action: Action, key: int) -> StepResult:
            Live.done += 1
            return await super().step(action, key)

    async def live() -> Any:
        return Live()

    plan = curriculum(await path_to("aab"), patience=2)
    front = plan.fronts["choices", "t"]
    for _ in range(2):
        ((chosen, start),) = plan.choose(1)
        tree = await search_from(start, live, Softmax(), rule=chains(2), settings=CLOSED)
        assert NodeStatus.UNREACHABLE in tree.status and math.isnan(start_value(tree))
        told = plan.note([], [tree], [chosen])
        assert front.kept == 2 and "starts_success" not in told, "it says nothing of success"
    assert front.left and Live.done == 0
