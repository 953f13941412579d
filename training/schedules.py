"""Which schedule the trees of a round are grown by, learned from the noise of earlier trees' gradients for their cost.

All arms are unbiased, so their mean gradients are alike, and what an update of a given budget gains from an arm is that
E|g|² times the cost of a tree is small. |g|² itself would take a backward pass for each tree. Instead

    q = Σ coef² Σ_t (1 − p_t)²            over the tree's own draws and their tokens, p_t the probability of token t

stands for it: with respect to the logits, |∇ log p|² lies between (1 − p)² and twice that. Products of different draws
are left out; in an enumerated world, whose states share their weights, they were up to a sixth of the whole. The
chances of the arms are those with which each has the least q × cost under the Bayesian bootstrap (Rubin, Annals of
Statistics 9, 1981) of the newest trees, where trees of all arms stand in for what an arm has not shown yet: one that
saw no success has no noise and teaches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from treewright.envs.types import seed_of
from treewright.search.meter import Work, measured
from treewright.search.rules.adapting import ARMS, arm_of, chance_of
from treewright.search.tree import Tree
from treewright.training.credit import estimate
from treewright.training.credit.trees import tree_arrays

__all__ = ["Schedules", "noise_of"]

NEWEST, PRIOR, RESAMPLES, FLOOR = 64, 8.0, 256, 0.1


def noise_of(tree: Tree, baseline: float) -> float:
    """q of a tree whose root is compared with `baseline`. Draws without log-probs count their tokens whole."""
    coef = estimate("split_loo", tree_arrays([tree]), root_baseline=baseline, allow_biased=True).coef
    total = 0.0
    for node in np.flatnonzero(coef):
        logp = np.asarray(tree.logprobs[node], float)
        away = float(((1 - np.exp(logp)) ** 2).sum()) if len(logp) else float(len(tree.ids[node]))
        total += float(coef[node]) ** 2 * away
    return total


class Schedules:
    """The arms' record by suite, newest trees last.

    axis  of the meter, by which trees cost;  seed  of the bootstrap
    """

    def __init__(self, axis: str = "sampled_tokens", seed: int = 0) -> None:
        self.axis, self.seed, self.rounds = axis, seed, 0
        self.seen: dict[str, dict[str, list[tuple[float, float]]]] = {}

    def state(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"rounds": self.rounds, "seen": {s: {a: list(map(list, x)) for a, x in arms.items()}
                                                for s, arms in self.seen.items()}}  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`."""
        self.rounds = int(state["rounds"])
        self.seen = {s: {a: [(float(q), float(c)) for q, c in x] for a, x in arms.items()}
                     for s, arms in state["seen"].items()}  # fmt: skip

    def note(
        self, trees: Sequence[Tree], rates: Mapping[str, float], baselines: Mapping[str, float],
        work: Work | None = None, seconds: float = 0.0,
    ) -> None:  # fmt: skip
        """Takes up a round's exact trees, which were grown by what `rates` told.

        seconds  that the round took, shared out alike where that is the axis
        """
        self.rounds += 1
        for tree in (t for t in trees if t.exact):
            told = {**measured(tree, work).as_dict(), "seconds": seconds / len(trees)}
            cost = told[self.axis]
            if cost is None:
                continue
            noise = noise_of(tree, baselines.get(tree.task.suite, 0.0))
            self.record(tree.task.suite, arm_of(tree, rates), noise, cost)

    def record(self, suite: str, arm: str, noise: float, cost: float) -> None:
        """One tree's noise, see `noise_of`, and its cost."""
        record = self.seen.setdefault(suite, {}).setdefault(arm, [])
        record.append((noise, cost))
        del record[:-NEWEST]

    def chances(self) -> dict[str, float]:
        """What the next round's rule is told: for each suite and arm the chance of a tree; they sum to 1 by suite."""
        out: dict[str, float] = {}
        for suite, arms in self.seen.items():
            random = np.random.default_rng(seed_of(self.seed, self.rounds, suite))
            pool = np.array([one for record in arms.values() for one in record])
            product = np.stack([_products(np.array(arms.get(arm, [])).reshape(-1, 2), pool, random) for arm in ARMS])
            best = product.min(0)
            wins = (product <= best) / (product <= best).sum(0)
            share = (1 - FLOOR) * wins.mean(1) + FLOOR / len(ARMS)
            out |= {chance_of(suite, arm): float(p) for arm, p in zip(ARMS, share, strict=True)}
        return out


def _products(own: Any, pool: Any, random: np.random.Generator) -> Any:
    """[RESAMPLES] mean noise × mean cost of an arm; the pool counts as PRIOR of its trees."""
    atoms = np.concatenate([own, pool])
    mass = np.concatenate([np.ones(len(own)), np.full(len(pool), PRIOR / len(pool))])
    weight = random.gamma(mass, size=(RESAMPLES, len(atoms)))
    mean = weight @ atoms / weight.sum(1, keepdims=True)
    return mean[:, 0] * mean[:, 1]
