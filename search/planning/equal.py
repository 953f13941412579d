"""Equal states of a tree as one: optional, and the tree is then inexact.

    same = equal_states(tree)                                # [N], −1 or the node that stands for this one
    credit = split_loo_graph(tree_arrays([tree]), same_as=same)

Nodes with equal fingerprints are the same state of the world, and one subtree stands for all of them. Credit shares its
value and sums the masses of the edges into it.
"""

from __future__ import annotations

from treewright.search.tree import Tree
from treewright.search.types import NodeStatus

__all__ = ["MERGED", "equal_states"]

MERGED = "equal states are counted as one"


def equal_states(tree: Tree) -> list[int]:
    """For each unexpanded open node the first expanded node with its fingerprint that is not above it, else −1.

    Marks the tree inexact where anything is merged: the policy sees a history too, and states that are equal to the
    world are not equal to it.
    """
    first: dict[str, int] = {}
    for node in range(len(tree)):
        seen = tree.observation[node]
        if tree.status[node] is NodeStatus.EXPANDED and seen is not None and seen.fingerprint and not tree.error[node]:
            first.setdefault(seen.fingerprint, node)
    same = [-1] * len(tree)
    for node in range(len(tree)):
        seen = tree.observation[node]
        if tree.status[node] is NodeStatus.OPEN and seen is not None and not tree.children[node]:
            found = first.get(seen.fingerprint, -1)
            if found >= 0 and found not in tree.path(node):
                same[node] = found
    if any(node >= 0 for node in same):
        tree.inexact(MERGED)
    return same
