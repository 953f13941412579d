"""Columns of many trees as numpy arrays, for the estimators: no text, token or observation is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, select

from treewright.search.store.models import ARRAY_COLUMNS, expansions, nodes
from treewright.search.store.reading import end_of, key_of
from treewright.search.types import NodeStatus

__all__ = ["STATUSES", "load_arrays", "load_scores"]

STATUSES = tuple(NodeStatus)
"""`status` in the arrays is an index into this."""

DRAFT = NodeStatus.DRAFT.value
CODE = {status.value: code for code, status in enumerate(STATUSES)}
COLUMNS = ("id", "parent", *ARRAY_COLUMNS)  # all of them stand in the index nodes_by_parent
POP_COLUMNS = ("node", "closing", "drawn", "first", "drafts", "fault", "status", "reward")
DTYPES = {
    "tree": np.int32,
    "node": np.int32,
    "parent": np.int32,
    "born": np.int32,
    "mult": np.int32,
    "drawn": np.int32,
    "share": np.float64,
    "keep_prob": np.float64,
    "reward": np.float32,
    "status": np.int8,
    "n_tokens": np.int32,
}


def load_arrays(connection: Connection, tree_ids: Sequence[str]) -> dict[str, NDArray[Any]]:
    """[N] arrays over the nodes of the trees, in the order given, each tree in order of creation.

    tree int32      index into `tree_ids`
    node, parent    int32, ids within their tree; parent is -1 at a root
    born int32      seq of the expansion that drew the node; -1 at a root
    mult int32      token-identical draws it stands for
    drawn int32     K, draws made at it; 0 if it was never expanded
    share float64   share of its parent's mass
    keep_prob float64   probability with which it was kept
    reward float32  truth of the transition into it; NaN where unknown or not executed
    status int8     index into STATUSES
    n_tokens int32  tokens of the response

    Raises StoreError for an id that is not in the store.
    """
    parts = [_one(connection, index, key_of(connection, name)) for index, name in enumerate(tree_ids)]
    return {
        name: np.concatenate([part[name] for part in parts]) if parts else np.empty(0, dtype)
        for name, dtype in DTYPES.items()
    }


def load_scores(connection: Connection, tree_ids: Sequence[str]) -> NDArray[np.float64]:
    """[N] the evaluator's estimates of the nodes that `load_arrays` gives; NaN where there is none."""
    query = select(nodes.c.score).order_by(nodes.c.id)
    parts = [
        np.array(connection.execute(query.where(nodes.c.tree == key_of(connection, name))).scalars().all(), np.float64)
        for name in tree_ids
    ]
    return np.concatenate(parts) if parts else np.empty(0)


def _one(connection: Connection, index: int, key: int) -> dict[str, NDArray[Any]]:
    cursor = connection.connection.cursor()  # the driver's own: a million rows in a third of the time
    cursor.execute(f"SELECT {', '.join(COLUMNS)} FROM nodes WHERE tree = {key:d}")
    rows = sorted(cursor.fetchall())
    ids, parent, seq, mult, share, reward, status, size = zip(*rows, strict=True)
    out: dict[str, NDArray[Any]] = {
        "tree": np.full(len(rows), index, np.int32),
        "node": np.array(ids, np.int32),
        "parent": np.array([-1, *parent[1:]], np.int32),
        "born": np.array(seq, np.int32),
        "mult": np.array(mult, np.int32),
        "drawn": np.zeros(len(rows), np.int32),
        "share": np.array(share, np.float64),
        "keep_prob": np.ones(len(rows)),
        "reward": np.array(reward, np.float32),
        "status": np.array([CODE[s or DRAFT] for s in status], np.int8),
        "n_tokens": np.array(size, np.int32),
    }
    out["reward"][out["status"] == CODE[DRAFT]] = np.nan
    born = out["status"].copy()
    _replay(connection, key, out)
    _supersede(connection, key, out, born)
    for node, _, final, keep_prob, _ in json.loads(end_of(connection, key).final or "[]"):
        out["status"][node], out["keep_prob"][node] = CODE[final], keep_prob
    return out


def _replay(connection: Connection, key: int, out: dict[str, NDArray[Any]]) -> None:
    """What expansions did to nodes that were there before, in the order of Tree.apply."""
    status, drawn, reward, parent = out["status"], out["drawn"], out["reward"], out["parent"]
    expanded = CODE[NodeStatus.EXPANDED.value]
    cursor = connection.connection.cursor()
    cursor.execute(f"SELECT {', '.join(POP_COLUMNS)} FROM {expansions.name} WHERE tree = {key:d} ORDER BY seq")
    for node, closing, draws, first, drafts, fault, seen, truth in cursor.fetchall():
        if seen is not None and seen != DRAFT:
            status[node], reward[node] = CODE[seen], np.nan if truth is None else truth
        before = drawn[node]
        if closing:
            for above in parent[first : first + drafts]:
                if drawn[above] == 0:
                    drawn[above], status[above] = 1, expanded
        if draws:
            drawn[node], status[node] = before + draws, expanded
            if before:  # later draws share the mass of the first ones
                own = parent == node
                out["share"][own] = out["mult"][own] / drawn[node]
        if fault is not None:
            status[first + drafts - 1 if drafts else node] = CODE[NodeStatus.FAULT.value]


def _supersede(connection: Connection, key: int, out: dict[str, NDArray[Any]], born: NDArray[Any]) -> None:
    """Where a draft took the slot of an older one after a divergence, that one and all below it are lost.

    Such trees are rare: their statuses, at birth `born`, go through the steps of Tree.apply once more, node by node.
    """
    above, seq = out["parent"][1:], out["born"][1:]
    first_seq = np.full(len(born), np.iinfo(np.int32).max, np.int32)
    np.minimum.at(first_seq, above, seq)
    if (first_seq[above] == seq).all():  # all children of a node came at once: none took another one's slot
        return
    cursor = connection.connection.cursor()
    cursor.execute(f"SELECT slot FROM nodes WHERE tree = {key:d} ORDER BY id")
    slot, parent, status = [row[0] for row in cursor.fetchall()], out["parent"].tolist(), born.tolist()
    lost_code, expanded = CODE[NodeStatus.UNREACHABLE.value], CODE[NodeStatus.EXPANDED.value]
    children: list[list[int]] = [[] for _ in slot]
    drawn = [0] * len(slot)

    def lose(node: int) -> None:
        below = [node]
        while below:
            at = below.pop()
            status[at] = lost_code
            below += children[at]

    cursor.execute(f"SELECT {', '.join(POP_COLUMNS)} FROM {expansions.name} WHERE tree = {key:d} ORDER BY seq")
    for node, closing, draws, first, drafts, fault, seen, _ in cursor.fetchall():
        lost = status[node] == lost_code
        if seen is not None and seen != DRAFT:
            status[node] = CODE[seen]
        before = drawn[node]
        for new in range(first, first + drafts):
            above = parent[new]
            if drawn[above]:
                for older in children[above]:
                    if slot[older] == slot[new]:
                        lose(older)
            children[above].append(new)
            if closing and not drawn[above]:
                drawn[above], status[above] = 1, expanded
        if draws:
            drawn[node], status[node] = before + draws, expanded
        if fault is not None:
            status[first + drafts - 1 if drafts else node] = CODE[NodeStatus.FAULT.value]
        if lost:
            lose(node)
    out["status"][:] = status
