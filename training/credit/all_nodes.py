"""Credit of an ALL-node whose value is any function of one outcome per child.

Children i = 1 … n are independent; child i was drawn K_i times, with outcomes T_i(l). What is sought is
E f(T_1, …, T_n), one draw from each child. f of the means is biased unless f is linear in each argument; the mean of f
over all tuples is not. For draw l of child i

    F_i(l) = Σ over tuples of the other children's draws of Π ω · f(…, T_i(l), …)
    V      = Σ_l ω_l F_i(l), the same for every i
    coef   = w ω_l (F_i(l) − b_l),   b_l = mean of F_i over the other draws of child i, shrunk by λ = (K−1)/(K−1+τ)

so each child keeps the node's full weight w. For a product F_i(l) = T_i(l) Π_{j≠i} mean T_j, which is w ∂f/∂V_i.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from treewright.training.credit.arrays import Floats

__all__ = ["JointCredit", "joint_credit"]

MOST_TUPLES = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class JointCredit:
    """value: estimate of E f; joint[i] and coef[i], each [K_i]: F_i and the factor of ∇ log π of that draw."""

    value: float
    joint: tuple[Floats, ...]
    coef: tuple[Floats, ...]


def joint_credit(
    outcomes: Sequence[ArrayLike],
    combine: Callable[[Sequence[float]], float] = math.prod,
    *,
    weight: float = 1.0,
    tau: float = 0.0,
    baseline: float = 0.0,
) -> JointCredit:
    """Credit of every draw below an ALL-node, by all tuples: exact for any `combine`.

    outcomes  for each child [K_i] what its draws gave, i.i.d. and independent of the other children's
    baseline  what is believed of V before these draws; τ shrinks towards it, and single draws have nothing else
    Raises ValueError for a child without draws and for more than a million tuples (then combine a sampled tuple of
    the others for each draw, which is exact too).
    """
    drawn = [np.asarray(o, dtype=np.float64).ravel() for o in outcomes]
    sizes = [len(d) for d in drawn]
    if not drawn or min(sizes) == 0:
        raise ValueError(f"every child needs at least one draw, they have {sizes}")
    if math.prod(sizes) > MOST_TUPLES:
        raise ValueError(f"{math.prod(sizes)} tuples of {sizes} draws are too many; draw fewer or sample the others")
    table = np.array([combine(row) for row in itertools.product(*(d.tolist() for d in drawn))]).reshape(sizes)
    joint = tuple(table.mean(axis=tuple(j for j in range(len(sizes)) if j != i)) for i in range(len(sizes)))
    coef = tuple(weight / len(f) * (f - _others(f, tau, baseline)) for f in joint)
    return JointCredit(float(table.mean()), joint, coef)


def _others(joint: Floats, tau: float, baseline: float) -> Floats:
    """[K] the mean over the other draws, shrunk towards the baseline."""
    n = len(joint) - 1
    if n == 0:
        return np.full(1, baseline)
    lam = n / (n + tau)
    return np.asarray(lam * (joint.sum() - joint) / n + (1 - lam) * baseline)
