"""A world of three binary choices whose true policy gradient can be enumerated, a policy and a judge for it."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from not_none import not_none

from treewright.envs import BaseEnvironment, Effect, Observation, Restore, Snapshot, StepResult, Task, ToolSpec
from treewright.envs.types import Action, digest, seed_of
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules.base import Rule
from treewright.search.tree import Tree
from treewright.search.types import Budget, Candidate, Completion, Context, Evaluator, Exchange, Score
from treewright.training.credit import estimate
from treewright.training.credit.arrays import Credit
from treewright.training.credit.trees import tree_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray


if TYPE_CHECKING:
    from numpy.typing import NDArray


STATES = [""] + ["".join(s) for n in (1, 2) for s in itertools.product("ab", repeat=n)]
REWARD = dict(zip(map("".join, itertools.product("ab", repeat=3)), (0, 1, 0, 0, 1, 0, 0.5, 0), strict=True))
LOGIT = {s: math.sin(3 * i) for i, s in enumerate(STATES)}  # of choosing a


def p_a(state: str) -> float:
    return 1 / (1 + math.exp(-LOGIT[state]))


class Choices(BaseEnvironment):
    name = "choices"
    restore_ways = frozenset({Restore.STATE, Restore.REPLAY})
    tools = (ToolSpec("a", effect=Effect.REVERSIBLE), ToolSpec("b", effect=Effect.REVERSIBLE))
    state = ""

    def seen(self) -> Observation:
        return Observation(self.state or "start", digest(self.state))

    async def reset(self, task: Task, key: int) -> Observation:
        self.state = ""
        return self.seen()

    async def step(self, action: Action, key: int) -> StepResult:
        self.state += action.name
        done = len(self.state) == 3
        return StepResult(self.seen(), REWARD[self.state] if done else 0.0, terminated=done)

    async def snapshot(self) -> Snapshot:
        return Snapshot(Restore.STATE, self.state.encode(), self.seen().fingerprint, size=8)

    async def restore(self, snapshot: Snapshot) -> Observation:
        self.state = snapshot.data.decode()
        return self.seen()


class Softmax:
    version = "softmax"

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange], base: Sequence[int]
    ) -> Context:
        state = "".join(not_none(t.action).name for t in turns)
        return Context(keep=0, delta=tuple(state.encode()), ids=tuple(state.encode()))

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        p = p_a(bytes(context.ids).decode())
        out = []
        for seed in seeds:
            a = random.Random(seed).random() < p
            out.append(Completion("a {}" if a else "b {}", (1 if a else 2,), (math.log(p if a else 1 - p),)))
        return out


class Guide:
    """Scores that prefer what leads to reward, with noise: the search is pulled towards good endings."""

    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> list[Score]:
        out = []
        for c in candidates:
            state = "".join(not_none(t.action).name for t in c.turns) + (c.action.name if c.action else "")
            below = [r for end, r in REWARD.items() if end.startswith(state)]
            out.append(Score(min(1.0, 0.05 + float(np.mean(below)) * random.Random(seed_of(task.id, state)).random())))
        return out


def true_gradient() -> NDArray[Any]:
    value = dict(REWARD)
    reach = {"": 1.0}
    for s in sorted(STATES, key=len):
        for a, p in (("a", p_a(s)), ("b", 1 - p_a(s))):
            reach[s + a] = reach[s] * p
    for s in sorted(STATES, key=len, reverse=True):
        value[s] = p_a(s) * value[s + "a"] + (1 - p_a(s)) * value[s + "b"]
    return np.array([reach[s] * p_a(s) * (1 - p_a(s)) * (value[s + "a"] - value[s + "b"]) for s in STATES])


def tree_gradient(tree: Tree, credit: Credit) -> NDArray[Any]:
    out = np.zeros(len(STATES))
    for node in range(1, len(tree)):
        state = "".join(not_none(tree.action[i]).name for i in tree.path(node)[1:-1])
        a = not_none(tree.action[node]).name == "a"
        out[STATES.index(state)] += credit.coef[node] * ((1.0 if a else 0.0) - p_a(state))
    return out


async def opened() -> Choices:
    return Choices()


def z_scores(found: NDArray[Any]) -> Any:
    error = found.mean(0) - true_gradient()
    return np.abs(error) / (found.std(0, ddof=1) / math.sqrt(len(found)) + 1e-12)


async def grow(
    rule: Rule, count: int, expansions: int = 3, close: bool = True, evaluator: Evaluator | None = None, seed: int = 1
) -> AsyncIterator[Tree]:
    """`count` trees, each of a task of its own."""
    pool = Pool(opened, 1)
    task = Task("choices", "t", "choose", horizon=3)
    for i in range(count):
        yield await search(
            replace(task, id=f"t{i}"), pool, Softmax(), rule=rule, evaluator=evaluator or Guide(),
            budget=Budget(expansions=expansions), settings=Settings(seed=seed, close=close),
        )  # fmt: skip


async def gradients(
    rule: Any,
    trees: int,
    close: bool = True,
    spoil: Callable[[Any], Any] | None = None,
    expansions: int = 3,
    evaluator: Evaluator | None = None,
    allow_biased: bool = False,
) -> NDArray[Any]:
    out = []
    async for tree in grow(rule, trees, expansions, close, evaluator):
        arrays = tree_arrays([tree])
        arrays = spoil(arrays) if spoil else arrays
        credit = estimate("split_loo", arrays, root_baseline=0.3, allow_biased=allow_biased or not close)
        out.append(tree_gradient(tree, credit))
    return np.array(out)
