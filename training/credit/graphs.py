"""SPLIT-LOO where a tree is not enough: equal states merged, ALL nodes, draws without replacement.

Slow and plain, one node at a time. The formulas of split_loo.py hold, with these changes:

- states merged: the in-edge masses of a shared state are summed, its value is shared, and it inherits no baseline,
  since a sibling of an ancestor may lead into it;
- ALL node n with children i, V_n = f(T_1, …): child i keeps w_i = w_n ∂f/∂T_i, is no draw (coef 0) and inherits no
  baseline. Exact for f linear in each argument, as sum, mean and product of independent children are;
- without replacement: unordered-set weights, after Kool et al., 2002.06043.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from treewright.training.credit.arrays import Credit, Floats, MalformedTree, NodeKind, TreeArrays

__all__ = ["SetCredit", "set_probability", "split_loo_graph", "without_replacement"]

COMBINES = ("product", "sum", "mean")


def split_loo_graph(
    arrays: TreeArrays,
    *,
    same_as: ArrayLike | None = None,
    combine: str = "product",
    tau: float = 3.0,
    root_baseline: float = 0.0,
) -> Credit:
    """SPLIT-LOO with merged states and ALL nodes, shares mult/k.

    same_as   [N] the node whose subtree stands for this one's (−1 = its own): equal states, a leaf here
    combine   what an ALL node makes of its children's T = reward + value: 'product', 'sum' or 'mean'

    Faults, unknown rewards and open ends are refused (a merged leaf is not an open end); roulette is understood.
    Credit.ess is not known for graphs and is NaN. Raises InexactTree, MalformedTree, ValueError.
    """
    if combine not in COMBINES:
        raise ValueError(f"combine must be one of {', '.join(COMBINES)}, it is {combine!r}")
    same = np.full(len(arrays), -1) if same_as is None else np.asarray(same_as)
    merged = same >= 0
    if np.any(merged & (arrays.n_children > 0)):
        raise MalformedTree("same_as: a merged node has no children of its own")
    arrays.with_(truncated=arrays.truncated | merged).require_exact("split_loo_graph")
    return _Graph(arrays, same, combine, tau, root_baseline).credit()


class _Graph:
    def __init__(self, arrays: TreeArrays, same: np.ndarray, combine: str, tau: float, root: float) -> None:
        self.a, self.combine, self.tau, self.root = arrays, combine, tau, root
        self.same = [int(s) if s >= 0 else i for i, s in enumerate(same)]
        self.children: list[list[int]] = [[] for _ in self.same]
        for c in range(len(arrays)):
            if arrays.parent[c] >= 0 and not arrays.aux[c]:
                self.children[arrays.parent[c]].append(c)
        self.shared = {int(s) for s in same if s >= 0}

    def credit(self) -> Credit:
        order = self.upwards()
        n = len(self.a)
        self.V: dict[int, float] = {}
        for x in order:
            self.V[x] = self.combined(x) if self.children[x] else 0.0
        weight, coef, inherited = np.zeros(n), np.zeros(n), np.zeros(n)
        for r in self.a.roots:
            weight[r], inherited[r] = 1.0, self.root
        edge_weight = np.zeros(n)
        for p in reversed(order):
            if p in self.shared:
                inherited[p] = 0.0
            for c in self.children[p]:
                coef[c], edge_weight[c], down = self.edge(p, c, weight[p], inherited[p])
                target = self.same[c]
                weight[target] += edge_weight[c]
                inherited[target] = down
        value = np.array([self.V.get(self.same[x], math.nan) if self.a.kept[x] else math.nan for x in range(n)])
        return Credit(value=value, coef=coef, weight=edge_weight + (self.a.parent < 0), ess=np.full(n, math.nan))

    def upwards(self) -> list[int]:
        """Representatives, children before parents. Raises MalformedTree when a node leads back to itself."""
        done: dict[int, bool] = {}
        order: list[int] = []
        stack = [(int(r), False) for r in self.a.roots]
        while stack:
            x, leaving = stack.pop()
            if leaving:
                done[x] = True
                order.append(x)
            elif x not in done:
                done[x] = False
                stack.append((x, True))
                stack += [(self.same[c], False) for c in self.children[x]]
            elif not done[x]:
                raise MalformedTree(f"same_as: node {x} is merged with a state of its own subtree")
        return order

    def U(self, c: int) -> float:
        h, q, kappa = float(self.a.control[c]), float(self.a.keep_prob[c]), float(self.a.kept[c])
        return h + kappa * (float(np.nan_to_num(self.a.reward[c])) + self.V[self.same[c]] - h) / q

    def combined(self, p: int) -> float:
        values = [self.U(c) for c in self.children[p]]
        if self.a.kind[p] != NodeKind.ALL:
            k = sum(int(self.a.mult[c]) for c in self.children[p])
            return sum(int(self.a.mult[c]) * u for c, u in zip(self.children[p], values, strict=True)) / k
        return math.prod(values) if self.combine == "product" else sum(values) / self.parts(p)

    def parts(self, p: int) -> int:
        return len(self.children[p]) if self.combine == "mean" else 1

    def edge(self, p: int, c: int, w: float, d_p: float) -> tuple[float, float, float]:
        """(coef, weight, baseline passed down) of the edge p → c."""
        live = float(self.a.kept[c]) / float(self.a.keep_prob[c])
        if self.a.kind[p] == NodeKind.ALL:
            others = [self.U(s) for s in self.children[p] if s != c]
            slope = math.prod(others) if self.combine == "product" else 1 / self.parts(p)
            return 0.0, w * slope * live, 0.0
        k, m = sum(int(self.a.mult[s]) for s in self.children[p]), int(self.a.mult[c])
        b = self.rest(p, c, k, 1, d_p)
        d = self.rest(p, c, k, m, d_p)
        coef = w * m / k * (self.U(c) - b) if self.a.trainable[c] else 0.0
        return coef, w * m / k * live, d - float(np.nan_to_num(self.a.reward[c]))

    def rest(self, p: int, c: int, k: int, out: int, d_p: float) -> float:
        if k == out:
            return d_p
        lam = (k - out) / (k - out + self.tau)
        return lam * (k * self.V[p] - out * self.U(c)) / (k - out) + (1 - lam) * d_p


def set_probability(p: Sequence[float], mass: float = 1.0) -> float:
    """The probability that the first len(p) draws without replacement are exactly this set, in any order.

    p     probabilities of the set's members; the whole domain has probability `mass`
    Exponential in len(p): sets of up to about 15.
    """
    n = len(p)
    first = [0.0] * (1 << n)
    gone = [0.0] * (1 << n)
    first[0] = 1.0
    for chosen in range(1, 1 << n):
        for i in range(n):
            if chosen >> i & 1:
                before = chosen ^ (1 << i)
                first[chosen] += first[before] * p[i] / (mass - gone[before])
                gone[chosen] = gone[before] + p[i]
    return first[-1]


@dataclass(frozen=True, slots=True, eq=False)
class SetCredit:
    """Credit of S distinct draws made without replacement at one node, each array [S].

    share  ω, the share of the node's mass that the draw's subtree gets (ω sums to 1 only in expectation)
    coef   factor of ∇ log p(a) for the draw
    down   d, the baseline that the draw's children inherit (before its reward is taken off)
    value  estimate of the node's value
    """

    share: Floats
    coef: Floats
    down: Floats
    value: float


def without_replacement(p: ArrayLike, value: ArrayLike, *, weight: float = 1.0) -> SetCredit:
    """Credit of draws without replacement, after Kool et al., 2002.06043.

    p       [S] policy probabilities of the drawn actions, S ≥ 2 (their total below or equal to 1)
    value   [S] T, what each earned from its edge on
    weight  the node's mass

    ω_a = p_a P^{D∖a}(S∖a) / P(S);  d_a = the same estimate of the others' mean within D∖a;
    b_a = p_a T_a + (1 − p_a) d_a;  coef_a = weight ω_a (T_a − b_a). For whole-turn actions, where every p is tiny,
    ω → 1/S and i.i.d. draws are simpler.
    """
    prob, T = np.asarray(p, dtype=np.float64), np.asarray(value, dtype=np.float64)
    if prob.ndim != 1 or prob.shape != T.shape or len(prob) < 2:
        raise ValueError(f"p and value must be equally long with at least 2 draws, got {prob.shape} and {T.shape}")
    if np.any(prob <= 0) or prob.sum() > 1 + 1e-9:
        raise ValueError(f"p must be positive with a total of at most 1, got {prob.tolist()}")
    share = _set_shares(prob, 1.0)
    down = np.empty(len(prob))
    for a in range(len(prob)):
        others = np.arange(len(prob)) != a
        down[a] = _set_shares(prob[others], 1.0 - prob[a]) @ T[others]
    baseline = prob * T + (1 - prob) * down
    return SetCredit(share=share, coef=weight * share * (T - baseline), down=down, value=float(share @ T))


def _set_shares(p: Floats, mass: float) -> Floats:
    """[S] ω within a domain of the given mass."""
    whole = set_probability(p.tolist(), mass)
    rest = [set_probability(np.delete(p, a).tolist(), mass - p[a]) for a in range(len(p))]
    return np.asarray(p / mass * np.array(rest) / whole)
