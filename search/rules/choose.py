"""Choosing what to do from what the search itself knows; truth is still sealed here."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence

from treewright.envs.types import Effect
from treewright.search.tree import Tree
from treewright.search.types import NodeStatus

__all__ = ["choose_by_mass", "choose_by_score", "content_keys", "ends"]


def _fold(value: object) -> object:
    if isinstance(value, str):
        return " ".join(value.casefold().split())
    if isinstance(value, dict):
        return {k: _fold(v) for k, v in sorted(value.items())}
    if isinstance(value, list):
        return [_fold(v) for v in value]
    return value


def content_keys(tree: Tree, nodes: Sequence[int]) -> list[str]:
    """What each of these leaves amounts to: its last action up to case and spaces, and, where the path changed the
    world, the state it left behind. Leaves with equal keys give the same answer and pool their weight."""
    said: dict[int, str] = {}  # by identity of the action, which the tree keeps alive
    changed = [False]
    for node in range(1, max(nodes, default=0)):  # a parent comes before its children
        mine = tree.effect[node] is not Effect.READ and tree.error[node] is None
        changed.append(mine or changed[tree.parent[node]])
    keys = []
    for node in nodes:
        action, above = tree.action[node], tree.parent[node]
        if action is None:
            text = tree.text[node]
        elif (known := said.get(id(action))) is not None:
            text = known
        else:
            text = said[id(action)] = json.dumps([_fold(call.to_json()) for call in action.calls])
        seen = (tree.observation[node] or tree.observation[above]) if changed[above] else None
        keys.append(f"{text}\n{seen.fingerprint if seen else ''}")
    return keys


def ends(tree: Tree) -> list[int]:
    """The leaves to choose from: those the world ended and those that wait for commit; without any, the cut ones."""
    leaves = tree.leaves()
    return [i for i in leaves if tree.status[i] is NodeStatus.TERMINAL] + tree.waiting() or leaves


def choose_by_score(tree: Tree) -> int | None:
    """The leaf of the highest score, then of the highest mass, then the first; None if there is no leaf at all.

    For rules that act: how often a draw was made says little where many draws are made at every node.
    """
    return max(ends(tree), key=lambda i: (_score(tree, i), tree.mass[i], -i), default=None)


def choose_by_mass(tree: Tree) -> int | None:
    """The leaf to go for: answers are pooled by content, each leaf counts its mass times its score.

    Episodes that the world ended take part, and irreversible actions of a live world that wait for commit, valued
    unexecuted; only if there are neither, those that the horizon cut. Within the winning answer the leaf of the
    highest score, then the lowest id, is chosen. None if there is no leaf at all.
    """
    found = ends(tree)
    if not found:
        return None
    pooled: dict[str, float] = defaultdict(float)
    keys = dict(zip(found, content_keys(tree, found), strict=True))
    for i in found:
        pooled[keys[i]] += tree.mass[i] * _score(tree, i)
    return max(found, key=lambda i: (pooled[keys[i]], _score(tree, i), -i))


def _score(tree: Tree, node: int) -> float:
    score = tree.score[node]
    return 1.0 if math.isnan(score) else score
