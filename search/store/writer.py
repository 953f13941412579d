"""The writer: one thread, one connection, one queue.

Jobs run in the order they were given. What waits in the queue when the thread comes back goes into one transaction, at
most 64 jobs: under load the disk sets the size of a group, without load nothing waits. A job that is wrong fails
alone; when the disk fails, every waiter and every later job gets the error, and nothing that was acknowledged is lost.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Container, Generator, Hashable, Iterable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.exc import DatabaseError, OperationalError

from treewright.search.store.database import Database, Shared
from treewright.search.store.errors import StoreError, StoreLost, away
from treewright.search.store.models import blobs
from treewright.search.store.values import Row, compress

__all__ = ["Batch", "Writer"]

GROUP = 64
KNOWN_BLOBS = 100_000
TRIES = 5

Work = Callable[["Batch"], Any]


class Promise(asyncio.Future[Any]):
    """A future that knows whether somebody awaited it: only errors that nobody will see are raised by flush."""

    awaited = False

    def __await__(self) -> Generator[Any, None, Any]:
        self.awaited = True
        return super().__await__()


@dataclass(slots=True)
class Job:
    """One piece of work; `durable` also survives a loss of power."""

    work: Work
    durable: bool
    future: Promise


class Batch:
    """The rows of one transaction, gathered per table so that each table sees one bulk insert."""

    def __init__(self, connection: Connection, database: Database, facts: Shared, known: Container[str]) -> None:
        self._connection = connection
        self._database = database
        self._facts = facts
        self._known = known
        self._rows: dict[Table, list[Row]] = {}
        self._once: set[Hashable] = set()
        self._later: dict[Callable[[Batch, list[Any]], None], list[Any]] = {}
        self.blobs: dict[str, bytes] = {}

    @property
    def connection(self) -> Connection:
        """For statements of one's own; the rows gathered so far go first."""
        self.flush()
        return self._connection

    def once(self, what: Hashable, check: Callable[[Connection], None]) -> None:
        """Runs a check that holds until the end of the transaction, unless it was run in it before."""
        if what not in self._once:
            check(self._connection)
            self._once.add(what)

    def add(self, table: Table, rows: Iterable[Row]) -> None:
        """Gathers rows that have every column of the table, in its order."""
        self._rows.setdefault(table, []).extend(rows)

    def later(self, write: Callable[[Batch, list[Any]], None], what: Any) -> None:
        """Gathers what `write` turns into rows all at once: before the next statement, at the latest at the end."""
        self._later.setdefault(write, []).append(what)

    def fact(self, table: Table, rows: Iterable[Row]) -> None:
        """Inserts rows that other writers may have inserted already."""
        self._facts.add(table, rows)

    def flush(self) -> None:
        later, self._later = self._later, {}
        for write, gathered in later.items():
            write(self, gathered)
        fresh = [
            (name, *compress(data))
            for name, data in self.blobs.items()
            if name not in self._known and name not in self._once
        ]
        if fresh:
            self._facts.add(blobs, fresh)
            self._once.update(row[0] for row in fresh)
        for table, rows in self._rows.items():
            if rows:
                self._database.insert(self._connection, table, rows)
        self._rows.clear()


class Writer:
    """Runs jobs against the one writing connection of this process.

    on_rollback  called before jobs of a failed group run again, one at a time
    """

    def __init__(self, database: Database, on_rollback: Callable[[], None]) -> None:
        self._database = database
        self._name = name = database.name
        self._on_rollback = on_rollback
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._known: OrderedDict[str, None] = OrderedDict()
        self._broken: StoreError | None = None
        self._failed: list[tuple[Promise, StoreError]] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"store {name}", daemon=True)
        self._thread.start()

    def submit(self, work: Work, *, durable: bool = False) -> asyncio.Future[Any]:
        """Queues a job; the future holds its result once it is committed. Must be called in a running event loop.

        If nobody awaits it, the next flush or close raises its error.
        """
        if self._closed:
            raise StoreError(f"{self._name} is closed; open it again")
        if self._broken is not None:
            raise self._broken
        future = Promise(loop=asyncio.get_running_loop())
        self._queue.put(Job(work, durable, future))
        return future

    async def flush(self) -> None:
        """Returns once everything queued before is committed; raises the first error that nobody awaited."""
        await self.submit(lambda batch: None)
        self._raise_unseen()

    def close(self) -> None:
        """Commits what is queued and ends the thread; raises the first error that nobody awaited."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._thread.join()
        self._raise_unseen()

    def _raise_unseen(self) -> None:
        failed, self._failed = self._failed, []
        for future, error in failed:
            if not future.awaited:
                raise error

    # -- in the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with self._database.writer().connect() as connection, ExitStack() as stack:
            facts: Shared | None = None
            try:
                facts = stack.enter_context(closing(self._database.facts(connection)))
            except StoreError as error:
                self._broken = error
            while (group := self._next()) is not None:
                if group:
                    self._answer(group, self._commit(connection, facts, group))

    def _next(self) -> list[Job] | None:
        """What waits in the queue, at least one job; None at the end."""
        group: list[Job] = []
        try:
            while len(group) < GROUP:
                job = self._queue.get(block=not group)
                if job is None:
                    if group:
                        self._queue.put(None)
                    return group or None
                group.append(job)
        except Empty:
            pass
        return group

    def _commit(self, connection: Connection, facts: Shared | None, group: list[Job], tries: int = TRIES) -> list[Any]:
        """The result or the error of each job. A group that fails is run again one job at a time."""
        if self._broken is not None or facts is None:
            return [self._broken] * len(group)
        try:
            return self._transact(connection, facts, group)
        except Exception as error:
            self._on_rollback()
            if tries > 1 and self._database.retryable(error):
                return self._commit(connection, facts, group, tries - 1)
            if isinstance(error, OperationalError | OSError | MemoryError) or type(error) is DatabaseError:
                self._broken = self._lost(error)
                self._broken.__cause__ = error
                return [self._broken] * len(group)
            if len(group) > 1:
                return [result for job in group for result in self._commit(connection, facts, [job])]
            return [_explain(self._name, error)]

    def _lost(self, error: Exception) -> StoreLost:
        if self._database.shared and not isinstance(error, MemoryError):
            return away(self._name, error)
        return StoreLost(
            f"cannot write {self._name}: {getattr(error, 'orig', error)}; everything acknowledged is kept: "
            "make room or repair the disk, then open the store again and resume"
        )

    def _transact(self, connection: Connection, facts: Shared, group: list[Job]) -> list[Any]:
        with self._database.transaction(connection, any(job.durable for job in group)):
            batch = Batch(connection, self._database, facts, self._known)
            results = [job.work(batch) for job in group]
            batch.flush()
        for name in batch.blobs:
            self._known[name] = None
        while len(self._known) > KNOWN_BLOBS:
            self._known.popitem(last=False)
        return results

    def _answer(self, group: list[Job], results: list[Any]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
        for job, result in zip(group, results, strict=True):
            if isinstance(result, StoreError):
                self._failed.append((job.future, result))
            by_loop.setdefault(job.future.get_loop(), []).append((job.future, result))
        for loop, answers in by_loop.items():
            with suppress(RuntimeError):  # the loop was closed, nobody waits
                loop.call_soon_threadsafe(_resolve, answers)


def _resolve(answers: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in answers:
        if future.done():
            continue
        if isinstance(result, StoreError):
            future.set_exception(result)
            future.exception()  # seen: flush and close raise it for those who do not await
        else:
            future.set_result(result)


def _explain(name: str, error: Exception) -> StoreError:
    if isinstance(error, StoreError):
        return error
    story = StoreError(f"cannot write to {name}: {type(error).__name__}: {str(error).splitlines()[0]}")
    story.__cause__ = error
    return story
