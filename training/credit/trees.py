"""From search trees, in memory or in a store, to the arrays every estimator works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from treewright.search.rooted import prefix_ids, prefix_length
from treewright.search.schema import LATE, NUMBERS
from treewright.search.store.arrays import STATUSES, StoredArrays, array_of, state_key
from treewright.search.tree import Tree
from treewright.search.types import NodeStatus
from treewright.training.credit.arrays import MalformedTree, NodeKind, TreeArrays
from treewright.training.manifest import BEGUN

__all__ = ["arrays_of", "origin_of", "tree_arrays"]


def _codes(*statuses: NodeStatus) -> list[int]:
    return [STATUSES.index(status) for status in statuses]


TERMINAL: Final = _codes(NodeStatus.TERMINAL, NodeStatus.COMMITTED)
TRUNCATED: Final = _codes(NodeStatus.TRUNCATED)
MASKED: Final = _codes(NodeStatus.FAULT, NodeStatus.UNREACHABLE, NodeStatus.IN_DOUBT)
UNEXECUTED: Final = _codes(NodeStatus.DRAFT, NodeStatus.PRUNED)
OWN: Final = ("mult", "share", "origin")  # of NUMBERS: they have an array of their own


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


def origin_of(tree: Tree) -> str:
    """What a root baseline is kept by: the suite, and apart from it the suite's trees that begin at stored nodes."""
    return tree.task.suite + (BEGUN if prefix_length(tree) else "")


def arrays_of(columns: StoredArrays | Mapping[str, NDArray[Any]]) -> TreeArrays:
    """One batch out of what `store.arrays(tree_ids)` gives: what `tree_arrays` makes of the same trees, loaded.

    Raises MalformedTree for columns that are none of a store.
    """
    missing = [name for name in ("tree", "parent", "status", "group", "call_ok") if name not in columns]
    if missing:
        raise MalformedTree(f"these columns have no {missing[0]!r}; give what store.arrays(tree_ids) returns")
    tree = columns["tree"]
    start = np.searchsorted(tree, np.arange(int(tree.max(initial=-1)) + 1))
    parent = np.where(columns["parent"] >= 0, columns["parent"] + start[tree], -1) if len(tree) else columns["parent"]
    reasons = columns.reasons if isinstance(columns, StoredArrays) else ((),) * len(start)
    return _batch(columns, tree, parent, reasons)


def _one(tree: Tree, group: int) -> TreeArrays:
    columns = {f.tree: array_of(f, getattr(tree, f.tree)) for f in (*LATE, *NUMBERS)}
    seen = [o.fingerprint if o is not None else "" for o in tree.observation]
    columns |= {
        "drawn": np.asarray(tree.drawn),
        "reward": tree.rewards(),
        "group": np.full(len(tree), group),
        "call_ok": np.asarray([e is None for e in tree.error]),
        "n_tokens": np.asarray([len(ids) for ids in tree.ids]),
        "state_key": np.asarray([state_key(text) for text in seen]),
    }
    return _batch(columns, np.zeros(len(tree), np.int32), np.asarray(tree.parent), (tuple(tree.reasons),))


def _batch(
    columns: Mapping[str, NDArray[Any]], tree: NDArray[Any], parent: NDArray[Any], reasons: tuple[tuple[str, ...], ...]
) -> TreeArrays:
    status = columns["status"]
    n = len(status)
    warm = (columns["temperature"] != 1) & columns["trainable"].astype(np.bool_)
    return TreeArrays(
        tree=tree.astype(np.int32),
        group=columns["group"].astype(np.int32),
        parent=parent.astype(np.int32),
        k=columns["drawn"].astype(np.int32),
        mult=columns["mult"].astype(np.int32),
        share=columns["share"].astype(np.float32),
        keep_prob=columns["keep_prob"].astype(np.float32),
        kept=columns["kept"].astype(np.bool_),
        control=np.zeros(n, np.float32),
        reward=columns["reward"].astype(np.float32),
        terminal=np.isin(status, TERMINAL),
        truncated=np.isin(status, TRUNCATED),
        executed=~np.isin(status, UNEXECUTED),
        fault=np.isin(status, MASKED),
        aux=np.zeros(n, np.bool_),
        state_key=columns["state_key"].astype(np.int64),
        call_ok=columns["call_ok"].astype(np.bool_) & (columns["kind"] != NodeKind.SEGMENT),
        n_tokens=columns["n_tokens"].astype(np.int32),
        importance=np.where(warm, np.nan, 1.0),
        origin=columns["origin"].astype(np.int8),
        kind=columns["kind"].astype(np.int8),
        reasons=reasons,
        more={f.tree: columns[f.tree] for f in NUMBERS if f.tree not in OWN},
    )
