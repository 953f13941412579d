"""Whole trees as columns, written as fast as the database takes them: for imports and for measuring.

    load_trees("runs/trees.db", [(header, Columns(parent=…, text=…, ids=…, sizes=…, logprobs=…, seed=…))])

What is written is what `create`, `append` and `finish` would have written, checksums and redaction included; only the
objects in between are left out. Nobody else may write the store meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import MISSING, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection
from sqlalchemy.exc import DatabaseError

from treewright.envs.types import Effect, Observation
from treewright.search.schema import DRAWN, EXECUTED
from treewright.search.store.codec import NO_OUTCOME, NODE_REST, POP_REST, Encoder, default_of, pop_order, rest_of
from treewright.search.store.database import Database, Shared, database_at
from treewright.search.store.errors import StoreError
from treewright.search.store.models import (
    HEADER_COLUMNS,
    NODE_COLUMNS,
    OUTCOME_COLUMNS,
    SPENT_COLUMNS,
    blobs,
    expansions,
    nodes,
    runs,
    trees,
)
from treewright.search.store.reading import collector_paused
from treewright.search.store.redact import Redactor
from treewright.search.store.summing import Summing
from treewright.search.store.sums import Job
from treewright.search.store.values import Row, compress, real
from treewright.search.tree import TreeHeader
from treewright.search.types import NodeStatus, Spent

__all__ = ["Columns", "load_trees"]

Own = tuple[int, int, int, int, int]

ROWS_PER_TRANSACTION = 50_000
ROWS_PER_CHUNK = 256
NOTHING_SPENT = Encoder(Redactor([])).spent(Spent())
SAME = {
    "closing": False,
    "fault": None,
    **{f"spent_{name}": value for name, value in zip(SPENT_COLUMNS, NOTHING_SPENT, strict=True)},
    **dict(zip(OUTCOME_COLUMNS, NO_OUTCOME, strict=True)),
}
DEFAULTS = {f.column: default_of(f) for f in (*DRAWN, *EXECUTED) if f.default is not MISSING}


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """N nodes below a root in order of creation: node i of the tree is entry i − 1. Siblings stand together.

    parent    [N] int, ids of the parents; non-decreasing
    text      N responses
    sizes     [N] int, tokens of each response; `ids` [sum] int32 and `logprobs` [sum] float32 or empty, one after
              the other
    seed      [N] int64 draw seeds
    mult      [N] int draws a node stands for, or None for 1; its share is mult / draws at its parent
    action    N canonical keys (`Action.key`) or None, or None for no actions
    score     [N] float or None for unknown
    pages     distinct observations; `seen` [N] int indexes them, −1 where a draft was not executed
    reward    [N] float truth, `status` N names such as "open" or "terminal"; where executed; None for 0 and "open"
    """

    parent: NDArray[Any]
    text: Sequence[str]
    sizes: NDArray[Any]
    ids: NDArray[Any]
    logprobs: NDArray[Any]
    seed: NDArray[Any]
    mult: NDArray[Any] | None = None
    action: Sequence[str | None] | None = None
    score: NDArray[Any] | None = None
    pages: Sequence[Observation] = ()
    seen: NDArray[Any] | None = None
    reward: NDArray[Any] | None = None
    status: Sequence[str] | None = None
    spent: Spent = field(default_factory=Spent)

    def __post_init__(self) -> None:
        n, parent = len(self.parent), np.asarray(self.parent)
        lengths = {name: getattr(self, name) for name in ("text", "sizes", "seed", "mult", "action", "score", "seen")}
        for name, value in (lengths | {"reward": self.reward, "status": self.status}).items():
            if value is not None and len(value) != n:
                raise StoreError(f"column {name} has {len(value)} entries, parent has {n}; give one for each node")
        if n and (parent[0] != 0 or (np.diff(parent) < 0).any() or (parent >= np.arange(1, n + 1)).any()):
            raise StoreError("parents must begin at 0, never fall, and be older than their children; sort the nodes so")
        total = int(np.sum(self.sizes))
        if len(self.ids) != total or len(self.logprobs) not in (0, total):
            raise StoreError(f"sizes add up to {total} tokens; ids has {len(self.ids)}, logprobs {len(self.logprobs)}")


def load_trees(
    path_or_url: str | Path, given: Iterable[tuple[TreeHeader, Columns]], redact: Redactor | None = None
) -> int:
    """Adds trees and returns how many rows of nodes were written. Raises StoreError, naming the tree at fault.

    Trees come as `interrupted`: a search can go on from them. A transaction holds about 50,000 rows; after an error
    the transactions before are kept.
    """
    database, redact, total = database_at(path_or_url), redact or Redactor(), 0
    database.own(exclusive=True)
    try:
        with (
            collector_paused(),
            database.loading(),
            database.writer().connect() as connection,
            closing(database.facts(connection)) as facts,
            closing(Summing()) as summing,
        ):
            loader, left = _Loader(database, connection, facts, redact, summing), iter(given)
            while rows := loader.transaction(left):
                total += rows
                summing.hurry()
    except DatabaseError as error:
        raise StoreError(f"cannot write to {database.name}: {error.orig}") from error
    finally:
        database.release()
    return total


@dataclass(frozen=True, slots=True)
class _Loader:
    """Writes trees by one connection while rows are summed up beside it."""

    database: Database
    connection: Connection
    facts: Shared
    redact: Redactor
    summing: Summing

    def transaction(self, left: Iterator[tuple[TreeHeader, Columns]]) -> int:
        """Writes the next trees, about ROWS_PER_TRANSACTION rows of nodes; returns how many, 0 at the end."""
        rows, before = 0, None
        with self.database.transaction(self.connection, durable=False):
            for header, columns in left:
                finish = self.tree(header, columns)
                if before is not None:  # its rows were summed up while the nodes of this one went in
                    before()
                rows, before = rows + 1 + len(columns.parent), finish
                if rows >= ROWS_PER_TRANSACTION:
                    break
            if before is not None:
                before()
        return rows

    def tree(self, header: TreeHeader, columns: Columns) -> Callable[[], None]:
        """Writes a tree and its nodes; what is returned writes its expansions, whose checksums take longer."""
        encoder = Encoder(self.redact)
        row, root = encoder.header(header, time.time())
        values = _node_values(columns, encoder)
        self.facts.add(blobs, [(name, *compress(data)) for name, data in encoder.blobs.items()])
        key = self._header(header.tree_id, row)
        self.connection.exec_driver_sql(self.database.insertion(nodes), [(key, *root, 0)])
        spent = encoder.spent(columns.spent)
        summed = self._nodes(key, columns, values, spent)

        def finish() -> None:
            popped = [(*own, name) for made, part in summed for own, name in zip(made, part.result(), strict=True)]
            if popped:
                seq, node, drawn, first, drafts, name = popped[0]
                row = (key, seq, node, False, drawn, first, drafts, *_rest(spent), name)
                self.database.insert(self.connection, expansions, [row])
                self.database.load(self.connection, expansions, {"tree": key, **SAME}, popped[1:])

        return finish

    def _header(self, tree_id: str, row: Row) -> int:
        tree = dict(zip((*HEADER_COLUMNS, "checksum"), row, strict=True)) | {"status": "interrupted"}
        self.facts.add(runs, [(tree["run"], tree["created"])])
        if self.connection.execute(trees.select().where(trees.c.id == tree_id)).first() is not None:
            raise StoreError(f"tree {tree_id} is in {self.database.name} already; raise `attempt` to add it again")
        return int(self.connection.execute(trees.insert().values(tree).returning(trees.c.key)).scalar_one())

    def _nodes(
        self, key: int, columns: Columns, values: dict[str, Any], spent: Row
    ) -> list[tuple[list[Own], Future[list[str]]]]:
        """Writes the nodes, a part at a time while its rows are in the cache; what expansions differ in follows."""
        shape, summed = _Shape.of(columns), []
        constants = {name: value for name, value in values.items() if not isinstance(value, list | _Slices)}
        literals = {"tree": key, **constants}
        sizes = _alike(np.asarray(columns.sizes).tolist())
        if not isinstance(sizes, list):
            literals["n_tokens"] = sizes
        for first, last in shape.chunks():
            lo, hi = shape.start[first], shape.start[last]
            part = [(value,) if name in constants else value[lo:hi] for name, value in values.items()]
            held = len(rest_of(tuple(constants.get(name, part) for name in values), NODE_REST))
            own = shape.expansions(range(first, last), columns.parent)
            summed.append((own, self.summing.submit(Job(own, _rest(spent), _rest(NOTHING_SPENT), part[:held]))))
            lists = [value for value in part if isinstance(value, list)]
            more = [sizes[lo:hi]] if isinstance(sizes, list) else []
            self.database.load(self.connection, nodes, literals, list(zip(*lists, *more, strict=True)))
        return summed


@dataclass(frozen=True, slots=True)
class _Shape:
    """Expansions of a tree, one for each run of equal parents: entries start[i] … start[i + 1] − 1 are its drafts."""

    start: list[int]
    drawn: list[int]

    @classmethod
    def of(cls, columns: Columns) -> _Shape:
        first = np.flatnonzero(np.diff(columns.parent, prepend=-1)) if len(columns.parent) else np.empty(0, np.int64)
        sizes = np.diff(np.append(first, len(columns.parent)))
        drawn = sizes if columns.mult is None or not len(first) else np.add.reduceat(np.asarray(columns.mult), first)
        return cls([*first.tolist(), len(columns.parent)], drawn.tolist())

    def expansions(self, seqs: range, parent: NDArray[Any]) -> list[Own]:
        """(seq, node, drawn, id of the first draft, drafts) of some of them."""
        start = self.start
        return [(i, int(parent[start[i]]), self.drawn[i], start[i] + 1, start[i + 1] - start[i]) for i in seqs]

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Ranges of expansions that have about ROWS_PER_CHUNK drafts."""
        first, count = 0, len(self.drawn)
        for i in range(1, count + 1):
            if i == count or self.start[i] - self.start[first] >= ROWS_PER_CHUNK:
                yield first, i
                first = i


def _rest(spent: Row) -> Row:
    """What follows the first six columns of an expansion without fault and outcome, up to its checksum."""
    return rest_of((None, *pop_order((*spent, *NO_OUTCOME))), POP_REST)


class _Slices:
    """The bytes of each node's values, in the form of `pack_ids` and `pack_floats`, cut out when they are asked for."""

    def __init__(self, flat: NDArray[Any], sizes: NDArray[Any], dtype: str, mark: bytes) -> None:
        self._raw = np.ascontiguousarray(flat, dtype).tobytes()
        self._ends = [0, *(np.cumsum(sizes) * 4).tolist()]
        self._mark = mark

    def __getitem__(self, part: slice) -> list[bytes]:
        raw, ends, mark = self._raw, self._ends[part.start : part.stop + 1], self._mark
        if not mark:
            return [raw[a:b] for a, b in pairwise(ends)]
        return [mark + raw[a:b] if b > a else b"" for a, b in pairwise(ends)]


def _node_values(columns: Columns, encoder: Encoder) -> dict[str, Any]:
    """Every column of NODE_COLUMNS in order: a list, or one value that all nodes have."""
    n = len(columns.parent)
    shape = _Shape.of(columns)
    mult = np.ones(n, np.int64) if columns.mult is None else np.asarray(columns.mult)
    start = np.array(shape.start)
    group = np.repeat(np.arange(len(shape.drawn)), np.diff(start))
    slot = np.arange(n) - start[group]
    action = _texts(columns.action, encoder) if columns.action is not None else None
    score = None if columns.score is None else _reals(columns.score)
    values = DEFAULTS | {
        "policy_version": None,
        "id": list(range(1, n + 1)),
        "parent": np.asarray(columns.parent).tolist(),
        "born": group.tolist(),
        "slot": slot.tolist(),
        "mult": 1 if columns.mult is None else mult.tolist(),
        "share": _alike((mult / np.array(shape.drawn)[group]).tolist() if n else []),
        "seed": np.asarray(columns.seed).tolist(),
        "text": _texts(columns.text, encoder),
        "ids": _Slices(columns.ids, columns.sizes, "<i4", b""),
        "logprobs": _Slices(columns.logprobs, columns.sizes, "<f4", b"f") if len(columns.logprobs) else b"",
        "action": action,
        "effect": Effect.READ.value,
        "score": score,
        **_outcomes(columns, encoder, n),
    }
    return {name: values[name] for name in NODE_COLUMNS}


def _outcomes(columns: Columns, encoder: Encoder, n: int) -> dict[str, Any]:
    if columns.seen is None:
        return dict(zip(OUTCOME_COLUMNS, NO_OUTCOME, strict=True))
    seen = np.asarray(columns.seen)
    pages = [encoder.observation(page) for page in columns.pages]
    reward = [0.0] * n if columns.reward is None else _reals(columns.reward)
    status = [NodeStatus.OPEN.value] * n if columns.status is None else [NodeStatus(s).value for s in columns.status]
    out: dict[str, Any] = {name: DEFAULTS.get(name) for name in OUTCOME_COLUMNS} | {
        "steps": 1,
        "provenance": "environment",
    }
    where = seen.tolist()
    for place, name in enumerate(("observation", "fingerprint", "provenance", "parts")):
        kinds = [page[place] for page in pages]
        out[name] = kinds[0] if len(set(kinds)) == 1 else [kinds[i] if i >= 0 else None for i in where]
    out |= {"reward": _alike(reward), "status": _alike(status)}
    if (seen < 0).any():  # of a draft that was not executed, every one of these is NULL
        for (name, value), none in zip(out.items(), NO_OUTCOME, strict=True):
            full = value if isinstance(value, list) else [value] * n
            out[name] = _alike([v if i >= 0 else none for v, i in zip(full, where, strict=True)])
    return out


def _texts(given: Sequence[str | None], encoder: Encoder) -> list[str | None]:
    """Redacted and escaped; looked at one by one only if something is found in all of them together."""
    joined = "\n".join(filter(None, given))
    plain = joined.isascii() and "\0" not in joined
    if plain and not any(needle in joined for needle in encoder.redact.needles):
        return list(given)
    return [encoder.maybe(text) for text in given]


def _reals(values: NDArray[Any]) -> list[float | None]:
    """`real` of every value."""
    given = np.asarray(values, np.float64)
    odd = np.isnan(given) | ((given == 0) & np.signbit(given))
    return [real(x) for x in given.tolist()] if odd.any() else given.tolist()


def _alike(values: list[Any]) -> Any:
    """The one value of a list whose entries are all equal: it need not be bound row by row."""
    return values[0] if values and values.count(values[0]) == len(values) else values
