"""The arms: how trees grow and how they are credited. Widths are [T, 2, 5]: by tree, judge's verdict and turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from treewright.benchmarks.learning.grow import Plan
from treewright.benchmarks.learning.world import MAX_HOPS, Array
from treewright.search.rules.schedules import choose_schedule, fan, late_branch
from treewright.training.credit import Credit, TreeArrays, estimate

__all__ = ["ARMS", "Arm"]

TURNS = np.arange(MAX_HOPS + 1)
Rates = Mapping[int, float]
Widths = Callable[[Array, Rates], Array]


@dataclass(frozen=True, slots=True)
class Arm:
    """widths   draws from the tasks' hops [T] and the running success rate of each number of hops
    grow        the other fields of a Plan
    estimator, options  the credit; `own_group` compares the leaves of a tree with each other alone
    """

    widths: Widths
    grow: Mapping[str, Any]
    estimator: str = "split_loo"
    options: Mapping[str, Any] = field(default_factory=dict)
    own_group: bool = False

    def plan(self, hops: Array, rates: Rates) -> Plan:
        return Plan(self.widths(hops, rates), **self.grow)

    def credit(self, arrays: TreeArrays) -> Credit:
        if self.own_group:
            arrays = arrays.with_(group=arrays.tree)
        return estimate(self.estimator, arrays, **dict(self.options))


def _by_turn(*tables: Array) -> Array:
    """[T, 2, 5] from one table [T, 5] for both verdicts or from two: disliked, liked."""
    return np.stack([tables[0], tables[-1]], axis=1)


def _fan(hops: Array, widths: tuple[int, ...]) -> Array:
    return _by_turn(np.tile(fan(TURNS, widths), (len(hops), 1)))


def chains(hops: Array, rates: Rates) -> Array:
    """Eight episodes for each task."""
    return _fan(hops, (8, 1))


def late(hops: Array, rates: Rates) -> Array:
    """Four draws at the root, two at the last turn, one between."""
    return _by_turn(np.stack([fan(TURNS, late_branch(int(h) + 1)) for h in hops]))


def split(hops: Array, rates: Rates, *, root: int = 2, k: int = 2) -> Array:
    """`root` draws at the root, then k where the judge likes the node and one where it does not."""
    liked = np.tile(fan(TURNS, (root, k)), (len(hops), 1))
    return _by_turn(np.tile(fan(TURNS, (root, 1)), (len(hops), 1)), liked)


def wide(hops: Array, rates: Rates) -> Array:
    """Four draws at the root and two below, as `best_first` draws by default."""
    return _fan(hops, (4, 2))


def adaptive(hops: Array, rates: Rates) -> Array:
    """Chains, the fan 8,1,1,1,2 or `split`, by the success rate of tasks with as many hops; chains while unknown."""
    made = {
        "chains": chains(hops, rates),
        "fan": _fan(hops, (8, 1, 1, 1, 2)),
        "split": split(hops, rates),
    }
    chosen = [choose_schedule(rates.get(int(h), 1.0)) for h in hops]
    return np.stack([made[name][t] for t, name in enumerate(chosen)])


SHRUNK = {"tau": 3.0}
APART: dict[str, Any] = {"merge": False}
"""Equal draws are executed apart: what a search shows is drawn anew each time, and so is a flip of the reward."""
ARMS = {
    "chains": Arm(chains, APART, options={"tau": 0.0}),
    "late": Arm(late, APART, options=SHRUNK),
    "split": Arm(split, APART, options=SHRUNK),
    "split_rows": Arm(split, APART, estimator="grpo", own_group=True),
    "adaptive": Arm(adaptive, APART, options=SHRUNK),
    "best_first": Arm(wide, APART | {"expansions": 4}, options=SHRUNK),
}
