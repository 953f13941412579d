"""The whole line on the enumerable world: trees grown by the search engine, not by the simulation of it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from not_none import not_none

from treewright.envs.types import (
    Action,
    BaseEnvironment,
    Effect,
    Observation,
    Restore,
    Snapshot,
    StepResult,
    Task,
    ToolSpec,
)
from treewright.search.engine import Settings, search
from treewright.search.rules import best_first, random_on_policy
from treewright.search.rules.base import Rule
from treewright.search.types import Budget, Candidate, Completion, Context, Exchange, Score
from treewright.training.check.mdp import GROUP, Grown, measure, small_mdp
from treewright.training.credit import estimate
from treewright.training.credit.trees import tree_arrays

WORLD = small_mdp()
TREES = 960


def _state(observation: Observation | None) -> int:
    return int(not_none(observation).text[1:])


class World(BaseEnvironment):
    name = "mdp"
    sandboxed = True
    restore_ways = frozenset({Restore.STATE, Restore.REPLAY})
    tools = (ToolSpec("act", "", {"type": "object", "properties": {"n": {"type": "integer"}}}),)

    def seen(self) -> Observation:
        return Observation(f"s{self.state}", f"f{self.state}")

    async def reset(self, task: Task, key: int) -> Observation:
        self.state = 0
        return self.seen()

    async def step(self, action: Action, key: int) -> StepResult:
        n = action.arguments["n"]
        reward, self.state = float(WORLD.reward[self.state, n]), int(WORLD.to[self.state, n])
        return StepResult(self.seen(), reward, terminated=self.state < 0, effect=Effect.READ)

    async def snapshot(self) -> Snapshot:
        return Snapshot(Restore.STATE, str(self.state).encode(), f"f{self.state}", size=4)

    async def restore(self, snapshot: Snapshot) -> Observation:
        self.state = int(snapshot.data)
        return self.seen()


class Tabular:
    version = "tabular"

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange], base: Sequence[int]
    ) -> Context:
        delta = (128 + _state(turns[-1].observation if turns else first),)
        return Context(keep=len(base), delta=delta, ids=(*base, *delta))

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Any]:
        return [self.one(WORLD.policy[context.ids[-1] - 128], random.Random(seed).random()) for seed in seeds]

    def one(self, pi: Any, uniform: float) -> Completion:
        action = min(int(np.searchsorted(np.cumsum(pi), uniform)), len(pi) - 1)
        return Completion(
            f'act {{"n": {action}}}',
            (action,),
            (math.log(pi[action]),),
            finish_reason="stop",
            policy_version=self.version,
        )


class Judge:
    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> list[Any]:
        states = [_state(c.observation) for c in candidates]
        return [Score(float(WORLD.judge[s]) if s >= 0 else 0.5) for s in states]


@pytest.mark.parametrize("rule", [best_first(3, 3), random_on_policy(3, 3)], ids=lambda rule: rule.name)
async def test_trees_of_the_engine_are_unbiased_by_split_loo_and_caught_as_leaf_rows(rule: Rule) -> None:
    trees = []
    for i in range(TREES):
        settings = Settings(run=f"run {i}", seed=i, close=True, answers=2)
        options: dict[str, Any] = {
            "rule": rule,
            "evaluator": Judge(),
            "budget": Budget(expansions=5),
            "settings": settings,
        }
        trees.append(await search(Task("mdp", f"{i // GROUP}", "go"), World(), Tabular(), **options))
    arrays = tree_arrays(trees)
    state = np.array([_state(seen) for tree in trees for seen in tree.observation])
    action = np.array([a.arguments["n"] if a else -1 for tree in trees for a in tree.action])
    grown = Grown(arrays, state, action, TREES)
    assert arrays.exact.all() and (arrays.mult > 1).any()
    assert measure(WORLD, grown, estimate("split_loo", arrays)).over_noise < 2
    assert measure(WORLD, grown, estimate("grpo", arrays)).over_noise > 4
