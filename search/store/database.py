"""Which database holds a store: what TreeStore needs of it, and how one is found from a path or a URL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, Table

from treewright.search.store.errors import StoreError
from treewright.search.store.sqlite import SQLite
from treewright.search.store.values import Part, Row

__all__ = ["Database", "Shared", "database_at"]


class Shared(Protocol):
    """Keeps facts that are the same whoever writes them, such as blobs by their digest."""

    def add(self, table: Table, rows: Iterable[Row]) -> None:
        """Inserts whole rows; those that are there already stay as they are."""

    def close(self) -> None: ...


class Database(Protocol):
    """One store in one database.

    name      for messages: the path, or the URL without its password
    shared    True if other processes may write at the same time
    """

    name: str
    shared: bool

    def own(self, exclusive: bool = False) -> bool:
        """Takes the right to write, makes or upgrades the tables; True if nobody else writes.

        exclusive   nobody else may, until `release`
        Raises StoreError if somebody else has the right, or if a newer version made the store.
        """

    def busy(self) -> bool:
        """True if a process may be writing now."""

    def verify(self) -> None:
        """Raises StoreError unless there is a store that this version reads."""

    def release(self) -> None:
        """Gives everything back: connections and the right to write."""

    def reader(self) -> Engine:
        """Connections whose transactions see one state of the store."""

    def writer(self) -> Engine:
        """The connections for writing; only after `own`."""

    def plain(self) -> Engine:
        """Connections for short writes beside the writer's; only where `shared`."""

    def transaction(self, connection: Connection, durable: bool) -> AbstractContextManager[Any]:
        """A transaction; a durable one is on disk when it ends."""

    def insertion(self, table: Table, ignore: bool = False) -> str:
        """The driver's own INSERT for whole rows; `ignore` keeps rows that are there."""

    def insert(self, connection: Connection, table: Table, rows: Sequence[Row]) -> None:
        """Adds whole rows, fast also where there are few."""

    def facts(self, connection: Connection) -> Shared:
        """Where facts go that several writers may want to insert at the same time."""

    def load(self, connection: Connection, table: Table, constants: dict[str, Any], parts: Iterable[Part]) -> None:
        """The fastest way in for many rows, part after part.

        parts   lists of equal length, one for every column that is not in `constants`, in the table's order
        """

    def loading(self) -> AbstractContextManager[Any]:
        """Around many loads; only as the exclusive owner."""

    def retryable(self, error: Exception) -> bool:
        """True if the same transaction may succeed when it is run again."""

    def pages(self, connection: Connection) -> list[str]:
        """Damage below the tables, one line each."""

    def orphans(self, connection: Connection) -> list[str]:
        """References to rows that are missing, one line each."""

    def size(self) -> int:
        """Bytes on disk."""

    def shrink(self) -> None:
        """Gives free space back to the file system; only as the exclusive owner."""


def database_at(path_or_url: str | Path, read_only: bool = False) -> Database:
    """The database behind a path, a sqlite:/// URL or a postgresql:// URL. Raises StoreError for others."""
    text = str(path_or_url)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return SQLite(Path(path_or_url), read_only)
    if scheme == "sqlite" and rest.startswith("/"):
        return SQLite(Path(rest[1:]), read_only)
    if scheme.partition("+")[0] in ("postgresql", "postgres"):
        from treewright.search.store.postgres import Postgres

        return Postgres(text, read_only)
    raise StoreError(
        f"cannot open {scheme}://…: trees are kept in SQLite or PostgreSQL; give a path, sqlite:///PATH or "
        "postgresql://USER@HOST/NAME"
    )
