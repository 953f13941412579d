"""Credit: from trees to step-wise advantages. NumPy only; every estimator works on the same arrays.

>>> arrays = TreeArrays.of([-1, 0, 0], reward=[0, 1, 0])
>>> estimate("split_loo", arrays, tau=0).coef.tolist()
[0.0, 0.5, -0.5]
"""

from __future__ import annotations

from treewright.training.credit import fitted, forest, published
from treewright.training.credit.arrays import Credit, InexactTree, MalformedTree, NodeKind, Origin, TreeArrays
from treewright.training.credit.reference import split_loo_reference
from treewright.training.credit.registry import ESTIMATORS, UnknownEstimator, estimate, estimator, options_taken
from treewright.training.credit.rows import LeafRows, leaf_rows, weighted_rows
from treewright.training.credit.split_loo import split_loo
from treewright.training.credit.stats import CreditStats, credit_stats, effective_leaves
from treewright.training.credit.trees import arrays_of, tree_arrays

__all__ = [
    "ESTIMATORS",
    "Credit",
    "CreditStats",
    "InexactTree",
    "LeafRows",
    "MalformedTree",
    "NodeKind",
    "Origin",
    "TreeArrays",
    "UnknownEstimator",
    "arrays_of",
    "credit_stats",
    "effective_leaves",
    "estimate",
    "estimator",
    "fitted",
    "forest",
    "leaf_rows",
    "options_taken",
    "published",
    "split_loo",
    "split_loo_reference",
    "tree_arrays",
    "weighted_rows",
]
