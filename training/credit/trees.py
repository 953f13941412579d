"""From search trees to the arrays every estimator works on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from treewright.search.rooted import prefix_ids
from treewright.search.tree import Tree
from treewright.search.types import NodeKind as SearchKind
from treewright.search.types import NodeStatus
from treewright.search.types import Origin as SearchOrigin
from treewright.training.credit.arrays import NodeKind, Origin, TreeArrays

__all__ = ["tree_arrays"]

_ORIGIN = {
    SearchOrigin.POLICY: Origin.POLICY,
    SearchOrigin.DEMO: Origin.DEMO,
    SearchOrigin.STORED: Origin.STORED,
    SearchOrigin.INJECTED: Origin.INJECTED,
    SearchOrigin.ENV: Origin.ENV,
}
_KIND = {SearchKind.CHOICE: NodeKind.CHOICE, SearchKind.ALL: NodeKind.ALL, SearchKind.SEGMENT: NodeKind.SEGMENT}
_MASKED = (NodeStatus.FAULT, NodeStatus.UNREACHABLE, NodeStatus.IN_DOUBT)
_UNEXECUTED = (NodeStatus.DRAFT, NodeStatus.PRUNED)


def tree_arrays(trees: Sequence[Tree], by: str = "prefix") -> TreeArrays:
    """One batch of N nodes out of search trees; trees of the same task form a group.

    by  prefix: only those that also begin with exactly the same given turns, since others start elsewhere; task: all

    Node i of tree t stands at offset(t) + i. Raises TreewrightError while a tree's rewards are sealed.
    """
    tasks: dict[tuple[object, ...], int] = {}
    given = [prefix_ids(t) if by == "prefix" else () for t in trees]
    keys = [(t.task.suite, t.task.id, ids) for t, ids in zip(trees, given, strict=True)]
    group = [tasks.setdefault(key, len(tasks)) for key in keys]
    return TreeArrays.concatenate([_one(tree, g) for tree, g in zip(trees, group, strict=True)])


def _one(tree: Tree, group: int) -> TreeArrays:
    n = len(tree)
    status = tree.status
    seen = [o.fingerprint if o is not None else "" for o in tree.observation]
    return TreeArrays(
        tree=np.zeros(n, np.int32),
        group=np.full(n, group, np.int32),
        parent=np.asarray(tree.parent, np.int32),
        k=np.asarray(tree.drawn, np.int32),
        mult=np.asarray(tree.mult, np.int32),
        share=np.asarray(tree.share, np.float32),
        keep=np.asarray(tree.keep_prob, np.float32),
        kept=np.asarray(tree.kept, np.bool_),
        control=np.zeros(n, np.float32),
        reward=tree.rewards(),
        terminal=np.asarray([s in (NodeStatus.TERMINAL, NodeStatus.COMMITTED) for s in status], np.bool_),
        truncated=np.asarray([s is NodeStatus.TRUNCATED for s in status], np.bool_),
        executed=np.asarray([s not in _UNEXECUTED for s in status], np.bool_),
        fault=np.asarray([s in _MASKED for s in status], np.bool_),
        aux=np.zeros(n, np.bool_),
        state_key=np.asarray([int(f[:15], 16) if f else -1 for f in map(_hex, seen)], np.int64),
        call_ok=np.asarray([e is None for e in tree.error], np.bool_),
        n_tokens=np.asarray([len(ids) for ids in tree.ids], np.int32),
        origin=np.asarray([_ORIGIN[o] for o in tree.origin], np.int8),
        kind=np.asarray([_KIND[k] for k in tree.kind], np.int8),
        reasons=(tuple(tree.reasons),),
    )


def _hex(fingerprint: str) -> str:
    """Fingerprints are free text; state keys are numbers."""
    from treewright.envs.types import digest

    return digest(fingerprint) if fingerprint else ""
