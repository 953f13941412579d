"""SPLIT-LOO with baselines that are fitted: how much siblings are believed, and a value head as control variate.

A baseline may be anything that does not depend on the draw it is compared with. So what is fitted for a tree is fitted
on other trees (cross-fitting): the groups are halved, and each half is credited with what the other half taught.

tau     With K draws at p, of variance σ², the siblings' mean is wrong by σ²/K, and what p inherits, d, by some δ². The
        weights that leave the least variance are those of λ(n) = n/(n + τ) with τ = E σ²/E δ²; split_loo takes 3. Both
        means are over expanded nodes, weighted as their draws are in the gradient. Where none has two draws, 3 stays.
values  a number that was known of each node before its draws, such as the score that a value head or PRM gave it: d is
        then a + b·score with a and b by least squares on the other half's values. The judge may be as wrong as it
        likes: that costs variance and never biases. Nodes without a score inherit as before.
"""

from __future__ import annotations

import numpy as np

from treewright.envs.doors import nearest
from treewright.envs.errors import TreewrightError
from treewright.training.credit.arrays import Bools, Credit, Floats, TreeArrays
from treewright.training.credit.registry import estimator
from treewright.training.credit.split_loo import credited

__all__ = ["fitted_line", "fitted_tau", "split_fitted"]

USUAL, MOST = 3.0, 1e3


@estimator("split_fitted")
def split_fitted(
    arrays: TreeArrays, *, values: str = "score", root_baseline: float | None = None, allow_biased: bool = False
) -> Credit:
    """The credit of every node; see the head of this module.

    values         the column of `arrays.more` with what was known of a node before its draws; "": none
    root_baseline, allow_biased  as of split_loo
    Raises InexactTree, and TreewrightError for a column that is not there; trees without any are credited without.
    """
    arrays.require_choices("split_fitted")
    if not allow_biased:
        arrays.require_exact("split_fitted")
    if values and arrays.more and values not in arrays.more:
        raise TreewrightError(f"nodes have no {values!r}; {nearest(values, arrays.more)}")
    told = np.asarray(arrays.more[values], float) if values in arrays.more else np.full(len(arrays), np.nan)
    tau, line = np.full(len(arrays), USUAL), np.full(len(arrays), np.nan)
    half = _halves(arrays)
    for which in (False, True):
        others, mine = half != which, (half == which)[arrays.tree]
        if not others.any() or not mine.any():
            continue
        rest, seen = arrays.select(others), told[~mine]
        a, b = fitted_line(rest, seen)
        tau[mine] = fitted_tau(rest, a + b * seen, root_baseline)
        line[mine] = a + b * told[mine]
    return credited(arrays, tau, 1.0, root_baseline, line)[0]


split_fitted.weighs = True  # type: ignore[attr-defined]  # as split_loo does; such draws are not fitted on


def _halves(arrays: TreeArrays) -> Bools:
    """[T] by group, every second one; by tree where there is one group."""
    groups = arrays.group[arrays.parent < 0]
    _, rank = np.unique(groups, return_inverse=True)
    return np.asarray((rank if rank.max(initial=0) else np.arange(len(groups))) % 2 == 1)


def fitted_line(arrays: TreeArrays, told: Floats) -> tuple[float, float]:
    """(a, b) of the line from what was told of expanded nodes to their values, weighted by mass; NaN without any."""
    credit, _ = credited(arrays, USUAL)
    some = (arrays.n_children > 0) & np.isfinite(told) & np.isfinite(credit.value) & (credit.weight > 0)
    if not some.any():
        return np.nan, np.nan
    x, y, w = told[some], credit.value[some], credit.weight[some]
    w = w / w.sum()
    mx, my = float(w @ x), float(w @ y)
    spread = float(w @ (x - mx) ** 2)
    b = float(w @ ((x - mx) * (y - my))) / spread if spread > 1e-12 else 0.0
    return my - b * mx, b


def fitted_tau(arrays: TreeArrays, values: Floats | None = None, root_baseline: float | None = None) -> float:
    """E σ²/E δ² over the nodes whose draws are independent, two at least; between 0 and 1000."""
    credit, inherited = credited(arrays, USUAL, 1.0, root_baseline, values)
    up, inner = arrays.parent, arrays.parent >= 0
    n = len(arrays)
    plain = inner & ~arrays.aux & arrays.kept & (arrays.keep_prob == 1) & (arrays.importance == 1)
    plain &= np.isfinite(credit.value)
    worth = np.where(plain, np.nan_to_num(arrays.reward) + np.nan_to_num(credit.value), 0.0)
    mult = np.where(plain, arrays.mult, 0).astype(float)
    above = up[inner]

    def summed(each: Floats) -> Floats:
        return np.bincount(above, weights=each[inner], minlength=n)

    k, first, second = summed(mult), summed(mult * worth), summed(mult * worth**2)
    even = np.abs(arrays.share - arrays.mult / np.maximum(arrays.k[up], 1)) < 1e-6
    some = (k >= 2) & (k == arrays.k) & (summed((plain & ~even).astype(float)) == 0) & (credit.weight > 0)
    if not some.any():
        return USUAL
    k, mean, w = k[some], first[some] / k[some], credit.weight[some] ** 2
    within = np.maximum(second[some] / k - mean**2, 0.0) * k / (k - 1)
    apart = (mean - inherited[some]) ** 2 - within / k
    sigma, delta = float(w @ within), float(w @ apart)
    return float(np.clip(sigma / delta, 0.0, MOST)) if delta > 0 else MOST
