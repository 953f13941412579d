"""SPLIT-LOO straight from its formulas, one node at a time: slow, obvious, and what the fast version must equal."""

from __future__ import annotations

import math

import numpy as np

from treewright.training.credit.arrays import Credit, TreeArrays

__all__ = ["split_loo_reference"]


def split_loo_reference(
    arrays: TreeArrays,
    *,
    tau: float = 3.0,
    weight_power: float = 1.0,
    root_baseline: float | None = None,
    allow_biased: bool = False,
) -> Credit:
    """Same arguments, result and errors as `split_loo`; a few µs × N instead of a few ns × N."""
    arrays.require_choices("split_loo")
    if not allow_biased:
        arrays.require_exact("split_loo")
    return _Walk(arrays, tau, weight_power, root_baseline).credit()


class _Walk:
    def __init__(self, arrays: TreeArrays, tau: float, power: float, root_baseline: float | None) -> None:
        self.a, self.tau, self.power, self.root_baseline = arrays, tau, power, root_baseline
        n = len(arrays)
        self.children: list[list[int]] = [[] for _ in range(n)]
        for c in range(n):
            if arrays.parent[c] >= 0 and not arrays.aux[c]:
                self.children[arrays.parent[c]].append(c)
        self.lost = arrays.lost
        self.trainable = arrays.trainable
        self.value, self.coef = np.full(n, math.nan), np.zeros(n)
        self.weight, self.ess = np.zeros(n), np.zeros(n)
        self.V: dict[int, float] = {}
        self.leaves: dict[int, list[float]] = {}

    def credit(self) -> Credit:
        roots = [int(r) for r in self.a.roots]
        for x in range(len(self.a)):
            if self.usable(x) and x not in self.V:
                self.up(x)
        for r in roots:
            if self.usable(r):
                self.weight[r] = 1.0
                self.down(r, self.root_d(r, roots))
        return Credit(value=self.value, coef=self.coef, weight=self.weight, ess=self.ess)

    def usable(self, x: int) -> bool:
        if self.lost[x] or self.a.aux[x]:
            return False
        if not self.a.kept[x] or not self.children[x]:
            return True
        return any(self.usable(c) for c in self.children[x])

    def drawn(self, p: int) -> list[int]:
        return [c for c in self.children[p] if self.usable(c)]

    def share(self, c: int) -> float:
        siblings = self.drawn(int(self.a.parent[c]))
        even = self.a.mult[c] / sum(int(self.a.mult[s]) for s in siblings)
        given = float(self.a.share[c]) / sum(float(self.a.share[s]) for s in siblings)
        return float(even if abs(given - even) < 1e-6 else given)

    def rho(self, c: int) -> float:
        return float(np.nan_to_num(self.a.importance[c], nan=1.0))

    def reward(self, c: int) -> float:
        return float(np.nan_to_num(self.a.reward[c]))

    def up(self, p: int) -> float:
        """V of p, and on the way the relative weights of the finished leaves below it."""
        kids = self.drawn(p)
        self.leaves[p] = [] if kids else [1.0]
        self.V[p] = 0.0
        for c in kids:
            self.up(c)
            mu, q, kappa = self.share(c) * self.rho(c), float(self.a.keep_prob[c]), float(self.a.kept[c])
            self.V[p] += mu * self.U(c)
            self.leaves[p] += [mu * kappa / q * w for w in self.leaves[c]]
        if self.a.kept[p]:
            self.value[p] = self.V[p]
            squares = sum(w * w for w in self.leaves[p])
            self.ess[p] = sum(self.leaves[p]) ** 2 / squares if squares else 0.0
        return self.V[p]

    def U(self, c: int) -> float:
        h, q, kappa = float(self.a.control[c]), float(self.a.keep_prob[c]), float(self.a.kept[c])
        return h + kappa * (self.reward(c) + self.V[c] - h) / q

    def down(self, p: int, d_p: float) -> None:
        for c in self.drawn(p):
            m, mu, U = int(self.a.mult[c]), self.share(c), self.U(c)
            K = m / mu if mu else math.inf
            b = self.rest(p, K - 1, mu / m, c, d_p)
            d = self.rest(p, K - m, mu, c, d_p)
            edge = self.weight[p] * mu * self.rho(c)
            if self.trainable[c] and edge > 0:
                self.coef[c] = edge**self.power * (U - b)
            self.weight[c] = edge * float(self.a.kept[c]) / float(self.a.keep_prob[c])
            self.down(c, d - self.reward(c))

    def rest(self, p: int, others: float, mu: float, c: int, d_p: float) -> float:
        """λ·(mean of the draws other than a share μ of c) + (1 − λ)·d_p."""
        if 1 - mu <= 1e-9:
            return d_p
        lam = others / (others + self.tau) if math.isfinite(others) else 1.0
        total, own = sum(self.share(s) * self.rho(s) for s in self.drawn(p)), mu * self.rho(c)
        return lam * (self.V[p] - own * self.U(c)) / (total - own) + (1 - lam) * d_p

    def root_d(self, r: int, roots: list[int]) -> float:
        known = [x for x in roots if x != r and self.usable(x)]
        same = [x for x in known if self.a.group[x] == self.a.group[r]]
        if same:
            return sum(self.V[x] for x in same) / len(same)
        if self.root_baseline is not None:
            return self.root_baseline
        return sum(self.V[x] for x in known) / len(known) if known else 0.0
