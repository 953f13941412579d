"""What a store needs now and then: its size told, trees deleted, space given back. Nobody else may write meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, delete, func, select

from treewright.search.store.copying import inner_blobs
from treewright.search.store.database import Database, database_at
from treewright.search.store.errors import StoreError
from treewright.search.store.journal import JournalState, read_entries
from treewright.search.store.models import SCHEMA_VERSION, blobs, expansions, journal, meta, nodes, runs, tasks, trees
from treewright.search.store.query import conditions
from treewright.search.store.values import expand

__all__ = ["Stats", "compact", "delete_trees", "stats"]

CHUNK = 500
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts of a store.

    groups    (run, suite, status) → (trees, successes);  unknown: of finished ones, those of which success is not known
    rows      table → rows;  bytes: on disk;  blob_bytes: of contents, compressed
    pending   irreversible actions without a known answer
    """

    name: str
    schema: int
    maker: str
    bytes: int
    blob_bytes: int
    rows: dict[str, int]
    tokens: int
    pending: int
    groups: dict[tuple[str, str, str], tuple[int, int]]
    unknown: dict[tuple[str, str, str], int] = field(default_factory=dict)


def stats(path_or_url: str | Path) -> Stats:
    """Counts of a store, read only."""
    database = database_at(path_or_url, read_only=True)
    try:
        database.verify()
        with database.reader().connect() as c:
            tables = (trees, expansions, nodes, blobs, journal, tasks)
            rows = {t.name: int(c.execute(select(func.count()).select_from(t)).scalar_one()) for t in tables}
            by = (trees.c.run, trees.c.suite, trees.c.status)
            solved = func.count().filter(trees.c.success)
            columns = (func.count(), solved, func.count() - func.count(trees.c.success))
            groups = c.execute(select(*by, *columns).group_by(*by).order_by(*by)).all()
            done = (JournalState.DONE, JournalState.FAILED)
            return Stats(
                database.name,
                SCHEMA_VERSION,
                c.execute(select(meta.c.value).where(meta.c.name == "treewright")).scalar_one(),
                database.size(),
                int(c.execute(select(func.sum(func.length(blobs.c.data)))).scalar_one() or 0),
                rows,
                int(c.execute(select(func.sum(nodes.c.n_tokens))).scalar_one() or 0),
                sum(entry.state not in done for entry in read_entries(c, None)),
                {(run, suite, status): (count, successes) for run, suite, status, count, successes, _ in groups},
                {(run, suite, status): n for run, suite, status, _, _, n in groups if n and status == "done"},
            )
    finally:
        database.release()


@contextmanager
def _owned(path_or_url: str | Path) -> Iterator[tuple[Database, Connection]]:
    database = database_at(path_or_url)
    try:
        database.own(exclusive=True)
        with database.writer().connect() as connection:
            yield database, connection
    finally:
        database.release()


def delete_trees(
    path_or_url: str | Path, where: Mapping[str, object], dry: bool = False
) -> tuple[list[str], dict[str, str]]:
    """Deletes the trees for which `where` holds: (ids deleted, {id: why it stays}).

    A tree with an irreversible action whose answer is not known stays. What trees alone referred to is freed by
    `compact`. Raises StoreError for an empty `where`: name a run, say; and for one that cannot be read.
    """
    if not where:
        raise StoreError('nothing says which trees to delete; give a filter such as "run=old" or "status=interrupted"')
    held = conditions(where)
    with _owned(path_or_url) as (database, connection):
        query = select(trees.c.key, trees.c.id).where(*held).order_by(trees.c.key)
        found = {row.id: row.key for row in connection.execute(query)}
        done = (JournalState.DONE, JournalState.FAILED)
        doubts = {e.tree_id for e in read_entries(connection, None) if e.state not in done}
        connection.rollback()
        stay = {name: "an irreversible action in it has no known answer" for name in found if name in doubts}
        keys = [key for name, key in found.items() if name not in stay]
        if keys and not dry:
            with database.transaction(connection, durable=True):
                for part in _parts(keys):
                    _delete(connection, part)
                used = select(trees.c.run).distinct()
                connection.execute(delete(runs).where(runs.c.run.not_in(used)))
    return [name for name in found if name not in stay], stay


def _delete(connection: Connection, keys: Sequence[int]) -> None:
    """Children first."""
    answers = journal.c.tree.in_(keys) & journal.c.entry.is_not(None)
    connection.execute(delete(journal).where(answers))
    for table in (journal, expansions, nodes):
        connection.execute(delete(table).where(table.c.tree.in_(keys)))
    ids = select(trees.c.id).where(trees.c.key.in_(keys))
    connection.execute(delete(tasks).where(tasks.c.tree.in_(ids)))
    connection.execute(delete(trees).where(trees.c.key.in_(keys)))


def compact(path_or_url: str | Path) -> tuple[int, int, int]:
    """Frees contents that no tree refers to any more, and gives space back: (contents freed, bytes before, after)."""
    with _owned(path_or_url) as (database, connection):
        before = database.size()
        with database.transaction(connection, durable=True):
            used = _used(connection)
            unused = [name for name in connection.execute(select(blobs.c.digest)).scalars() if name not in used]
            for part in _parts(unused):
                connection.execute(delete(blobs).where(blobs.c.digest.in_(part)))
        connection.close()
        database.shrink()
        return len(unused), before, database.size()


def _used(connection: Connection) -> set[str]:
    used: set[str] = set()
    for table in (nodes, expansions, journal):
        named = select(table.c.observation).where(table.c.observation.is_not(None)).distinct()
        used.update(connection.execute(named).scalars())
        parts = select(table.c.parts).where(table.c.parts.is_not(None))
        used.update(name for text in connection.execute(parts).scalars() for name in inner_blobs(text))
    bodies: set[str] = set()
    for column in (trees.c.task, trees.c.settings):
        bodies.update(connection.execute(select(column).distinct()).scalars())
    for part in _parts(sorted(bodies)):
        for name, codec, data in connection.execute(select(blobs).where(blobs.c.digest.in_(part))):
            used.update(inner_blobs(expand(name, codec, data).decode("utf-8", "replace")))
    return used | bodies


def _parts(values: Sequence[T]) -> Iterable[Sequence[T]]:
    return (values[i : i + CHUNK] for i in range(0, len(values), CHUNK))
