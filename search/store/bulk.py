"""Whole trees as columns, written as fast as the database takes them: for imports and for measuring.

    load_trees("runs/trees.db", [(header, Columns(parent=…, text=…, ids=…, sizes=…, logprobs=…, seed=…))])

What is written is what `create`, `append` and `finish` would have written, checksums and redaction included; only the
objects in between are left out. Nobody else may write the store meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DatabaseError

from treewright.envs.redact import Redactor
from treewright.search.store.codec import NO_OUTCOME, NODE_REST, POP_REST, Encoder, pop_order, rest_of
from treewright.search.store.columns import Columns, Cut, Own, Shape, node_values
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
from treewright.search.store.summing import Summing
from treewright.search.store.sums import Job
from treewright.search.store.values import Row, compress
from treewright.search.tree import TreeHeader
from treewright.search.types import Spent

__all__ = ["Columns", "load_trees"]

ROWS_PER_TRANSACTION = 50_000
NOTHING_SPENT = Encoder(Redactor([])).spent(Spent())
SAME = {
    "closing": False,
    "fault": None,
    **{f"spent_{name}": value for name, value in zip(SPENT_COLUMNS, NOTHING_SPENT, strict=True)},
    **dict(zip(OUTCOME_COLUMNS, NO_OUTCOME, strict=True)),
}


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
        encoder, shape = Encoder(self.redact), Shape.of(columns)
        row, root = encoder.header(header, time.time())
        values = node_values(columns, shape, encoder)
        self.facts.add(blobs, [(name, *compress(data)) for name, data in encoder.blobs.items()])
        key = self._header(header.tree_id, row)
        self.connection.exec_driver_sql(self.database.insertion(nodes), [(key, *root, 0)])
        spent, summed = encoder.spent(columns.spent), list[tuple[list[Own], Future[list[str]]]]()
        literals = {"tree": key} | {name: value for name, value in values.items() if not isinstance(value, Cut)}
        self.database.load(self.connection, nodes, literals, self._parts(columns, shape, values, spent, summed))

        def finish() -> None:
            popped = [(*own, name) for made, part in summed for own, name in zip(made, part.result(), strict=True)]
            if popped:
                seq, node, drawn, first, drafts, name = popped[0]
                row = (key, seq, node, False, drawn, first, drafts, *_rest(spent), name)
                self.database.insert(self.connection, expansions, [row])
            if len(popped) > 1:
                self.database.load(
                    self.connection, expansions, {"tree": key, **SAME}, [list(zip(*popped[1:], strict=True))]
                )

        return finish

    def _header(self, tree_id: str, row: Row) -> int:
        tree = dict(zip((*HEADER_COLUMNS, "checksum"), row, strict=True)) | {"status": "interrupted"}
        self.facts.add(runs, [(tree["run"], tree["created"], None)])
        if self.connection.execute(trees.select().where(trees.c.id == tree_id)).first() is not None:
            raise StoreError(f"tree {tree_id} is in {self.database.name} already; raise `attempt` to add it again")
        return int(self.connection.execute(trees.insert().values(tree).returning(trees.c.key)).scalar_one())

    def _parts(
        self,
        columns: Columns,
        shape: Shape,
        values: dict[str, Any],
        spent: Row,
        summed: list[tuple[list[Own], Future[list[str]]]],
    ) -> Iterator[list[list[Any]]]:
        """The values of the nodes that differ, a part at a time; each is summed up beside while it is written.

        `summed` gets what the expansions of a part differ in, and the checksums to come.
        """
        held = rest_of(
            tuple(None if isinstance(values[name], Cut) else values[name] for name in NODE_COLUMNS), NODE_REST
        )
        for first, last in shape.chunks():
            rows = slice(shape.start[first], shape.start[last])
            part = {name: value[rows] if isinstance(value, Cut) else (value,) for name, value in values.items()}
            own = shape.expansions(range(first, last), columns.parent)
            job = Job(own, _rest(spent), _rest(NOTHING_SPENT), list(part.values())[: len(held)])
            summed.append((own, self.summing.submit(job)))
            yield [value for value in part.values() if isinstance(value, list)]


def _rest(spent: Row) -> Row:
    """What follows the first six columns of an expansion without fault and outcome, up to its checksum."""
    return rest_of((None, *pop_order((*spent, *NO_OUTCOME))), POP_REST)
