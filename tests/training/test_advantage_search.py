"""The whole line on the enumerable world: trees grown by the search engine, not by the simulation of it."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from treewright.envs.types import BaseEnvironment, Effect, Observation, Restore, Snapshot, StepResult, Task, ToolSpec
from treewright.search.engine import Settings, search
from treewright.search.rules import best_first, random_on_policy
from treewright.search.types import Budget, Completion, Context, Score
from treewright.training.check.mdp import GROUP, Grown, measure, small_mdp
from treewright.training.credit import estimate
from treewright.training.credit.trees import tree_arrays

WORLD = small_mdp()
TREES = 960


def _state(observation):
    return int(observation.text[1:])


class World(BaseEnvironment):
    name = "mdp"
    sandboxed = True
    restore_ways = frozenset({Restore.STATE, Restore.REPLAY})
    tools = (ToolSpec("act", "", {"type": "object", "properties": {"n": {"type": "integer"}}}),)

    def seen(self):
        return Observation(f"s{self.state}", f"f{self.state}")

    async def reset(self, task, key):
        self.state = 0
        return self.seen()

    async def step(self, action, key):
        n = action.arguments["n"]
        reward, self.state = float(WORLD.reward[self.state, n]), int(WORLD.to[self.state, n])
        return StepResult(self.seen(), reward, terminated=self.state < 0, effect=Effect.READ)

    async def snapshot(self):
        return Snapshot(Restore.STATE, str(self.state).encode(), f"f{self.state}", size=4)

    async def restore(self, snapshot):
        self.state = int(snapshot.data)
        return self.seen()


class Tabular:
    version = "tabular"

    def context(self, task, tools, first, turns, base):
        delta = (128 + _state(turns[-1].observation if turns else first),)
        return Context(keep=len(base), delta=delta, ids=(*base, *delta))

    async def draw(self, context, seeds, max_tokens):
        return [self.one(WORLD.policy[context.ids[-1] - 128], random.Random(seed).random()) for seed in seeds]

    def one(self, pi, uniform):
        action = min(int(np.searchsorted(np.cumsum(pi), uniform)), len(pi) - 1)
        return Completion(
            f'act {{"n": {action}}}',
            (action,),
            (math.log(pi[action]),),
            finish_reason="stop",
            policy_version=self.version,
        )


class Judge:
    async def evaluate(self, task, candidates):
        states = [_state(c.observation) for c in candidates]
        return [Score(float(WORLD.judge[s]) if s >= 0 else 0.5) for s in states]


@pytest.mark.parametrize("rule", [best_first(3, 3), random_on_policy(3, 3)], ids=lambda rule: rule.name)
async def test_trees_of_the_engine_are_unbiased_by_split_loo_and_caught_as_leaf_rows(rule):
    trees = []
    for i in range(TREES):
        settings = Settings(run=f"run {i}", seed=i, close=True, answers=2)
        options = {"rule": rule, "evaluator": Judge(), "budget": Budget(expansions=5), "settings": settings}
        grown = search(Task("mdp", f"{i // GROUP}", "go"), World(), Tabular(), **options)
        trees.append(await grown)
    arrays = tree_arrays(trees)
    state = np.array([_state(seen) for tree in trees for seen in tree.observation])
    action = np.array([a.arguments["n"] if a else -1 for tree in trees for a in tree.action])
    grown = Grown(arrays, state, action, TREES)
    assert arrays.exact.all() and (arrays.mult > 1).any()
    assert measure(WORLD, grown, estimate("split_loo", arrays)).over_noise < 2
    assert measure(WORLD, grown, estimate("grpo", arrays)).over_noise > 4
