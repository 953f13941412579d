"""What PostgreSQL does without while many rows are loaded: keys, references and an index, faster made at the end.

A check of references costs three queries a row where it is made row by row, and one join a table where it is made at
the end, which is also when a key that is there twice would be found. If the process ends in between, whoever opens the
store next to write makes what is missing; see `complete`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, ForeignKeyConstraint
from sqlalchemy.exc import OperationalError

from treewright.search.store.models import expansions, nodes

__all__ = ["bare", "complete", "wide_rows"]

FEW_ROWS = 50_000
"""Nodes of a store that is loaded without references and index: with more, making them again might take longer."""

LOCK_SECONDS = 1
ROW_BYTES = 4080
TABLES = (nodes, expansions)


@contextmanager
def bare(engine: Engine) -> Iterator[None]:
    """While it lasts the tables of nodes and expansions have no keys, references and indexes, if they have few rows.

    Only as the exclusive owner. Where a reader is in the way, they stay.
    """
    with engine.connect() as connection:
        stripped = _few(connection) and _strip(connection)
    try:
        yield
    finally:
        if stripped:
            with engine.begin() as connection:
                complete(connection)


def complete(connection: Connection) -> None:
    """Makes keys, references and indexes that are missing, in the transaction of the connection."""
    there = _names(connection)
    for table in TABLES:
        if _key(table) not in there:
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD PRIMARY KEY ({_list(table.primary_key.columns)})")
        for index in table.indexes:
            if index.name not in there:
                index.create(connection)
    for table in TABLES:
        missing = [
            f"ADD FOREIGN KEY ({_list(key.columns)}) REFERENCES {key.referred_table.name} "
            f"({_list(element.column for element in key.elements)})"
            for key in _references(table)
            if _name(key) not in there
        ]
        if missing:
            connection.exec_driver_sql(f"ALTER TABLE {table.name} {', '.join(missing)}")


def wide_rows(connection: Connection) -> None:
    """Rows of nodes stay in one piece up to about 4 KB.

    PostgreSQL's own limit of 2 KB is what a node of 200 tokens has, and its compression gains little on their numbers.
    """
    connection.exec_driver_sql(f"ALTER TABLE {nodes.name} SET (toast_tuple_target = {ROW_BYTES})")


def _few(connection: Connection) -> bool:
    with connection.begin():
        query = f"SELECT count(*) FROM (SELECT 1 FROM {nodes.name} LIMIT {FEW_ROWS + 1}) AS few"
        return int(connection.exec_driver_sql(query).scalar_one()) <= FEW_ROWS


def _strip(connection: Connection) -> bool:
    """Whether the tables could be had: a reader that is at it keeps them as they are."""
    try:
        with connection.begin():
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
            wide_rows(connection)
            for table in TABLES:
                drops = [f"DROP CONSTRAINT {name}" for name in [*map(_name, _references(table)), _key(table)]]
                connection.exec_driver_sql(f"ALTER TABLE {table.name} {', '.join(drops)}")
                for index in table.indexes:
                    index.drop(connection)
    except OperationalError:
        return False
    return True


def _references(table: Any) -> list[ForeignKeyConstraint]:
    return sorted(table.foreign_key_constraints, key=_name)


def _name(key: ForeignKeyConstraint) -> str:
    """As PostgreSQL names a reference that has no name of its own."""
    return f"{key.table.name}_{'_'.join(c.name for c in key.columns)}_fkey"


def _key(table: Any) -> str:
    return f"{table.name}_pkey"


def _list(columns: Iterable[Any]) -> str:
    return ", ".join(column.name for column in columns)


def _names(connection: Connection) -> set[str]:
    """Keys, references and indexes that the tables have."""
    tables = ", ".join(f"'{table.name}'::regclass" for table in TABLES)
    query = (
        f"SELECT conname FROM pg_constraint WHERE contype = 'f' AND conrelid IN ({tables}) UNION ALL "
        f"SELECT c.relname FROM pg_index JOIN pg_class AS c ON c.oid = indexrelid WHERE indrelid IN ({tables})"
    )
    return set(connection.exec_driver_sql(query).scalars())
