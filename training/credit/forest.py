"""Values smoothed over similar steps by a random forest read as an adaptive smoother."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from treewright.envs.errors import TreewrightError
from treewright.training.credit.arrays import Floats, Ints
from treewright.training.credit.rows import Advantage, Rows, ratio, row_estimator

__all__ = ["Smoother", "forest", "grow_smoother"]


@dataclass(frozen=True, slots=True, eq=False)
class Smoother:
    """M partitions of N points into cells: ŷ_i = Σ_j w_ij y_j, w_ij = mean over the partitions that join i and j.

    cells   [M, N] cell numbers
    weight  [N] ω, how many observations a point stands for
    ess     [N] 1 / Σ_j (w_ij² / ω_j): observations that would give the same variance if averaged evenly
    """

    cells: Ints
    weight: Floats
    ess: Floats

    def smooth(self, y: Floats) -> Floats:
        """[N] the smoothed values."""
        total = np.zeros(len(y))
        for cell in self.cells:
            total += ratio(np.bincount(cell, weights=self.weight * y), np.bincount(cell, weights=self.weight))[cell]
        return total / len(self.cells)

    def weights(self, i: int) -> Floats:
        """[N] the weights w_i· of one point; they sum to 1."""
        total = np.zeros(len(self.weight))
        for cell in self.cells:
            same = np.where(cell == cell[i], self.weight, 0.0)
            total += same / same.sum()
        return total / len(self.cells)


def grow_smoother(
    features: Floats, y: Floats, weight: Floats, block: Ints, *, trees: int, depth: int, tries: int, seed: int
) -> Smoother:
    """Partitions by `depth` splits each; a split is the best of `tries` random (feature, quantile) by variance of y.

    features [N, F], y [N], weight [N] > 0, block [N]: points of different blocks never share a cell. All cells of a
    partition share their splits (an oblivious tree), which keeps the work at a few passes over N per split.
    """
    rng = np.random.default_rng(seed)
    ranked = np.sort(features, axis=0)
    block = np.unique(block, return_inverse=True)[1]
    cells = []
    for _ in range(trees):
        cell = block.copy()
        for _ in range(depth):
            options = []
            for _ in range(tries):
                f = int(rng.integers(features.shape[1]))
                cut = ranked[int(rng.integers(len(ranked))), f]
                option = 2 * cell + (features[:, f] > cut)
                n = np.bincount(option, weights=weight)
                options.append((float(np.sum(ratio(np.bincount(option, weights=weight * y) ** 2, n))), option))
            cell = max(options, key=lambda scored: scored[0])[1]
        cells.append(cell)
    table = np.array(cells)
    return Smoother(table, weight, _effective_size(table, weight))


def _effective_size(cells: Ints, weight: Floats) -> Floats:
    """1 / Σ_j w_ij²/ω_j by pairs of partitions: points i and j meet in both iff they share the joint cell."""
    size = [np.bincount(c, weights=weight)[c] for c in cells]
    spread = np.zeros(len(weight))
    for s in size:
        spread += 1 / s
    for a, b in combinations(range(len(cells)), 2):
        joint = cells[a].astype(np.int64) * (int(cells[b].max()) + 1) + cells[b]
        if int(joint.max()) > 8 * len(joint):
            joint = np.unique(joint, return_inverse=True)[1]
        spread += 2 * np.bincount(joint, weights=weight)[joint] / (size[a] * size[b])
    return np.asarray(len(cells) ** 2 / spread)


@row_estimator("forest")
def forest(
    rows: Rows,
    *,
    features: np.ndarray | str | None = None,
    trees: int = 6,
    depth: int = 4,
    tries: int = 3,
    seed: int = 0,
) -> Advantage:
    """A(c) = reward_c + V̂(c) − V̂(parent), V̂ a forest's smooth of the leaf means of similar states of one task.

    The view of random forests as adaptive smoothers is after Curth et al., 2402.01502; credit by it is ours.
    `features` [N, F] describe each node's state in node order; None = depth, reward so far, state key, validity
    and tokens of its call; "text", where trees are trained on, is `text_features` of them. Assumes that states alike
    in the features have alike values; a state's own outcome is in its own smooth, so the estimate is biased.
    `Smoother` gives the weights, Credit.ess the effective sample size.
    """
    if isinstance(features, str):
        raise TreewrightError(
            f"features = {features!r} needs the trees, which arrays do not have; give text_features(trees), or train "
            "with --set train.options.features=text"
        )
    order = rows.plan.order
    ended = (rows.arrays.terminal | rows.arrays.truncated)[order]
    state = np.flatnonzero((rows.n > 0) & ~ended)
    raw = rows.mean - rows.path
    value, ess = np.where(ended, 0.0, raw), np.where(rows.n > 0, 1.0, 0.0)
    if len(state):
        table = _features(rows) if features is None else np.asarray(features, dtype=np.float64)[order]
        smoother = grow_smoother(
            table[state], raw[state], rows.n[state], rows.group[state], trees=trees, depth=depth, tries=tries, seed=seed
        )
        value[state], ess[state] = smoother.smooth(raw[state]), smoother.ess
    step = np.where(rows.inner & (rows.n > 0), rows.reward + value - value[np.maximum(rows.up, 0)], 0.0)
    return Advantage(row=np.zeros_like(rows.n), node=step, value=value, ess=ess)


def _features(rows: Rows) -> Floats:
    a, order = rows.arrays, rows.plan.order
    known = (rows.plan.depth, a.state_key, a.call_ok, a.n_tokens)
    return np.column_stack([rows.path, *(column[order].astype(np.float64) for column in known)])
