"""Rows out of the database, checked on the way: a damaged row or blob is named, never passed on."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, func, select

from treewright.search.store.codec import NODE_REST, SPENT_NAMES, decode_spent, rest_of, sum_of
from treewright.search.store.errors import StoreError
from treewright.search.store.models import (
    EXPANSION_COLUMNS,
    HEADER_COLUMNS,
    NODE_COLUMNS,
    blobs,
    expansions,
    nodes,
    trees,
)
from treewright.search.store.sums import checksum
from treewright.search.store.values import Row, expand, unescape
from treewright.search.types import Spent

__all__ = ["Blobs", "TreeRow", "collector_paused", "end_of", "expansion_rows", "header_rows", "key_of", "list_trees"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRow:
    """A tree in a list.

    status      running, interrupted (can be resumed) or done
    nodes       how many were stored; expansions likewise in `spent`
    chosen, stopped_by, outcome, success, exact   None unless done; `chosen` also if there is no answer
    outcome     sum of the truth rewards on the path to the chosen node; `success` when it is at least 1. Both are None
                where the reward of that node is not known; `success` too where faults kept every episode from ending
    exact       True if nothing stands in `reasons`
    created, ended   seconds since the epoch
    continues   (tree id, node) of the stored node or commit that it goes on from; None for a whole episode
    """

    tree_id: str
    run: str
    suite: str
    task_id: str
    split: str
    attempt: int
    policy_version: str
    status: str
    nodes: int
    chosen: int | None
    stopped_by: str | None
    outcome: float | None
    success: bool | None
    exact: bool | None
    reasons: tuple[str, ...]
    spent: Spent
    created: float
    ended: float | None
    continues: tuple[str, int] | None = None


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection while many objects without cycles are made: it would walk them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Blobs:
    """Contents by digest, each read and verified once. Call it with a digest."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._contents: dict[str, bytes] = {}

    def prefetch(self, key: int) -> None:
        """Reads every observation of a tree in one go."""
        for table in (nodes, expansions):
            named = select(table.c.observation).where(table.c.tree == key)
            self.read(select(blobs).where(blobs.c.digest.in_(named)))

    def read(self, query: Select[Any]) -> None:
        """Reads the blobs that a query finds."""
        for name, codec, data in self._connection.execute(query):
            self._contents[name] = expand(name, codec, data)

    def __call__(self, name: str) -> bytes:
        if name not in self._contents:
            row = self._connection.execute(select(blobs).where(blobs.c.digest == name)).one_or_none()
            if row is None:
                raise StoreError(f"blob {name} is missing; restore the file from a copy")
            self._contents[name] = expand(*row)
        return self._contents[name]


def key_of(connection: Connection, tree_id: str) -> int:
    """The surrogate key of a tree. Raises StoreError if it is not there."""
    key = connection.execute(select(trees.c.key).where(trees.c.id == tree_id)).scalar_one_or_none()
    if key is None:
        raise StoreError(f"tree {tree_id} is not in this store; `trees()` lists what is")
    return int(key)


def header_rows(connection: Connection, key: int) -> tuple[Row, Row]:
    """The header columns of a tree and the row of its root. Raises StoreError if either is damaged."""
    columns = [trees.c[name] for name in (*HEADER_COLUMNS, "checksum")]
    *row, told = connection.execute(select(*columns).where(trees.c.key == key)).one()
    root = connection.execute(_nodes(key).where(nodes.c.id == 0)).one_or_none()
    if root is None or checksum(tuple(row), rest_of(tuple(root), NODE_REST)) != told:
        raise StoreError(f"tree {row[0]}: its header or root is damaged; restore the file from a copy")
    return tuple(row), tuple(root)


def expansion_rows(connection: Connection, key: int, tree_id: str) -> Iterator[tuple[Row, list[Row]]]:
    """Every expansion with the rows of its drafts, in order. Raises StoreError at a damaged or missing one."""
    columns = [expansions.c[name] for name in (*EXPANSION_COLUMNS, "checksum")]
    query = select(*columns).where(expansions.c.tree == key).order_by(expansions.c.seq)
    below = iter(connection.execute(_nodes(key).where(nodes.c.id > 0).order_by(nodes.c.id)))
    count_at = EXPANSION_COLUMNS.index("drafts")
    for expected, (*row, told) in enumerate(connection.execute(query)):
        drafts = [tuple(r) for _, r in zip(range(row[count_at]), below, strict=False)]
        if row[0] != expected or sum_of(tuple(row), drafts) != told:
            raise StoreError(f"tree {tree_id}: expansion {expected} is damaged; restore the file from a copy")
        yield tuple(row), drafts
    if (extra := next(below, None)) is not None:
        raise StoreError(f"tree {tree_id}: node {extra[0]} belongs to no expansion; restore the file from a copy")


def _nodes(key: int) -> Select[Any]:
    return select(*(nodes.c[name] for name in NODE_COLUMNS)).where(nodes.c.tree == key)


def end_of(connection: Connection, key: int) -> Any:
    """Status and end columns of a tree."""
    columns = (trees.c.status, trees.c.chosen, trees.c.stopped_by, trees.c.reasons, trees.c.final)
    return connection.execute(select(*columns).where(trees.c.key == key)).one()


def list_trees(connection: Connection, where: Sequence[Any]) -> list[TreeRow]:
    """Summaries in order of creation."""
    growing = select(trees.c.key).where(trees.c.status != "done", *where)
    sums = [func.sum(expansions.c[name]) for name in SPENT_NAMES]
    query = select(expansions.c.tree, func.sum(expansions.c.drafts), *sums).group_by(expansions.c.tree)
    so_far = {r[0]: r[1:] for r in connection.execute(query.where(expansions.c.tree.in_(growing)))}
    return [_summary(row, so_far) for row in connection.execute(select(trees).where(*where).order_by(trees.c.key))]


def _summary(row: Any, so_far: Mapping[int, Sequence[Any]]) -> TreeRow:
    done = row.status == "done"
    if done:
        count, spent = row.count, [getattr(row, name) for name in SPENT_NAMES]
    else:
        drafts, *spent = so_far.get(row.key, [0] * (1 + len(SPENT_NAMES)))
        count = 1 + drafts
    reasons = tuple(json.loads(unescape(row.reasons))) if row.reasons else ()
    return TreeRow(
        tree_id=row.id,
        run=unescape(row.run),
        suite=unescape(row.suite),
        task_id=unescape(row.task_id),
        split=unescape(row.split),
        attempt=row.attempt,
        policy_version=unescape(row.policy_version),
        status=row.status,
        nodes=count,
        chosen=row.chosen,
        stopped_by=None if row.stopped_by is None else unescape(row.stopped_by),
        outcome=row.outcome,
        success=row.success,
        exact=not reasons if done else None,
        reasons=reasons,
        spent=decode_spent(tuple(spent)),
        created=row.created,
        ended=row.ended,
        continues=None if row.continues_tree is None else (row.continues_tree, row.continues_node),
    )
