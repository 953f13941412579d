"""What to log with every update: whether the weights still mean what they should, and how many samples they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from treewright.training.credit.arrays import Credit, TreeArrays

__all__ = ["CreditStats", "credit_stats", "effective_leaves"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditStats:
    """One update's credit in numbers.

    log_sum_weight     log of the mean over trees of Σ w over finished leaves: 0 in expectation when exact
    ess                (Σ w)² / Σ w² over all finished leaves
    zero_groups        share of groups without any gradient; left out of the compute, never out of the count
    judged_weight      mass per tree on draws whose value is a judge's (killed before they were executed)
    fault_weight       mass per tree on faulted draws
    mean_abs_coef      mean |coef| over nodes that are trained on
    """

    log_sum_weight: float
    ess: float
    zero_groups: float
    judged_weight: float
    fault_weight: float
    mean_abs_coef: float


def credit_stats(arrays: TreeArrays, credit: Credit) -> CreditStats:
    """The numbers of one batch; log_sum_weight is −inf when no leaf finished."""
    inner = arrays.parent >= 0
    up = np.maximum(arrays.parent, 0)
    leaf = (arrays.terminal | arrays.truncated) & (arrays.n_children == 0) & ~arrays.aux
    w = credit.weight[leaf]
    edge = np.where(inner & ~arrays.aux, credit.weight[up] * arrays.share, 0.0)
    total, squares, trees = float(w.sum()), float((w**2).sum()), max(arrays.trees, 1)
    group = np.unique(arrays.group, return_inverse=True)[1]
    size = np.bincount(group, weights=np.abs(credit.coef))
    trained = credit.coef != 0
    return CreditStats(
        log_sum_weight=math.log(total / trees) if total > 0 else -math.inf,
        ess=total**2 / squares if squares else 0.0,
        zero_groups=float(np.mean(size == 0)) if len(size) else 0.0,
        judged_weight=float(edge[~arrays.kept & ~arrays.executed].sum()) / trees,
        fault_weight=float(edge[arrays.fault].sum()) / trees,
        mean_abs_coef=float(np.mean(np.abs(credit.coef[trained]))) if trained.any() else 0.0,
    )


def effective_leaves(leaves: float, trees: float, correlation: float) -> float:
    """n_eff = N / (1 + (N/m − 1) ρ): N leaves of m trees whose outcomes correlate by ρ within a tree."""
    if leaves <= 0 or trees <= 0:
        raise ValueError(f"need leaves and trees > 0, got {leaves} and {trees}")
    return leaves / (1 + (leaves / trees - 1) * correlation)
