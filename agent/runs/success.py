"""How often trees succeed, by suite."""

from __future__ import annotations

from collections.abc import Sequence

from treewright.search.tree import Tree

__all__ = ["success_by_suite"]


def success_by_suite(trees: Sequence[Tree]) -> dict[str, float]:
    """Mean value of the roots: what a sampled rollout would get, estimated with every tree's own weights; NaN for a
    suite whose trees all ended by faults."""
    from treewright.training.credit import estimate
    from treewright.training.credit.trees import tree_arrays

    out: dict[str, float] = {}
    for name in dict.fromkeys(t.task.suite for t in trees):
        arrays = tree_arrays([t for t in trees if t.task.suite == name])
        values = estimate("split_loo", arrays, allow_biased=True).value[arrays.roots]
        known = values[values == values]
        out[name] = float(known.mean()) if len(known) else float("nan")
    return out
