"""Published estimators as leaf rows: every finished leaf is one trajectory, and all rows of a task count alike.

The common convention: a row is a finished leaf whose path has no fault, no unknown reward and no killed or open
node; it stands for n_l = Π mult draws, R_l is the return of its whole path. An estimator gives an advantage
A(l, c) = A_l + B_c to each node c on the row, and the gradient is the mean over the rows of each group:

    coef_c = trees_g / rows_g · Σ_{l below c} n_l (A_l + B_c)

so that one tree of one chain has coef = A. Splitting a row's share over a tree's leaves in this way is what makes
leaf rows biased on trees that do not grow independently of what is found; recorded keep probabilities and shares
are not used, because the publications have none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np

from treewright.training.credit.arrays import Bools, Credit, Floats, Ints, TreeArrays
from treewright.training.credit.levels import Levels, levels
from treewright.training.credit.registry import UnknownEstimator, estimator

__all__ = ["Advantage", "LeafRows", "Rows", "has_rows", "leaf_rows", "row_estimator", "weighted_rows"]


@dataclass(frozen=True, slots=True, eq=False)
class Advantage:
    """A(l, c) = row[l] + node[c], both [N] in level order; `value` and `ess` replace those of the leaf mean."""

    row: Floats
    node: Floats | None = None
    value: Floats | None = None
    ess: Floats | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LeafRows:
    """One entry per (finished leaf, trained node on its path): what a loss with a clip per row needs.

    leaf, node  [P] indices into the arrays
    coef        [P] factor of ∇ log π at the node in this row; sums over `leaf` to Credit.coef
    """

    leaf: Ints
    node: Ints
    coef: Floats


class Rows:
    """The rows of a batch and the sums that estimators are made of; every array is [N] in level order.

    copies   Π mult from the root to the node: how many draws made this same path
    n        draws behind the finished leaves at or below the node (0 = no row passes here)
    path     reward received from the root up to and including the node
    total    R at finished leaves, elsewhere 0
    mean     mean return R of the rows through the node; 0 where none passes
    """

    def __init__(self, arrays: TreeArrays) -> None:
        self.arrays = arrays
        self.plan: Levels = levels(arrays.parent)
        self.up = self.plan.parent
        self.inner: Bools = self.up >= 0
        order = self.plan.order
        self.trained: Bools = arrays.trainable[order] & arrays.kept[order]
        known = arrays.executed & ~np.isnan(arrays.reward) & arrays.kept
        ok: Bools = (~arrays.fault & ~arrays.aux)[order] & (known[order] | ~self.inner)
        count = np.where(ok, arrays.mult[order], 0).astype(np.float64)
        self.reward: Floats = np.where(self.inner, np.nan_to_num(arrays.reward[order]), 0.0).astype(np.float64)
        self.mult: Floats = arrays.mult[order].astype(np.float64)
        self.path: Floats = self.reward.copy()
        for here in self.plan.down():
            count[here] *= count[self.up[here]]
            self.path[here] += self.path[self.up[here]]
        self.copies: Floats = count
        ended = (arrays.terminal | arrays.truncated) & (arrays.n_children == 0)
        self.finished: Bools = ended[order] & (count > 0)
        own = np.where(self.finished, count, 0.0)
        self.own: Floats = own
        self.n: Floats = self.below(own)
        self.total: Floats = np.where(self.finished, self.path, 0.0)
        self.mean: Floats = ratio(self.below(own * self.total), self.n)
        self.group: Ints = np.unique(arrays.group, return_inverse=True)[1][order]
        self.tree: Ints = arrays.tree[order]

    def below(self, amount: Floats) -> Floats:
        """The sum of an amount over each node and everything below it."""
        result = np.array(amount, dtype=np.float64)
        for here, above in self.plan.up():
            result[above] += self.plan.add_to_parents(here, above, result[here])
        return result

    def standard(self, value: Floats, by: Ints, *, eps: float) -> tuple[Floats, Floats]:
        """(mean, 1/(std + eps)) of a row quantity over the rows with equal `by`, spread back to every node.

        The standard deviation is the population's; where it is 0 the factor is 0.
        """
        n = np.bincount(by, weights=self.own)
        mean = ratio(np.bincount(by, weights=self.own * value), n)
        off = value - mean[by]
        return mean[by], inverse_std(ratio(np.bincount(by, weights=self.own * off**2), n), eps)[by]

    def among_siblings(self, value: Floats, weight: Floats) -> tuple[Floats, Floats]:
        """(mean, variance) of a node quantity over its siblings and itself, by weight."""
        p, kids = self.up[self.inner], np.flatnonzero(self.inner)
        size = len(self.up)
        n = np.bincount(p, weights=weight[kids], minlength=size)
        mean = ratio(np.bincount(p, weights=(weight * value)[kids], minlength=size), n)[np.maximum(self.up, 0)]
        off = np.where(self.inner, value - mean, 0.0)
        variance = ratio(np.bincount(p, weights=(weight * off**2)[kids], minlength=size), n)
        return mean, variance[np.maximum(self.up, 0)]

    @property
    def scale(self) -> Floats:
        """trees_g / rows_g by node."""
        trees = np.bincount(self.group[~self.inner])
        return np.asarray(ratio(trees.astype(np.float64), np.bincount(self.group, weights=self.own))[self.group])

    def credit(self, a: Advantage) -> Credit:
        """The per-node sum of the rows."""
        node = 0.0 if a.node is None else a.node
        coef = np.where(self.trained, self.scale * (self.below(self.own * a.row) + self.n * node), 0.0)
        value = self.mean - self.path if a.value is None else a.value
        back = self.plan.back
        return Credit(
            value=back(np.where(self.n > 0, value, np.nan)),
            coef=back(coef),
            weight=back(self.n * self.scale),
            ess=back(ratio(self.n**2, self.below(self.own**2)) if a.ess is None else a.ess),
        )

    def pairs(self, a: Advantage) -> LeafRows:
        """Every (leaf, trained node on its path) with its coefficient."""
        l, c = self.walk()
        node = np.zeros(len(self.n)) if a.node is None else a.node
        order = self.plan.order
        return LeafRows(leaf=order[l], node=order[c], coef=self.scale[l] * self.own[l] * (a.row[l] + node[c]))

    def walk(self) -> tuple[Ints, Ints]:
        """Every (finished leaf, trained node on its path) in level order."""
        leaf = at = np.flatnonzero(self.finished)
        leaves, nodes = [], []
        while len(leaf):
            leaves.append(leaf[self.trained[at]])
            nodes.append(at[self.trained[at]])
            on = self.inner[at]
            leaf, at = leaf[on], self.up[at][on]
        return np.concatenate(leaves or [leaf]), np.concatenate(nodes or [leaf])


def ratio(top: Floats, bottom: Floats) -> Floats:
    """top / bottom, 0 where bottom is 0."""
    return np.asarray(np.divide(top, bottom, out=np.zeros(np.shape(top)), where=bottom > 0))


def inverse_std(variance: Floats, eps: float) -> Floats:
    """1/(√variance + eps), 0 where the variance is nothing but rounding."""
    std = np.sqrt(np.maximum(variance, 0.0))
    return np.asarray(np.divide(1.0, std + eps, out=np.zeros_like(std), where=std > 1e-9))


_ROWS: dict[str, Callable[..., Advantage]] = {}


def row_estimator(name: str) -> Callable[[Callable[..., Advantage]], Callable[..., Credit]]:
    """Registers `f(rows, **options) -> Advantage` as an estimator and for `leaf_rows`."""

    def register(function: Callable[..., Advantage]) -> Callable[..., Credit]:
        _ROWS[name] = function

        @estimator(name)
        @wraps(function)
        def credited(arrays: TreeArrays, **options: Any) -> Credit:
            rows = Rows(arrays)
            return rows.credit(function(rows, **options))

        return credited

    return register


def has_rows(name: str) -> bool:
    """Whether the estimator of that name is one of leaf rows."""
    return name in _ROWS


def leaf_rows(name: str, arrays: TreeArrays, **options: Any) -> LeafRows:
    """The (leaf, node) terms of a row-based estimator. Raises UnknownEstimator for one that has no rows."""
    if name not in _ROWS:
        raise UnknownEstimator(f"{name!r} has no leaf rows; these have: {', '.join(sorted(_ROWS))}")
    rows = Rows(arrays)
    return rows.pairs(_ROWS[name](rows, **options))


def weighted_rows(arrays: TreeArrays, credit: Credit) -> LeafRows:
    """Any per-node credit as weighted leaf rows: a node's coefficient shared out over its leaves by their weight.

    Without roulette the rows of a node sum to its coefficient, so that training on whole trajectories gives the
    gradient of the tree as long as nothing is clipped. Killed leaves have no weight: with roulette they are lost.
    """
    rows = Rows(arrays)
    l, c = rows.walk()
    weight, coef = credit.weight[rows.plan.order], credit.coef[rows.plan.order]
    below = rows.below(np.where(rows.finished, weight, 0.0))
    part = ratio(weight[l], below[c])
    return LeafRows(leaf=rows.plan.order[l], node=rows.plan.order[c], coef=part * coef[c])
