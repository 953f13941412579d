"""A PostgreSQL database: many writers, each with its own connection.

Writers hold an advisory lock together, upkeep that removes rows holds it alone. Content and runs, which several
writers may want to insert at once, go in by a connection of their own that commits at once: no transaction ever waits
for another one's content, so none can end in a deadlock. What is written twice has the same digest and is kept once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import lru_cache
from importlib import import_module
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, make_url
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError

from treewright.search.store.bare import bare, complete, wide_rows
from treewright.search.store.binary import END, START, Rows
from treewright.search.store.errors import StoreError, StoreLost, away, newer, older
from treewright.search.store.migrate import make, schema_of, upgrade
from treewright.search.store.models import APPLICATION_ID, SCHEMA_VERSION, meta
from treewright.search.store.values import Part, Row

__all__ = ["Postgres"]

WRITERS, SCHEMA = 1, 2  # second keys of the advisory locks; the first is APPLICATION_ID
LOCK_SECONDS = 30
IDLE_SECONDS = 15
"""A writer that stops in the middle of a transaction loses its connection after this, and with it every row lock."""

AGAIN = ("40001", "40P01")  # serialization failure, deadlock


class Postgres:
    """A store in one PostgreSQL database; see `Database`. Needs psycopg: pip install 'treewright[postgres]'."""

    shared = True

    def __init__(self, url: str, read_only: bool = False) -> None:
        _driver()
        try:
            self._url: URL = make_url(url).set(drivername="postgresql+psycopg")
        except ArgumentError as error:
            raise StoreError(
                f"the URL of the store cannot be read; write postgresql://USER@HOST/NAME: {error}"
            ) from None
        self.name = self._url.set(drivername="postgresql").render_as_string(hide_password=True)
        self._reader: Engine | None = None
        self._writer: Engine | None = None

    # -- who writes ---------------------------------------------------------------------------------------------

    def own(self, exclusive: bool = False) -> bool:
        self._writer = self._connect(read_only=False)
        try:
            with self._asked(), self._writer.connect() as connection:
                alone = _lock(connection, self.name, exclusive)
                self._prepare(connection)
        except BaseException:
            self.release()
            raise
        return alone

    def _prepare(self, connection: Connection) -> None:
        with connection.begin():
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({APPLICATION_ID}, {SCHEMA})")
            version = schema_of(connection)
            if version is None:
                make(connection)
                wide_rows(connection)
            elif version > SCHEMA_VERSION:
                raise newer(self.name, version, _maker(connection))
            elif version < SCHEMA_VERSION:
                upgrade(connection, version)
            complete(connection)  # a process that was loading may have been killed

    def busy(self) -> bool:
        return True  # any number of processes may write

    def verify(self) -> None:
        with self._asked(), self.reader().connect() as connection:
            version = schema_of(connection)
            if version is None:
                raise StoreError(f"there is no store at {self.name}; open it without read_only to make one")
            if version > SCHEMA_VERSION:
                raise newer(self.name, version, _maker(connection))
            if version < SCHEMA_VERSION:
                raise older(self.name, version)

    @contextmanager
    def _asked(self) -> Any:
        try:
            yield
        except OperationalError as error:  # not there, or not there yet
            raise StoreLost(f"cannot open {self.name} as a store: {str(error.orig).strip()}") from error
        except DatabaseError as error:
            raise StoreError(f"cannot open {self.name} as a store: {str(error.orig).strip()}") from error

    def release(self) -> None:
        if self._writer is not None and self._writer.pool.checkedin():  # type: ignore[attr-defined]
            # The server sees the end of a connection some time later; whoever comes next must not wait for that.
            with suppress(DatabaseError), self._writer.connect() as connection:
                connection.exec_driver_sql("SELECT pg_advisory_unlock_all()")
        for engine in (self._reader, self._writer):
            if engine is not None:
                engine.dispose()

    # -- connections --------------------------------------------------------------------------------------------

    def reader(self) -> Engine:
        if self._reader is None:
            self._reader = self._connect(read_only=True)
        return self._reader

    def writer(self) -> Engine:
        if self._writer is None:
            raise StoreError(f"{self.name} was opened read-only; open it without read_only to write")
        return self._writer

    def _connect(self, *, read_only: bool) -> Engine:
        """Readers see one state per transaction; a writer has one connection, which also holds its lock."""
        pool = {"pool_size": 5} if read_only else {"pool_size": 1, "max_overflow": 0}
        level = "REPEATABLE READ" if read_only else "READ COMMITTED"
        who = f"treewright {os.getpid()}"
        engine = create_engine(
            self._url, paramstyle="format", isolation_level=level, connect_args={"application_name": who}, **pool
        )

        @event.listens_for(engine, "connect")
        def configure(raw: Any, _record: Any) -> None:
            before, raw.autocommit = raw.autocommit, True
            raw.execute("SET default_transaction_read_only = " + ("on" if read_only else "off"))
            raw.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'" if not read_only else "SELECT 1")
            raw.autocommit = before

        return engine

    def plain(self) -> Engine:
        return self._connect(read_only=False)

    @contextmanager
    def transaction(self, connection: Connection, durable: bool) -> Any:
        with connection.begin():
            if durable:
                connection.exec_driver_sql("SET LOCAL synchronous_commit = on")
            yield

    def insertion(self, table: Table, ignore: bool = False) -> str:
        return _insertion(table, ignore)

    def insert(self, connection: Connection, table: Table, rows: Sequence[Row]) -> None:
        connection.exec_driver_sql(_insertion(table, False), rows)

    def facts(self, connection: Connection) -> Facts:
        return Facts(self._url, self.name)

    def load(self, connection: Connection, table: Table, constants: dict[str, Any], parts: Iterable[Part]) -> None:
        """By one COPY, which the server works on while the next part is made."""
        raw: Any = connection.connection.cursor()
        rows = Rows(table, constants)
        names = ", ".join(f'"{name}"' for name in rows.names)
        try:
            with raw.copy(f"COPY {table.name} ({names}) FROM STDIN (FORMAT BINARY)") as copy:
                copy.write(START)
                for part in parts:
                    copy.write(rows.of(part))
                copy.write(END)
        except (_driver().Error, OverflowError) as error:
            raise StoreError(f"cannot write to {self.name}: {str(error).strip()}") from error

    def loading(self) -> AbstractContextManager[None]:
        """A store with few rows is loaded without what is faster to make at the end, see `bare`."""
        return bare(self.writer())

    def retryable(self, error: Exception) -> bool:
        return getattr(getattr(error, "orig", error), "sqlstate", None) in AGAIN

    # -- upkeep -------------------------------------------------------------------------------------------------

    def pages(self, connection: Connection) -> list[str]:
        """PostgreSQL looks after its own pages: pg_amcheck reads them all."""
        return []

    def orphans(self, connection: Connection) -> list[str]:
        """Foreign keys are enforced by the database."""
        return []

    def size(self) -> int:
        with self.reader().connect() as connection:
            return int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one())

    def shrink(self) -> None:
        with self.writer().connect() as connection:
            raw: Any = connection.connection.driver_connection
            before, raw.autocommit = raw.autocommit, True
            raw.execute("VACUUM (FULL, ANALYZE)")
            raw.autocommit = before


def _driver() -> Any:
    """psycopg, which is needed here alone."""
    try:
        return import_module("psycopg")
    except ImportError as error:
        raise StoreError("a store in PostgreSQL needs psycopg: pip install 'treewright[postgres]'") from error


class Facts:
    """A connection that commits each insert at once. Its order on disk is before that of any row referring to it."""

    def __init__(self, url: URL, name: str) -> None:
        psycopg = self._psycopg = _driver()
        plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
        try:
            self._connection = psycopg.connect(plain, autocommit=True, application_name=f"treewright {os.getpid()}")
            self._connection.execute("SET synchronous_commit = off")  # the commit of the rows syncs the log before it
        except psycopg.Error as error:
            raise away(name, error) from error

    def add(self, table: Table, rows: Iterable[Row]) -> None:
        """In the order of their keys, or two writers could wait for each other."""
        ordered = sorted(rows, key=lambda row: row[0])
        try:
            self._connection.cursor().executemany(_insertion(table, True), ordered)
        except self._psycopg.OperationalError as error:
            raise OSError(str(error)) from error

    def close(self) -> None:
        with suppress(Exception):
            self._connection.close()


def _lock(connection: Connection, name: str, exclusive: bool) -> bool:
    """Takes the lock that writers share; True if nobody else has it. It lives as long as the connection."""
    raw: Any = connection.connection.driver_connection
    before, raw.autocommit = raw.autocommit, True
    try:
        alone = bool(raw.execute(f"SELECT pg_try_advisory_lock({APPLICATION_ID}, {WRITERS})").fetchone()[0])
        if exclusive:
            if not alone:
                raise StoreError(f"{name} is being written by {_writers(raw)}; stop that first")
            return True
        raw.execute(f"SET lock_timeout = '{LOCK_SECONDS}s'")
        raw.execute(f"SELECT pg_advisory_lock_shared({APPLICATION_ID}, {WRITERS})")
        if alone:
            raw.execute(f"SELECT pg_advisory_unlock({APPLICATION_ID}, {WRITERS})")
        return alone
    finally:
        if not raw.closed:
            raw.autocommit = before


def _writers(raw: Any) -> str:
    found = raw.execute(
        "SELECT DISTINCT a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid "
        f"WHERE l.locktype = 'advisory' AND l.classid = {APPLICATION_ID} AND l.objid = {WRITERS} AND l.granted"
    ).fetchall()
    return ", ".join(sorted(name or "another program" for (name,) in found)) or "another process"


def _maker(connection: Connection) -> str:
    return str(connection.execute(meta.select().where(meta.c.name == "treewright")).one().value)


@lru_cache
def _insertion(table: Table, ignore: bool) -> str:
    statement = insert(table)
    dialect: Any = PGDialect_psycopg
    return str(
        (statement.on_conflict_do_nothing() if ignore else statement).compile(dialect=dialect(paramstyle="format"))
    )
