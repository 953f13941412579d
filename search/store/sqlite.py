"""One SQLite file: who may write it, whether this version can read it, and how connections are set up.

A store has one writer process at a time, shown by a lock on FILE.lock that the operating system drops when the
process ends, however it ends. SQLite below 3.51.3 can lose data when several writers reset the write-ahead log at
once; with the one writer that cannot happen. Readers open the file read-only and see what was committed.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path
from threading import Event, Thread
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DatabaseError, DBAPIError
from sqlalchemy.pool import QueuePool

from treewright.search.store.errors import StoreError, newer, older
from treewright.search.store.migrate import make, upgrade
from treewright.search.store.models import APPLICATION_ID, SCHEMA_VERSION, meta
from treewright.search.store.values import Part, Row

__all__ = ["SQLite"]

BUSY_SECONDS = 10.0
ROWS_PER_INSERT = 16  # while trees grow, where a statement is prepared for few rows
ROWS_PER_STATEMENT = 64  # times 34 columns is far below the 32,766 parameters that SQLite allows
STATEMENTS = 4 * ROWS_PER_STATEMENT  # that stay prepared: one for each table and number of rows
SYNC_SECONDS = 0.05
ROOM_BESIDE = 64 * 1024  # bytes; the index of a log, which even readers need, begins with 32 KiB
CACHE_KB, LOADING_KB = 32_000, 4_000  # pages that a connection keeps; rows that are loaded in order need few of them
PAGE_BYTES = 16384  # a node with 200 tokens takes 2 to 3 KB: in pages of 4 KB a third of the file would be air


class Owner:
    """The right to write a file, held until `release` or the end of the process. Raises StoreError if taken."""

    def __init__(self, path: Path) -> None:
        lock = path.with_name(path.name + ".lock")
        try:
            self._handle: int | None = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"cannot open {path} for writing: {error.strerror}: {lock}") from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.pread(self._handle, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._handle)
            raise StoreError(
                f"{path} is being written by process {pid}; wait for it or stop it, or open with read_only=True"
            ) from error
        with suppress(OSError):  # the number tells others who writes; a full disk has no room for it
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class SQLite:
    """A store in one file; see `Database`."""

    shared = False

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.path = path
        self.name = str(path)
        self._owner: Owner | None = None
        self._reader: Engine | None = None
        self._writer: Engine | None = None
        self._handle: int | None = None
        if path.is_dir():
            raise StoreError(f"{path} is a folder; name a file in it, such as {path / 'trees.sqlite'}")
        if read_only and not path.exists():
            raise StoreError(f"there is no store at {path}; open it without read_only to make one")

    def own(self, exclusive: bool = False) -> bool:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            why = f"{error.filename} cannot be a folder; name another place"
            raise StoreError(f"cannot open {self.path} for writing: {why}") from error
        self._owner = Owner(self.path)
        try:
            self._writer = _connect(self.path, read_only=False)
            _prepare(self._writer, self.path)
        except BaseException:
            self.release()
            raise
        return True

    def busy(self) -> bool:
        lock = self.path.with_name(self.path.name + ".lock")
        try:
            with lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def verify(self) -> None:
        version = _verify(self.reader(), self.path)
        if version < SCHEMA_VERSION:
            raise older(self.name, version)

    def release(self) -> None:
        for engine in (self._reader, self._writer):
            if engine is not None:
                engine.dispose()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        if self._owner is not None:
            self._owner.release()

    def reader(self) -> Engine:
        if self._reader is None:
            self._reader = _connect(self.path, read_only=True)
        return self._reader

    def writer(self) -> Engine:
        if self._writer is None:
            raise StoreError(f"{self.path} was opened read-only; open it without read_only to write")
        return self._writer

    def plain(self) -> Engine:
        return self.writer()

    @contextmanager
    def transaction(self, connection: Connection, durable: bool) -> Any:
        level = "FULL" if durable else "NORMAL"
        connection.connection.cursor().execute(f"PRAGMA synchronous={level}")  # not allowed inside a transaction
        with connection.begin():
            yield

    def insertion(self, table: Table, ignore: bool = False) -> str:
        return _insertion(table, ignore)

    def insert(self, connection: Connection, table: Table, rows: Sequence[Row]) -> None:
        """A statement takes many rows: the driver gives other threads their turn once a statement, not once a row.

        Numbers of rows are powers of two: each is a statement of its own, and preparing one costs as much as its rows.
        """
        values, first, cursor = ", ".join("?" for _ in table.columns), 0, connection.connection.cursor()
        while left := len(rows) - first:
            count = min(ROWS_PER_INSERT, 1 << (left.bit_length() - 1))
            statement = _statement(table, values, count)
            try:
                cursor.execute(statement, tuple(chain.from_iterable(rows[first : first + count])))
            except sqlite3.Error as error:
                raise DBAPIError.instance(statement, None, error, sqlite3.Error) from error
            first += count

    def facts(self, connection: Connection) -> Facts:
        return Facts(connection)

    def load(self, connection: Connection, table: Table, constants: dict[str, Any], parts: Iterable[Part]) -> None:
        """Constants stand in the statement as literals: binding values is half of the time of an insert."""
        values = ", ".join(_literal(constants[c.name]) if c.name in constants else "?" for c in table.columns)
        cursor = connection.connection.cursor()
        try:
            for part in parts:
                width, size = len(part), len(part[0])
                flat: list[Any] = [None] * (width * size)
                for place, column in enumerate(part):
                    flat[place::width] = column
                for first in range(0, size, ROWS_PER_STATEMENT):
                    count = min(ROWS_PER_STATEMENT, size - first)
                    given = flat[first * width : (first + count) * width]
                    cursor.execute(_statement(table, values, count), given)
        except sqlite3.Error as error:
            raise StoreError(f"cannot write to {self.name}: {error}") from error

    def loading(self) -> AbstractContextManager[None]:
        """While it lasts new pages are written once, not to a log first; where a reader is in the way, as always."""
        return _loading(self.writer(), self._early_bytes())

    def _early_bytes(self) -> int:
        """A handle of the file for `_loading`. It stays open: closing one would drop the locks of every connection."""
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self._handle

    def retryable(self, error: Exception) -> bool:
        return False

    def pages(self, connection: Connection) -> list[str]:
        lines = connection.exec_driver_sql("PRAGMA integrity_check(20)").scalars()
        return [f"file: {line}" for line in lines if line != "ok"]

    def orphans(self, connection: Connection) -> list[str]:
        found = connection.exec_driver_sql("PRAGMA foreign_key_check")
        return [f"{table}: row {row} refers to a row of {target} that is missing" for table, row, target, _ in found]

    def size(self) -> int:
        files = (self.path.with_name(self.path.name + suffix) for suffix in ("", "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def shrink(self) -> None:
        with self.writer().connect() as connection:
            cursor = connection.connection.cursor()
            cursor.execute("VACUUM")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")


class Facts:
    """With one writer, facts go into the transaction of the rows that refer to them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, table: Table, rows: Iterable[Row]) -> None:
        self._connection.exec_driver_sql(_insertion(table, True), list(rows))

    def close(self) -> None:
        """The connection is its owner's."""


@lru_cache(STATEMENTS)
def _statement(table: Table, values: str, count: int) -> str:
    names = ", ".join(
        f'"{column.name}"' for column in table.columns
    )  # a store that was upgraded has them in another order
    return f"INSERT INTO {table.name} ({names}) VALUES " + ", ".join([f"({values})"] * count)


@lru_cache
def _insertion(table: Table, ignore: bool) -> str:
    """Half the time of going through parameter dictionaries."""
    statement = insert(table)
    return str((statement.on_conflict_do_nothing() if ignore else statement).compile(dialect=sqlite_dialect()))


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(int(value) if isinstance(value, bool) else value)


@contextmanager
def _loading(engine: Engine, handle: int) -> Any:
    with engine.connect() as connection:
        raw = connection.connection.cursor()
        with suppress(sqlite3.OperationalError):  # a reader has the file open: the log stays
            raw.execute("PRAGMA busy_timeout=0")
            raw.execute("PRAGMA journal_mode=TRUNCATE")
        raw.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")
        raw.execute(f"PRAGMA cache_size=-{LOADING_KB}")
    done = Event()
    early = Thread(target=_sync_early, args=(handle, done), name="sync", daemon=True)
    early.start()
    try:
        yield
    finally:
        done.set()
        early.join()
        with engine.connect() as connection:
            raw = connection.connection.cursor()
            raw.execute("PRAGMA journal_mode=WAL")
            raw.execute(f"PRAGMA cache_size=-{CACHE_KB}")


def _sync_early(handle: int, done: Event) -> None:
    """Has the disk write what is there while more is made: a commit then waits for the rest alone."""
    with suppress(OSError):  # the commit meets the same error
        while not done.wait(SYNC_SECONDS):
            os.fdatasync(handle)


def _connect(path: Path, *, read_only: bool) -> Engine:
    """An engine whose transactions are explicit: BEGIN IMMEDIATE for the writer, a snapshot for readers."""

    def creator() -> sqlite3.Connection:
        mode = ("ro&immutable=1" if _still(path) else "ro") if read_only else "rwc"
        return sqlite3.connect(
            f"{path.resolve().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_SECONDS,
            check_same_thread=False,
            isolation_level=None,
            cached_statements=STATEMENTS,
        )

    engine = create_engine("sqlite://", creator=creator, poolclass=QueuePool)
    begin = "BEGIN" if read_only else "BEGIN IMMEDIATE"

    @event.listens_for(engine, "connect")
    def configure(raw: Any, _record: Any) -> None:
        if not read_only:
            raw.execute(f"PRAGMA page_size={PAGE_BYTES}")  # of a file that is still empty
            raw.execute("PRAGMA journal_mode=WAL")
            raw.execute("PRAGMA synchronous=NORMAL")
        raw.execute(f"PRAGMA cache_size=-{CACHE_KB}")

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _still(path: Path) -> bool:
    """Nobody can be writing the file: it lies in a folder where nothing can be written, and nothing waits in a log.

    SQLite would need a file beside it even to read; `immutable` lets it do without. Raises StoreError for a log that
    waits there: what it holds cannot be read in place.
    """
    folder = path.resolve().parent
    if os.access(folder, os.W_OK) and not _read_only(folder):
        return False
    log = path.with_name(path.name + "-wal")
    if log.exists() and log.stat().st_size:
        raise StoreError(
            f"{path} has a log {log.name} that waits to be read in, and its folder cannot be written; copy both files "
            "to a folder of your own and open the store there"
        )
    return True


def _read_only(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _prepare(engine: Engine, path: Path) -> None:
    """Makes the tables of a new file or upgrades an old one, in one transaction. Raises StoreError."""
    try:
        with engine.begin() as connection:
            if _number(connection, "application_id") == 0 and _number(connection, "schema_version") == 0:
                make(connection)
                connection.exec_driver_sql(f"PRAGMA application_id={APPLICATION_ID}")
                connection.exec_driver_sql(f"PRAGMA user_version={SCHEMA_VERSION}")
        version = _verify(engine, path)
        if version < SCHEMA_VERSION:
            with engine.begin() as connection:
                upgrade(connection, version)
                connection.exec_driver_sql(f"PRAGMA user_version={SCHEMA_VERSION}")
    except DatabaseError as error:
        raise _unreadable(path, error) from error


def _verify(engine: Engine, path: Path) -> int:
    """The schema version of a file. Raises StoreError if it is no store or too new."""
    try:
        with engine.connect() as connection:
            kind, version = _number(connection, "application_id"), _number(connection, "user_version")
            if kind == 0 and _number(connection, "schema_version") == 0:
                raise StoreError(f"{path} is empty: what began it ended before its first tree; type that line again")
            if kind != APPLICATION_ID:
                raise StoreError(f"{path} is not a store of trees (application id {kind}); name another file")
            if version > SCHEMA_VERSION:
                maker = connection.execute(meta.select().where(meta.c.name == "treewright")).one().value
                raise newer(str(path), version, maker)
            return version
    except DatabaseError as error:
        raise _unreadable(path, error) from error


def _full(path: Path) -> bool:
    """Whether the disk of a file has no room for what SQLite puts beside it, even to read."""
    try:
        disk = os.statvfs(path.resolve().parent)
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < ROOM_BESIDE


def _unreadable(path: Path, error: DatabaseError) -> StoreError:
    if _full(path) and any(said in str(error.orig) for said in ("disk I/O error", "is full", "unable to open")):
        return StoreError(f"cannot open {path} as a store: its disk is full; make room, then type the same line again")
    why = f"cannot open {path} as a store: {error.orig}; restore the file from a copy"
    if "not a database" in str(error.orig):  # nothing in it can be read
        return StoreError(f"{why}, or name another one")
    return StoreError(f"{why}, or save what is whole: treewright store repair {path} {path}.saved")


def _number(connection: Connection, pragma: str) -> int:
    return int(connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one())
