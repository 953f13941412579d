"""Columns of many trees as numpy arrays, for the estimators: no text, token or observation is read.

What pops did to nodes that were there before is the work of `Growing`, as in a Tree.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, select

from treewright.envs.types import digest
from treewright.search.growing import Growing
from treewright.search.schema import DRAWN, EXECUTED, LATE, NUMBERS, FieldKind, NodeField
from treewright.search.store.errors import StoreError
from treewright.search.store.models import expansions, nodes, trees
from treewright.search.store.reading import key_of
from treewright.search.store.scanning import Scanned, scan
from treewright.search.store.values import unescape, unreal
from treewright.search.types import NodeStatus, Origin

__all__ = [
    "STATUSES",
    "StoredArrays",
    "array_of",
    "load_arrays",
    "load_more",
    "load_reasons",
    "load_scores",
    "state_key",
]

STATUSES: Final = tuple(NodeStatus)
"""`status` in the arrays is an index into this."""

DRAFT, EXPANDED, LOST = (STATUSES.index(s) for s in (NodeStatus.DRAFT, NodeStatus.EXPANDED, NodeStatus.UNREACHABLE))
CODES: Final = {None: DRAFT} | {status.value: code for code, status in enumerate(STATUSES)}
INDEXED: Final = ("coalesce(parent, -1)", "born", "mult", "n_tokens")  # with share, reward, status: in the index
POPS: Final = (
    "node", "drawn", "first", "drafts",
    "CASE WHEN closing THEN 1 ELSE 0 END", "CASE WHEN fault IS NULL THEN 0 ELSE 1 END",
)  # fmt: skip
IDS_PER_QUERY = 500
DTYPES: Final[dict[FieldKind, Any]] = {
    FieldKind.INT: np.int32,
    FieldKind.WIDE: np.int64,
    FieldKind.REAL: np.float64,
    FieldKind.BOOL: np.bool_,
    FieldKind.NAME: np.int8,
}
FIRST: Final = {
    "tree": np.int32, "node": np.int32, "parent": np.int32, "born": np.int32, "mult": np.int32, "drawn": np.int32,
    "share": np.float64, "reward": np.float32, "n_tokens": np.int32,
} | {f.tree: DTYPES[f.kind] for f in LATE}  # fmt: skip
LATER: Final = tuple(f for f in NUMBERS if f.tree not in FIRST)
"""Numbers that are read from the nodes' own rows."""
EXECUTED_LATER: Final = {f.tree: f for f in EXECUTED if f in LATER}


class StoredArrays(Mapping[str, NDArray[Any]]):
    """[N] arrays by name over the nodes of T trees; what follows `n_tokens` below is read when it is first asked for.

    tree int32      index into `tree_ids`
    node, parent    int32, ids within their tree; parent is -1 at a root
    born int32      seq of the expansion that drew the node; -1 at a root
    mult int32      token-identical draws it stands for
    drawn int32     K, draws made at it; 0 if it was never expanded
    share float64   share of its parent's mass
    reward float32  truth of the transition into it; NaN where unknown or not executed
    kind int8       index into NodeKind;  status int8: into STATUSES
    keep_prob float64   probability with which it was kept;  kept bool: whether it was
    n_tokens int32  tokens of the response
    group int32     equal for trees of one task that begin with the same given turns
    call_ok bool    the action was a valid call
    state_key int64 equal for equal fingerprints, -1 without one
    every other number, flag and enumeration of the node schema, by the name of its column in a Tree: score, seed,
    temperature, hidden, money, steps, effect, origin (int8, an index into its enumeration), trainable, …

    reasons         why each tree is inexact, as far as it was recorded; a tree that is not done has that as its reason
    """

    def __init__(
        self, first: dict[str, NDArray[Any]], reasons: tuple[tuple[str, ...], ...], more: Callable[[], dict[str, Any]]
    ) -> None:
        self.reasons = reasons
        self._first, self._read = first, more

    @cached_property
    def _more(self) -> dict[str, NDArray[Any]]:
        return self._read()

    def __getitem__(self, name: str) -> NDArray[Any]:
        found = self._first.get(name)
        return found if found is not None else self._more[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*self._first, *MORE))

    def __len__(self) -> int:
        return len(self._first) + len(MORE)


MORE: Final = ("group", "call_ok", "state_key", *(f.tree for f in LATER))


def load_arrays(connection: Connection, tree_ids: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays of `StoredArrays` up to `n_tokens`, trees in the order given, each in order of creation.

    Raises StoreError for an id that is not in the store.
    """
    parts = [_one(connection, index, end) for index, end in enumerate(_ends(connection, tree_ids))]
    return {
        name: np.concatenate([part[name] for part in parts]) if parts else np.empty(0, dtype)
        for name, dtype in FIRST.items()
    }


def load_reasons(connection: Connection, tree_ids: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Per tree why it is inexact."""
    out = []
    for end in _ends(connection, tree_ids):
        known = tuple(json.loads(unescape(end.reasons))) if end.reasons else ()
        out.append(known if end.status == "done" else (*known, "the tree is not finished"))
    return tuple(out)


def _ends(connection: Connection, tree_ids: Sequence[str]) -> list[Any]:
    """Key, status, reasons and late statuses of trees. Raises StoreError for an id that is not in the store."""
    columns, found = (trees.c.id, trees.c.key, trees.c.status, trees.c.reasons, trees.c.final), dict[str, Any]()
    for first in range(0, len(tree_ids), IDS_PER_QUERY):
        some = tree_ids[first : first + IDS_PER_QUERY]
        found |= {row.id: row for row in connection.execute(select(*columns).where(trees.c.id.in_(some)))}
    for name in tree_ids:
        if name not in found:
            key_of(connection, name)
    return [found[name] for name in tree_ids]


def load_scores(connection: Connection, tree_ids: Sequence[str]) -> NDArray[np.float64]:
    """[N] the evaluator's estimates of the nodes that `load_arrays` gives; NaN where there is none."""
    query = select(nodes.c.score).order_by(nodes.c.id)
    parts = [
        np.array(connection.execute(query.where(nodes.c.tree == key_of(connection, name))).scalars().all(), np.float64)
        for name in tree_ids
    ]
    return np.concatenate(parts) if parts else np.empty(0)


@dataclass(frozen=True, slots=True)
class _Grown:
    """What pops change: [N] arrays over the nodes of a tree; `status` holds indexes into STATUSES."""

    drawn: NDArray[np.int32]
    share: NDArray[np.float64]
    reward: NDArray[np.float64]
    status: NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class _Pops:
    """[E] arrays over the pops of a tree. `status` is what executing gave, DRAFT where nothing was executed."""

    node: NDArray[np.int64]
    drawn: NDArray[np.int64]
    first: NDArray[np.int64]
    drafts: NDArray[np.int64]
    closing: NDArray[np.bool_]
    fault: NDArray[np.bool_]
    status: NDArray[np.int8]
    reward: NDArray[np.float64]

    @classmethod
    def read(cls, connection: Connection, key: int) -> _Pops:
        numbers, (status, reward) = scan(connection, expansions, key, "seq", POPS, ("status", "reward"))
        _, node, drawn, first, drafts, closing, fault = numbers
        return cls(node, drawn, first, drafts, closing != 0, fault != 0, _statuses(status), _reals(reward))

    def once(self) -> bool:
        """Whether every node was popped once, and no pop reaches further than its node and its drafts."""
        if self.closing.any() or self.fault.any() or (self.status == LOST).any():
            return False
        return not len(self.node) or int(np.bincount(self.node).max()) == 1


def grow_at_once(pops: _Pops, born: _Grown) -> _Grown:
    """Every pop, in any order, where `once` holds and no node was born UNREACHABLE."""
    drawn, reward, status = born.drawn.copy(), born.reward.copy(), born.status.copy()
    seen = pops.status != DRAFT
    status[pops.node[seen]], reward[pops.node[seen]] = pops.status[seen], pops.reward[seen]
    drawn[pops.node] = pops.drawn
    status[pops.node[pops.drawn > 0]] = EXPANDED
    return _Grown(drawn, born.share, reward, status)


def grow_in_order(
    connection: Connection, key: int, parent: NDArray[Any], mult: NDArray[Any], pops: _Pops, born: _Grown
) -> _Grown:
    """Every pop, one after the other."""
    tree = _Stored(connection, key, parent, mult, born)
    tree.grow(pops)
    status = np.array([CODES[s] for s in tree.status], np.int8)
    return _Grown(np.array(tree.drawn, np.int32), np.array(tree.share), np.array(tree.reward), status)


class _Stored(Growing):
    """The columns of a stored tree that pops change. Slots and children are read where a pop asks for them."""

    def __init__(
        self, connection: Connection, key: int, parent: NDArray[Any], mult: NDArray[Any], born: _Grown
    ) -> None:
        self._connection, self._key = connection, key
        self.parent, self.mult = parent.tolist(), mult.tolist()
        self.share, self.reward = born.share.tolist(), born.reward.tolist()
        self.status = [STATUSES[code] for code in born.status.tolist()]
        self.drawn = born.drawn.tolist()

    @cached_property
    def _slot(self) -> list[int]:
        return [row[0] for row in _rows(self._connection, "slot", nodes.name, self._key, "id")]

    @cached_property
    def _children(self) -> list[list[int]]:
        out: list[list[int]] = [[] for _ in self.parent]
        for node, above in enumerate(self.parent):
            if node:
                out[above].append(node)
        return out

    def _slots(self) -> list[int]:
        return self._slot

    def _below(self) -> list[list[int]]:
        return self._children

    def grow(self, pops: _Pops) -> None:
        """Every pop, in order."""
        columns = (pops.node, pops.closing, pops.drawn, pops.first, pops.drafts, pops.status, pops.fault, pops.reward)
        for node, closing, draws, first, drafts, code, fault, truth in zip(*(c.tolist() for c in columns), strict=True):
            if code != DRAFT:
                self.reward[node] = truth
            self._pop(node, closing, draws, first, drafts, STATUSES[code] if code != DRAFT else None, fault)


def _rows(connection: Connection, columns: str, table: str, key: int, order: str) -> Iterator[tuple[Any, ...]]:
    cursor = connection.connection.cursor()  # the driver's own: a million rows in a third of the time
    cursor.execute(f"SELECT {columns} FROM {table} WHERE tree = {key:d} ORDER BY {order}")
    return iter(cursor.fetchall())


def _one(connection: Connection, index: int, end: Any) -> dict[str, NDArray[Any]]:
    numbers, others = scan(connection, nodes, end.key, "id", INDEXED, ("share", "reward", "status"))
    (node, parent, origin, mult, n_tokens), (share, reward, status) = numbers, others
    size, codes, pops = len(node), _statuses(status), _Pops.read(connection, end.key)
    if (node != np.arange(size)).any():
        raise StoreError(f"tree {end.id}: nodes of it are missing; restore the store from a copy")
    truth = np.where(codes == DRAFT, np.nan, _reals(reward))
    born = _Grown(np.zeros(size, np.int32), _reals(share), truth, codes)
    if pops.once() and not (codes == LOST).any():
        grown = grow_at_once(pops, born)
    else:
        grown = grow_in_order(connection, end.key, parent, mult, pops, born)
    given = {"tree": np.full(size, index), "node": node, "parent": parent, "born": origin, "mult": mult}
    given |= {"drawn": grown.drawn, "share": grown.share, "reward": grown.reward, "n_tokens": n_tokens}
    late = {f.tree: array_of(f, [f.default]).repeat(size) for f in LATE} | {"status": grown.status}
    for changed, *values in json.loads(end.final or "[]"):
        for f, value in zip(LATE, values, strict=False):
            late[f.tree][changed] = array_of(f, [value])[0]
    return late | {name: column.astype(FIRST[name], copy=False) for name, column in given.items()}


def _reals(column: Scanned) -> NDArray[np.float64]:
    """[N] numbers, NaN for NULL."""
    codes, values = column
    return np.array(values, np.float64)[codes]


def _statuses(column: Scanned) -> NDArray[np.int8]:
    """[N] indexes into STATUSES, DRAFT for NULL."""
    codes, values = column
    return np.array([CODES[value] for value in values], np.int8)[codes]


# -- what is read on demand -------------------------------------------------------------------------------------------


def load_more(connection: Connection, tree_ids: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays MORE of `StoredArrays`, from the rows of the nodes themselves."""
    tasks: dict[tuple[Any, ...], int] = {}
    parts: list[dict[str, NDArray[Any]]] = []
    for name in tree_ids:
        key = key_of(connection, name)
        columns = _drawn_and_executed(connection, key)
        task = connection.execute(select(trees.c.suite, trees.c.task_id).where(trees.c.key == key)).one()
        begins = (*task, *_given(connection, key, columns))
        group = tasks.setdefault(begins, len(tasks))
        keys: dict[str | None, int] = {}
        for seen in columns["fingerprint"]:
            if seen not in keys:
                keys[seen] = state_key(unescape(seen) if seen else "")
        part = {f.tree: array_of(f, columns[f.tree]) for f in LATER}
        part["group"] = np.full(len(columns["error"]), group, np.int32)
        part["call_ok"] = np.array([error is None for error in columns["error"]], np.bool_)
        part["state_key"] = np.array([keys[seen] for seen in columns["fingerprint"]], np.int64)
        parts.append(part)
    empty = {f.tree: array_of(f, []) for f in LATER}
    empty |= {"group": np.empty(0, np.int32), "call_ok": np.empty(0, np.bool_), "state_key": np.empty(0, np.int64)}
    return {name: np.concatenate([empty[name], *(part[name] for part in parts)]) for name in MORE}


def _drawn_and_executed(connection: Connection, key: int) -> dict[str, list[Any]]:
    """[N] each: the fields LATER, error, fingerprint and parent, as rows of nodes and then pops left them."""
    drawn = [f for f in DRAWN if f in LATER or f.tree in (*EXECUTED_LATER, "error")]
    names = [f.column for f in drawn]
    later = [EXECUTED_LATER[name] for name in EXECUTED_LATER]
    seen = ["status", "fingerprint", "outcome_error", *(f.column for f in later)]
    out: dict[str, list[Any]] = {f.tree: [] for f in (*drawn, *later)} | {"fingerprint": [], "parent": []}
    query = ", ".join(["id", "parent", *names, *seen])
    for node, parent, *values in _rows(connection, query, nodes.name, key, "id"):
        out["parent"].append(parent)
        out["fingerprint"].append(None)
        for f in later:
            out[f.tree].append(f.empty)
        for f, value in zip(drawn, values, strict=False):
            if f.tree in EXECUTED_LATER:
                out[f.tree][node] = value
            else:
                out[f.tree].append(value)
        _execute(out, node, later, *values[len(drawn) :])
    for node, *values in _rows(connection, ", ".join(["node", *seen]), expansions.name, key, "seq"):
        _execute(out, node, later, *values)
    return out


def _execute(
    out: dict[str, list[Any]],
    node: int,
    later: Sequence[NodeField],
    status: str | None,
    seen: str | None,
    error: str | None,
    *values: Any,
) -> None:
    """As `Columns` records an outcome; of a draft that waits for a commit only the effect is known."""
    if status is None:
        return
    for f, value in zip(later, values, strict=True):
        if status != NodeStatus.DRAFT or f.tree == "effect":
            out[f.tree][node] = value
    if status != NodeStatus.DRAFT:
        out["fingerprint"][node] = seen
        if error is not None:
            out["error"][node] = error


def _given(connection: Connection, key: int, columns: Mapping[str, list[Any]]) -> list[bytes]:
    """Token ids of the turns, from the root on, that the tree's policy did not draw."""
    children: dict[int, list[int]] = {}
    for node, above in enumerate(columns["parent"]):
        if above is not None:
            children.setdefault(above, []).append(node)
    node, length = 0, 0
    while len(below := children.get(node, [])) == 1 and columns["origin"][below[0]] != Origin.POLICY:
        node, length = below[0], length + 1
    query = select(nodes.c.ids).where(nodes.c.tree == key, nodes.c.id.between(1, length)).order_by(nodes.c.id)
    return list(connection.execute(query).scalars()) if length else []


def array_of(f: NodeField, values: Sequence[Any]) -> NDArray[Any]:
    """A column of the schema as an array: enumerations by the index of their members or of these members' texts."""
    if f.kind is FieldKind.NAME:
        codes = {member: code for code, member in enumerate(f.type)}
        values = [codes[value] for value in values]
    elif f.kind is FieldKind.REAL:
        values = [unreal(value) for value in values]
    return np.array(values, DTYPES[f.kind])


def state_key(fingerprint: str) -> int:
    """A number for a state, equal for equal fingerprints; -1 for none."""
    return int(digest(fingerprint)[:15], 16) if fingerprint else -1
