"""An estimator of your own: what each step of a tree contributed to its reward.

    python examples/own_estimator.py
    treewright collect --name mine --suites kg --tasks 8
    treewright train --name mine --set train.estimator=own_estimator:above_average --set train.options.scale=0.5

An estimator is a pure function of arrays over the nodes of many trees. `coef` is the factor of ∇ log π of the action
that led into a node; steps that nobody drew get 0.
"""

from __future__ import annotations

import numpy as np

from treewright.training.credit import Credit, TreeArrays, estimate


def above_average(arrays: TreeArrays, *, scale: float = 1.0) -> Credit:
    """Each step gets the mean outcome of the leaves below it, less the mean outcome of its tree."""
    n = len(arrays.parent)
    total = np.where(np.isnan(arrays.reward), 0.0, arrays.reward).astype(float)
    for i in range(n):  # returns go down: a node's is what was earned on the way to it
        if arrays.parent[i] >= 0:
            total[i] += total[arrays.parent[i]]
    has_child = np.zeros(n, bool)
    has_child[arrays.parent[arrays.parent >= 0]] = True
    leaves = np.where(has_child | arrays.fault, 0.0, arrays.mult)
    earned = leaves * total
    for i in range(n - 1, -1, -1):  # sums go up: a parent's index is always smaller
        if arrays.parent[i] >= 0:
            leaves[arrays.parent[i]] += leaves[i]
            earned[arrays.parent[i]] += earned[i]
    value = np.divide(earned, leaves, out=np.zeros(n), where=leaves > 0)
    roots = np.flatnonzero(arrays.parent < 0)
    drawn = (arrays.parent >= 0) & (arrays.origin == 0) & ~arrays.fault & ~arrays.aux & arrays.executed
    coef = np.where(drawn, scale * (value - value[roots][arrays.tree]), 0.0)
    return Credit(coef=coef, value=value, weight=np.ones(n), ess=leaves)


if __name__ == "__main__":
    #     0
    #    ╱ ╲            node 1 stands for two equal draws; 3 and 4 are the ends below node 2
    #   1   2
    #      ╱ ╲
    #     3   4
    tree = TreeArrays.of([-1, 0, 0, 2, 2], mult=[1, 2, 1, 1, 1], reward=[0, 0, 0, 1, 0])
    for name in ("own_estimator:above_average", "split_loo"):
        print(name, np.round(estimate(name, tree).coef, 2))
