"""One run: a warm start by imitation, then policy-gradient steps on batches of trees until the tokens are spent."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from treewright.benchmarks.learning.arms import Arm
from treewright.benchmarks.learning.grow import Grown, Plan, grow
from treewright.benchmarks.learning.policy import TinyPolicy
from treewright.benchmarks.learning.world import (
    MAX_HOPS,
    TURN,
    WORDS,
    Array,
    Tasks,
    World,
    demonstrations,
    draw_tasks,
    make_world,
)
from treewright.training.credit import Credit

__all__ = ["Curve", "Setting", "Sizes", "coefficients", "learn", "log_probs", "permuted", "starting_point", "success"]


@dataclass(frozen=True, slots=True)
class Setting:
    """knows  how often the demonstrator asks for the right relation
    flips  probability that a leaf's reward is the other one, as the arm sees it
    fewest, most  hops of a task;  words  that its hops are named by
    """

    knows: float
    flips: float = 0.0
    fewest: int = 2
    most: int = MAX_HOPS
    words: int = WORDS


@dataclass(frozen=True, slots=True)
class Sizes:
    """tokens       policy tokens sampled in a run, merged draws and all; batch of about as many per step
    checks, tasks  how often success is measured, and on how many tasks, one rollout each, outside the tokens counted
    warm         steps of 128 demonstrations
    """

    tokens: int = 60_000
    batch: int = 1_000
    checks: int = 12
    tasks: int = 256
    warm: int = 150


@dataclass(frozen=True, slots=True)
class Curve:
    """success[i] measured after tokens[i] policy tokens; area is the mean success over the tokens of the run."""

    tokens: tuple[int, ...]
    success: tuple[float, ...]
    steps: int
    trees: int

    def area(self, end: int) -> float:
        """Area under the piecewise linear curve from 0 to `end` tokens, divided by `end`."""
        inside = [t for t in self.tokens if t < end]
        x = np.array([*inside, end], dtype=float)
        return float(np.trapezoid(np.interp(x, self.tokens, self.success), x) / end)


def log_probs(policy: TinyPolicy, rows: Tensor) -> Tensor:
    """[B, L − 1] log-prob of every token but the first, given those before it."""
    logits = policy(rows[:, :-1])
    return torch.log_softmax(logits, -1).gather(2, rows[:, 1:, None])[..., 0]


def warm_start(world: World, setting: Setting, steps: int, rng: np.random.Generator) -> TinyPolicy:
    """A policy that imitates the imperfect demonstrator, its mistakes included."""
    with torch.random.fork_rng():
        torch.manual_seed(int(rng.integers(2**62)))
        policy = TinyPolicy(length=world.length)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3, betas=(0.9, 0.99))
    for _ in range(steps):
        tokens, shown = (torch.from_numpy(x) for x in demonstrations(world, 128, setting.knows, rng))
        loss = -(log_probs(policy, tokens) * shown[:, 1:]).sum() / shown.sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return policy


def success(policy: TinyPolicy, world: World, tasks: Tasks, rng: np.random.Generator) -> float:
    """Share of tasks solved by one sampled rollout each."""
    plan = Plan(np.ones((len(tasks), 2, world.most + 1), dtype=int), merge=False)
    return float(grow(policy, world, tasks, plan, rng).truth.sum() / len(tasks))


def coefficients(grown: Grown, credit: Credit) -> tuple[Array, Array]:
    """(rows [R, L], coef [R, L − 1]): paths to leaves that hold every node's tokens once.

    A node's coefficient stands on its own tokens in the first leaf below it and nowhere else; leaves without any are
    left out. A token's log-prob depends on its path alone, so the gradient is that of the tree.
    """
    parent, n = grown.arrays.parent, len(grown.arrays)
    owner = np.arange(n)
    inner = grown.arrays.n_children > 0
    owner[inner] = n
    for turn in range(int(grown.turn.max()), 0, -1):
        here = np.flatnonzero((grown.turn == turn) & (parent >= 0))
        np.minimum.at(owner, parent[here], owner[here])
    used = np.flatnonzero((credit.coef != 0) & (parent >= 0))
    leaves, line = np.unique(owner[used], return_inverse=True)
    coef = np.zeros((len(leaves), grown.rows.shape[1] - 1))
    for i in range(3):
        some = grown.arrays.n_tokens[used] > i
        coef[line[some], grown.prefix + TURN * (grown.turn[used][some] - 1) + i - 1] = credit.coef[used][some]
    return grown.rows[leaves], coef


def permuted(grown: Grown, rng: np.random.Generator) -> Grown:
    """The same trees with the leaves' rewards dealt out at random: what a learner must not learn from."""
    arrays = grown.arrays
    leaf, reward = np.flatnonzero(arrays.k == 0), arrays.reward.copy()
    reward[leaf] = rng.permutation(reward[leaf])
    return replace(grown, arrays=arrays.with_(reward=reward))


def starting_point(setting: Setting, seed: int, warm: int) -> tuple[World, TinyPolicy]:
    """The world and the warm start that all runs of a seed share."""
    world = make_world(np.random.default_rng([seed, 0]), setting.fewest, setting.most, setting.words)
    return world, warm_start(world, setting, warm, np.random.default_rng([seed, 1]))


def learn(
    arm: Arm,
    setting: Setting,
    lr: float,
    seed: int,
    sizes: Sizes,
    *,
    start: tuple[World, TinyPolicy] | None = None,
    permute: bool = False,
) -> Curve:
    """One run of an arm from `start`, which stays as it is; None = the starting point of the seed.

    Runs of one seed share world, warm start, tasks in order, and the tasks success is measured on. Each step is one
    Adam step (betas .9 and .99, gradient norm clipped at 1) on L = −(1/trees) Σ coef · log π over a batch's distinct
    tokens; a batch without any gradient is counted and leaves the weights as they are.
    """
    world, policy = start or starting_point(setting, seed, sizes.warm)
    policy = copy.deepcopy(policy)
    pool = draw_tasks(world, sizes.tokens // 4, np.random.default_rng([seed, 2]))
    probe = draw_tasks(world, sizes.tasks, np.random.default_rng([seed, 3]))
    rng = np.random.default_rng([seed, 4])
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr, betas=(0.9, 0.99))
    spent = trees = steps = 0
    rates: dict[int, float] = {}
    points: list[tuple[int, float]] = []
    per_tree = 80.0
    while True:
        if spent >= len(points) * sizes.tokens / sizes.checks:
            points.append((spent, success(policy, world, probe, np.random.default_rng([seed, 5]))))
        if spent >= sizes.tokens:
            break
        count = max(2, round(sizes.batch / per_tree))
        tasks = pool.take(np.arange(trees, trees + count) % len(pool))
        grown = grow(policy, world, tasks, arm.plan(tasks.hops, rates), rng, setting.flips)
        if permute:
            grown = permuted(grown, rng)
        spent, trees, steps = spent + grown.tokens, trees + count, steps + 1
        per_tree += 0.5 * (grown.tokens / count - per_tree)
        credit = arm.credit(grown.arrays)
        _note_rates(rates, tasks.hops, credit.value[:count])
        update(policy, optimizer, *coefficients(grown, credit), count)
    x, y = zip(*points, strict=True)
    return Curve(x, y, steps, trees)


def update(policy: TinyPolicy, optimizer: torch.optim.Optimizer, rows: Array, coef: Array, trees: int) -> None:
    if not len(rows):
        return
    end = int(np.flatnonzero(coef.any(0))[-1]) + 2
    logp = log_probs(policy, torch.from_numpy(rows[:, :end]))
    loss = -(torch.from_numpy(coef[:, : end - 1]).to(logp) * logp).sum() / trees
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()


def _note_rates(rates: dict[int, float], hops: Array, value: Array) -> None:
    """Running success rate of each number of hops, as the arm sees rewards: 0.7 old, 0.3 this batch's root values."""
    for h in np.unique(hops).tolist():
        now = float(value[hops == h].mean())
        rates[h] = 0.7 * rates[h] + 0.3 * now if h in rates else now
