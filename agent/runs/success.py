"""How often trees succeed, by suite, and why none of a round can be trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from treewright.agent.runs.evaluate import without_result
from treewright.search.tree import Tree

__all__ = ["success_by_suite", "useless"]


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


def useless(trees: Sequence[Tree]) -> str:
    """Why a round has no tree to train on, and what to do."""
    causes = without_result(trees)
    if causes:
        return "\n".join([*causes, "mend that and type the same line again: they are grown anew"])
    why = Counter(tree.reasons[0] for tree in trees).most_common(1)[0]
    return (
        f"none of the {len(trees)} trees of this iteration is exact, {why[1]} because: {why[0]}; mend that and give "
        "the run another --name, or type --set train.allow_biased=true"
    )
