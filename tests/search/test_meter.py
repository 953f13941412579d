"""What trees cost, counted from their tokens: against simulations of what a cache and chains would read."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from choices import Choices, Guide, Softmax
from walker import Likelihood, Walker

from treewright.envs import Restore, Task
from treewright.envs.maze import SUITE
from treewright.envs.types import Action, Observation, StepResult, ToolSpec
from treewright.search.engine import Settings, search
from treewright.search.meter import Busy, Meter, measured, metering, recorder
from treewright.search.rooted import search_from, start_at
from treewright.search.rules import best_first, chains
from treewright.search.rules.base import Rule
from treewright.search.store import TreeStore
from treewright.search.tree import Tree
from treewright.search.types import Budget, Completion, Context, Exchange, Origin

TASK = SUITE.tasks("train", 2)[1]


class Forgetful(Walker):
    """Shows the task and the last observation alone: most of a prompt is new at every turn."""

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange], base: Sequence[int]
    ) -> Context:
        head = task.goal.encode()
        said = (turns[-1].observation.text if turns else first.text).encode()
        if turns:
            return Context(keep=len(head), delta=tuple(said), ids=(*base[: len(head)], *said))
        return Context(keep=0, delta=(*head, *said), ids=(*head, *said))


class Squares:
    """A model whose token at position p costs p + 1 to read, and 1000 to predict."""

    def forward(self, start: int, stop: int, logits: int) -> float:
        return sum(p + 1 for p in range(start, stop)) + 1000 * logits


async def grown(policy: Any = None, rule: Rule | None = None, **settings: Any) -> Tree:
    return await search(
        TASK, SUITE, policy or Walker(), rule=rule or best_first(draws=3), evaluator=Likelihood(),
        budget=Budget(expansions=6), settings=Settings(close=True, **settings),
    )  # fmt: skip


def common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@pytest.mark.parametrize("policy", [Walker, Forgetful])
@pytest.mark.parametrize("rule", [best_first(draws=3), chains(4)])
async def test_prompts_are_counted_as_a_cache_and_as_chains_would_read_them(
    policy: type[Walker] | type[Forgetful], rule: Rule
) -> None:
    tree = await grown(policy(), rule)
    found, computed, cacheless = measured(tree, Squares()), 0, 0
    reading = generation = 0
    for node in range(len(tree)):
        ids = tree.context_ids(node)
        if tree.children[node]:
            above = tree.parent[node]
            held = tree.context_ids(above) + tree.ids[node] if node else ()
            same = min(common(held, ids), tree.keep[node])
            computed += len(ids) - same
            reading += sum(range(same + 1, len(ids) + 1)) + 1000
        else:
            cacheless += sum(len(tree.context_ids(i)) for i in tree.path(node)[:-1])
        if node:
            start = len(tree.context_ids(tree.parent[node]))
            each = sum(start + j + 1 + 1000 for j in range(len(tree.ids[node])))
            generation += tree.mult[node] * each
    assert (found.prompt_computed, found.prompt_cacheless) == (computed, cacheless)
    assert (found.prompt_flops, found.generation_flops) == (reading, generation)
    assert found.sampled_tokens == sum(tree.mult[i] * len(tree.ids[i]) for i in range(1, len(tree)))
    assert cacheless > computed > 0


async def test_first_steps_and_repeated_ones_are_told_apart() -> None:
    class Replayed(Choices):
        restore_ways = frozenset({Restore.REPLAY})
        taken = 0

        async def step(self, action: Action, key: int) -> StepResult:
            Replayed.taken += 1
            return await super().step(action, key)

    tree = await search(
        Task("choices", "t", "choose", horizon=3), Replayed(), Softmax(), rule=best_first(draws=4, root_draws=6),
        evaluator=Guide(), budget=Budget(expansions=9), settings=Settings(close=True),
    )  # fmt: skip
    found = measured(tree)
    assert found.env_steps == len(tree) - 1 and found.replayed_steps > 0
    assert found.env_steps + found.replayed_steps == Replayed.taken


async def test_below_a_stored_start_the_way_there_is_replay_and_its_tokens_are_read_but_not_sampled() -> None:
    async def opened() -> Choices:
        return Choices()

    task = Task("choices", "t", "choose", horizon=3)
    source = await search(task, Choices(), Softmax(), rule=chains(1), settings=Settings(close=True))
    tree = await search_from(
        start_at(source, 2), opened, Softmax(), rule=chains(8), budget=Budget(expansions=1),
        settings=Settings(close=True),
    )  # fmt: skip
    found = measured(tree, Squares())
    drawn = [i for i in range(1, len(tree)) if tree.origin[i] is Origin.POLICY]
    assert len(drawn) == len(tree) - 3 == 2
    assert (found.sampled_tokens, found.env_steps, found.replayed_steps) == (8, 2, 2)
    assert (found.prompt_computed, found.prompt_flops) == (2, 1 + 2 + 1000), "the prompt is read once, at the start"
    assert found.prompt_cacheless == 2 * 2


async def test_a_stored_tree_costs_what_it_cost_when_it_was_grown(tmp_path: Path) -> None:
    with TreeStore.open(tmp_path / "s.sqlite") as store, metering() as spent:
        tree = await search(
            TASK, SUITE, Walker(), evaluator=Likelihood(), budget=Budget(expansions=5), settings=Settings(close=True),
            store=store,
        )  # fmt: skip
        told = measured(tree)
        assert measured(store.load(tree.tree_id)) == told
    assert spent.total().sampled_tokens == told.sampled_tokens
    with TreeStore.open(tmp_path / "s.sqlite") as store, metering() as again:
        await search(
            TASK, SUITE, Walker(), evaluator=Likelihood(), budget=Budget(expansions=5), settings=Settings(close=True),
            store=store,
        )  # fmt: skip
    assert again.total().sampled_tokens == 0, "a tree that was there already costs nothing"


async def test_seconds_are_those_of_policy_world_and_judge_apart() -> None:
    class Slow(Walker):
        async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> Sequence[Completion]:
            await asyncio.sleep(0.002)
            return await super().draw(context, seeds, max_tokens)

    with metering() as outer:
        assert recorder() is outer
        with metering() as inner:
            tree = await grown(Slow())
    found = inner.total()
    assert found.policy_seconds > 0.002 * 6 and 0 < found.world_seconds < found.policy_seconds > found.judge_seconds > 0
    assert outer.total().as_dict() == found.as_dict() and outer.busy() == Meter(), "an outer one is told once"
    assert recorder() is None and found.sampled_tokens == measured(tree).sampled_tokens


def test_calls_side_by_side_count_their_seconds_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count(0, 10)
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    busy = Busy()
    with busy, busy, busy:
        pass
    with busy:
        pass
    assert busy.seconds == 20


async def test_meters_add_up_and_go_through_json() -> None:
    tree = await grown()
    one = measured(tree)
    assert math.isnan(one.flops) and one.as_dict()["flops"] is None, "a policy that knows no model has no operations"
    assert measured([tree, tree]).prompt_cacheless == 2 * one.prompt_cacheless
    known = measured(tree, Squares())
    assert Meter.of(known.as_dict()) == known and known + Meter() == known
    assert Meter.of(Meter.of({"flops": 3.0}).as_dict()) == Meter()
    trained = Meter.trained({"tokens": 5.0, "row_tokens": 9.0, "train_flops": 7.0, "train_seconds": 0.5})
    assert (trained.trained_packed, trained.trained_rows, trained.flops, trained.train_seconds) == (5, 9, 7.0, 0.5)
