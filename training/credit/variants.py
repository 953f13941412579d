"""SPLIT-LOO with one rule broken at a time. Not estimators to use: they show that the bias check can fail."""

from __future__ import annotations

import numpy as np

from treewright.training.credit.arrays import Credit, TreeArrays
from treewright.training.credit.split_loo import split_loo

__all__ = ["duplicates_ignored", "every_node_alike", "mean_with_self", "sibling_std"]


def duplicates_ignored(arrays: TreeArrays) -> Credit:
    """Every distinct draw counts once, however often it was drawn."""
    inner = arrays.parent >= 0
    k = np.bincount(arrays.parent[inner & ~arrays.aux], minlength=len(arrays))
    share = np.where(inner, np.where(arrays.aux, 0.0, 1.0 / np.maximum(k[arrays.parent], 1)), 1.0)
    return split_loo(arrays.with_(mult=np.ones(len(arrays)), k=k, share=share))


def every_node_alike(arrays: TreeArrays) -> Credit:
    """No masses: each node's advantage counts fully."""
    return split_loo(arrays, weight_power=0.0)


def mean_with_self(arrays: TreeArrays) -> Credit:
    """The baseline is the parent's own value, the draw included."""
    return _against_parent(arrays, std=False)


def sibling_std(arrays: TreeArrays) -> Credit:
    """As `mean_with_self`, divided by the standard deviation among the siblings."""
    return _against_parent(arrays, std=True)


def _against_parent(arrays: TreeArrays, *, std: bool) -> Credit:
    credit = split_loo(arrays)
    up = np.maximum(arrays.parent, 0)
    h, kept, q = (x.astype(np.float64) for x in (arrays.control, arrays.kept, arrays.keep_prob))
    drawn = h + kept / q * (arrays.reward + np.nan_to_num(credit.value) - h)
    off = drawn - credit.value[up]
    if std:
        inner = arrays.parent >= 0
        square = np.bincount(up[inner], weights=(arrays.share * off**2)[inner], minlength=len(arrays))
        off = np.divide(off, np.sqrt(square[up]), out=np.zeros_like(off), where=square[up] > 1e-12)
    coef = np.where(arrays.trainable, credit.weight[up] * arrays.share * off, 0.0)
    return Credit(value=credit.value, coef=coef, weight=credit.weight, ess=credit.ess)
