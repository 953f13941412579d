"""A four-step world small enough to enumerate, and the bias of an estimator measured against its true gradient.

The policy is a tabular softmax, so the gradient is known in closed form. An estimator is unbiased when its mean
gradient over many trees differs from the true one by no more than Monte-Carlo noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treewright.training.credit import Credit, TreeArrays

__all__ = ["GROUP", "Array", "BiasReport", "Grown", "Mdp", "measure", "small_mdp"]

GROUP = 8
"""Trees per group: the unit whose gradients are independent, since roots and groups share baselines."""

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Mdp:
    """S states, A actions, deterministic transitions, a softmax policy.

    to      [S, A] the next state, −1 where the episode ends; states are ordered by step, 0 is the start
    reward  [S, A] of each transition
    logits  [S, A] the policy's parameters
    judge   [S] a noisy guess of each state's value, what a search may look at
    step    [S] actions taken before this state
    """

    to: Array
    reward: Array
    logits: Array
    judge: Array
    step: Array

    @property
    def policy(self) -> Array:
        """[S, A] π(a|s)."""
        e = np.exp(self.logits - self.logits.max(1, keepdims=True))
        return np.asarray(e / e.sum(1, keepdims=True))

    def values(self) -> tuple[Array, Array]:
        """(V [S], Q [S, A]) under the policy, by one backward sweep."""
        V, Q, pi = np.zeros(len(self.to)), np.zeros(self.to.shape), self.policy
        for s in reversed(range(len(self.to))):
            Q[s] = self.reward[s] + np.where(self.to[s] >= 0, V[self.to[s]], 0.0)
            V[s] = pi[s] @ Q[s]
        return V, Q

    def gradient(self) -> Array:
        """[S, A] the exact ∂V(start)/∂logits: occupancy · π · (Q − V)."""
        V, Q = self.values()
        pi, occupancy = self.policy, np.zeros(len(self.to))
        occupancy[0] = 1.0
        for s in range(len(self.to)):
            for a in range(self.to.shape[1]):
                if self.to[s, a] >= 0:
                    occupancy[self.to[s, a]] += occupancy[s] * pi[s, a]
        return np.asarray(occupancy[:, None] * pi * (Q - V[:, None]))


def small_mdp(seed: int = 7, sizes: tuple[int, ...] = (1, 3, 4, 4)) -> Mdp:
    """Three actions, states that several paths reach, early ends, rewards on the way and at the end.

    sizes  states of each step; the first is 1, later ones at least 3
    """
    rng, actions = np.random.default_rng(seed), 3
    first = np.concatenate(([0], np.cumsum(sizes)))
    states = int(first[-1])
    step = np.repeat(np.arange(len(sizes)), sizes)
    to = np.full((states, actions), -1)
    for s in range(states):
        if step[s] < len(sizes) - 1:
            to[s] = rng.choice(np.arange(first[step[s] + 1], first[step[s] + 2]), actions, replace=False)
    early = (step[:, None] > 0) & (rng.random(to.shape) < 0.15)
    to[early] = -1
    won = rng.random(to.shape) < np.where(early, 0.1, 0.4)
    reward = np.where(to < 0, won, 0.1 * (rng.random(to.shape) < 0.2)).astype(np.float64)
    mdp = Mdp(to, reward, rng.normal(size=to.shape), np.zeros(len(to)), step)
    V, _ = mdp.values()
    judge = np.clip(V + rng.normal(0, 0.15, len(V)), 0.02, 1.0)
    return Mdp(to, reward, mdp.logits, judge, step)


@dataclass(frozen=True, slots=True, eq=False)
class Grown:
    """Trees grown on an Mdp: `arrays`, and per node the state it stands in (−1 = ended) and the action of its edge."""

    arrays: TreeArrays
    state: Array
    action: Array
    trees: int


@dataclass(frozen=True, slots=True)
class BiasReport:
    """How an estimator's mean gradient compares with the true one.

    relative_bias       |mean − true| / |true|
    over_noise          |mean − true| over the standard error of the mean (root of its trace): about 1 if unbiased
    cosine, scale       angle to the true gradient, and projection on it (1 = right length)
    variance_per_token  trace of the covariance of one tree's gradient × tokens per tree / |true|²
    tokens_per_tree     sampled tokens, a shared prefix counted once
    """

    relative_bias: float
    over_noise: float
    cosine: float
    scale: float
    variance_per_token: float
    tokens_per_tree: float


def measure(mdp: Mdp, grown: Grown, credit: Credit) -> BiasReport:
    """The bias and variance of Σ coef ∇log π over trees; trees that gave nothing count in the mean."""
    true = mdp.gradient()
    (S, A), a = true.shape, grown.arrays
    edge = np.flatnonzero(a.parent >= 0)
    unit, s, coef = a.tree[edge] // GROUP, grown.state[a.parent[edge]], credit.coef[edge]
    n = grown.trees // GROUP
    taken = np.bincount((unit * S + s) * A + grown.action[edge], weights=coef, minlength=n * S * A).reshape(n, S, A)
    total = np.bincount(unit * S + s, weights=coef, minlength=n * S).reshape(n, S, 1)
    per_group = ((taken - total * mdp.policy) / GROUP).reshape(n, -1)
    mean, want = per_group.mean(0), true.ravel()
    trace = float(per_group.var(0, ddof=1).sum())
    off, size = float(np.linalg.norm(mean - want)), float(np.linalg.norm(want))
    tokens = float(a.n_tokens.sum()) / grown.trees
    return BiasReport(
        relative_bias=off / size,
        over_noise=off / float(np.sqrt(trace / n)) if trace else float("inf"),
        cosine=float(mean @ want) / (size * float(np.linalg.norm(mean)) or 1.0),
        scale=float(mean @ want) / size**2,
        variance_per_token=trace * GROUP * tokens / size**2,
        tokens_per_tree=tokens,
    )
