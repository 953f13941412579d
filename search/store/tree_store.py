"""TreeStore: trees on disk, exactly as they grew, and back.

    with TreeStore.open("runs/trees.db") as store:
        await store.create(tree.header)
        await store.append(tree.tree_id, expansion, first_id)       # returns once it is committed
        await store.finish(tree)
        again = store.load(tree.tree_id)

Committed means: it survives the end of this process, however it ends. A loss of power may take the last moments of
node rows, never the middle of them, and never a row of the journal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, func, select, update
from sqlalchemy.exc import DatabaseError, OperationalError

from treewright.envs.redact import Redactor
from treewright.envs.secrecy import in_url, keep_secret
from treewright.search.store.arrays import StoredArrays, load_arrays, load_more, load_reasons, load_scores
from treewright.search.store.bundle import Bundler, Grown
from treewright.search.store.check import check
from treewright.search.store.codec import Encoder, decode_expansion, decode_header
from treewright.search.store.compare import Comparison, compare
from treewright.search.store.database import Database, database_at
from treewright.search.store.ending import end_values, restore_end
from treewright.search.store.errors import StoreError, away
from treewright.search.store.journal import Journal
from treewright.search.store.models import (
    HEADER_COLUMNS,
    expansions,
    nodes,
    runs,
    trees,
)
from treewright.search.store.query import Branch, NodeRow, branches_of, conditions, find_nodes, find_path
from treewright.search.store.queue import Lease, Queue, check_lease
from treewright.search.store.reading import (
    Blobs,
    TreeRow,
    collector_paused,
    end_of,
    expansion_rows,
    header_rows,
    key_of,
    list_trees,
)
from treewright.search.store.values import escape, unescape
from treewright.search.store.writer import Batch, Writer
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import Expansion

__all__ = ["TreeStore"]


@dataclass(slots=True)
class _Cursor:
    """Where a growing tree stands; lives in the writer's thread."""

    key: int
    version: str
    next_seq: int
    next_id: int


class TreeStore:
    """Trees in one SQLite file or one PostgreSQL database.

    A file is written by one process at a time, a database by any number; in each, writing goes through one thread.
    Reading is for all.

    Methods that write queue their work, in order, and give a future: await it until it is committed, or leave it and
    `flush` later. They must be called in a running event loop and raise StoreError once the disk has failed.
    Methods that read are plain calls, safe in any thread, and see what is committed.
    """

    def __init__(self, database: Database, *, read_only: bool, redact: Redactor) -> None:
        self.name = database.name
        self._database = database
        self._redact = redact
        self._encoder = Encoder(redact)  # of expansions, in the writer's thread
        self._bundler = Bundler(self._encoder)
        self._writer: Writer | None = None
        self._cursors: dict[str, _Cursor] = {}
        self._tokens: dict[str, int] = {}
        self._leasing: Engine | None = None
        if read_only:
            database.verify()
        else:
            self._own()
        self._reading = database.reader()

    @classmethod
    def open(cls, path_or_url: str | Path, read_only: bool = False, redact: Redactor | None = None) -> Self:
        """Opens a store, making file and folder if it is to be written. Close it: what is still queued is then written.

        path_or_url  a file, sqlite:///FILE, or postgresql://USER@HOST/DATABASE
        redact       what must never reach the store; by default the secrets in this process's environment

        A store of an older schema that is opened for writing is upgraded. Trees that processes which are gone left
        running become `interrupted`. Raises StoreError if another process writes the file, if a newer version made
        it, or if it is something else.
        """
        keep_secret(*in_url(str(path_or_url)))
        return cls(database_at(path_or_url, read_only), read_only=read_only, redact=redact or Redactor())

    def _own(self) -> None:
        alone = self._database.own()
        try:
            if alone:
                with self._database.writer().begin() as connection:
                    connection.execute(update(trees).where(trees.c.status == "running").values(status="interrupted"))
        except DatabaseError as error:
            self._database.release()
            raise StoreError(f"cannot open {self.name}: {error.orig}") from error
        self._writer = Writer(self._database, self._forget)

    def _forget(self) -> None:
        """After a transaction that failed: what was thought to be written is not."""
        self._cursors.clear()
        self._encoder.take()

    @property
    def title(self) -> str:
        """What people call it: the file, or the database's name."""
        return self.name.partition("?")[0].rpartition("/")[2] or self.name

    def close(self) -> None:
        """Commits what is queued, lets the store go. Raises an error of the writer that nobody awaited."""
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            self._let_go()
            if self._leasing is not None:
                self._leasing.dispose()
            self._database.release()

    def _let_go(self) -> None:
        """Trees that were begun here and not finished are `interrupted` from now on; leased ones go by their lease."""
        mine = [cursor.key for tree_id, cursor in self._cursors.items() if tree_id not in self._tokens]
        if self._writer is None or not mine:
            return
        left = update(trees).where(trees.c.key.in_(mine), trees.c.status == "running").values(status="interrupted")
        with (
            suppress(DatabaseError),
            self._database.writer().begin() as connection,
        ):  # a full disk: `busy` tells as much
            connection.execute(left)
        self._cursors.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except StoreError:
            if error is None:
                raise

    # -- writing ------------------------------------------------------------------------------------------------

    @property
    def journal(self) -> Journal:
        """The journal of irreversible actions; a store opened read-only can only look at it."""
        return Journal(self._pen, self.snapshot, self._redact, self._guard)

    @property
    def queue(self) -> Queue:
        """The tasks that processes share. Raises StoreError for a file, which one process writes."""
        if not self._database.shared:
            raise StoreError(f"{self.name} is written by one process; to share tasks use a postgresql:// store")
        if self._leasing is None:
            self._pen()
            self._leasing = self._database.plain()
        return Queue(self._leasing, self.snapshot, self.name)

    def hold(self, lease: Lease) -> None:
        """From now on this store writes the tree of a lease only as long as it is the newest one of its task."""
        self._tokens[lease.tree_id] = lease.token
        self._cursors.pop(lease.tree_id, None)

    def _guard(self, batch: Batch, tree_id: str) -> None:
        token = self._tokens.get(tree_id)
        if token is not None:
            batch.once((tree_id, token), lambda connection: check_lease(connection, tree_id, token))

    def create(self, header: TreeHeader) -> asyncio.Future[None]:
        """Adds a tree with its root. Fails with StoreError if the tree is there already."""

        names = (header.run, header.task.suite, header.task.id)
        if any(self._redact.text(name) != name for name in names):
            raise StoreError("the name of the run, the suite or the task holds a secret; tree ids need it: rename it")

        def work(batch: Batch) -> None:
            self._guard(batch, header.tree_id)
            if batch.connection.execute(select(trees.c.key).where(trees.c.id == header.tree_id)).first():
                raise StoreError(f"tree {header.tree_id} is in {self.name} already; load it, or raise `attempt`")
            encoder, now = Encoder(self._redact), time.time()
            row, root = encoder.header(header, now)
            batch.blobs.update(encoder.blobs)
            values = dict(zip((*HEADER_COLUMNS, "checksum"), row, strict=True)) | {"status": "running"}
            batch.fact(runs, [(values["run"], now, None)])
            key = batch.connection.execute(trees.insert().values(values).returning(trees.c.key)).scalar_one()
            batch.add(nodes, [(key, *root, 0)])
            self._cursors[header.tree_id] = _Cursor(key, header.policy_version, 0, 1)

        return self._pen().submit(work)

    def append(self, tree_id: str, expansion: Expansion, first_id: int) -> asyncio.Future[None]:
        """Adds the result of one pop whose drafts get ids from `first_id`.

        Fails with StoreError if it does not follow the last one, or if the tree is unknown or done.
        """

        def work(batch: Batch) -> None:
            self._guard(batch, tree_id)
            cursor = self._cursors.get(tree_id) or self._resume(batch, tree_id)
            if expansion.seq != cursor.next_seq or first_id != cursor.next_id:
                raise StoreError(
                    f"tree {tree_id}: expansion {expansion.seq} with first node {first_id} was given where expansion "
                    f"{cursor.next_seq} with first node {cursor.next_id} comes next"
                )
            batch.later(self._grow, Grown(cursor.key, cursor.version, expansion, first_id))
            cursor.next_seq += 1
            cursor.next_id += len(expansion.drafts)

        return self._pen().submit(work)

    append_nowait = append  # for engines that go on at once and flush later

    def _grow(self, batch: Batch, grown: Sequence[Grown]) -> None:
        """Writes what a transaction has gathered, in one go."""
        rows = self._bundler.rows(grown)
        batch.blobs.update(self._encoder.take())
        batch.add(expansions, rows.expansions)
        batch.add(nodes, rows.nodes)

    def finish(self, tree: Tree) -> asyncio.Future[None]:
        """Ends a tree: unseals it, keeps its choice, reasons and everything that was set after growing."""
        tree.reveal()

        def work(batch: Batch) -> None:
            self._guard(batch, tree.tree_id)
            cursor = self._cursors.get(tree.tree_id) or self._resume(batch, tree.tree_id)
            if len(tree) != cursor.next_id or len(tree.pops) != cursor.next_seq:
                raise StoreError(
                    f"tree {tree.tree_id} has {len(tree.pops)} expansions and {len(tree)} nodes, the store has "
                    f"{cursor.next_seq} and {cursor.next_id}; append every expansion before finish"
                )
            values = end_values(tree, Encoder(self._redact))
            batch.connection.execute(update(trees).where(trees.c.key == cursor.key).values(values))
            del self._cursors[tree.tree_id]

        return self._pen().submit(work)

    def end_run(self, run: str) -> asyncio.Future[None]:
        """Marks a run that is one episode: it ended by itself and is not gone on with."""

        def work(batch: Batch) -> None:
            mine = update(runs).where(runs.c.run == escape(run))
            batch.connection.execute(mine.values(ended=time.time()))

        return self._pen().submit(work)

    def interrupt(self, tree_id: str) -> asyncio.Future[None]:
        """Marks a tree that will be resumed later; the next append marks it running again."""

        def work(batch: Batch) -> None:
            self._guard(batch, tree_id)
            growing = (trees.c.key == key_of(batch.connection, tree_id)) & (trees.c.status == "running")
            batch.connection.execute(update(trees).where(growing).values(status="interrupted"))
            self._cursors.pop(tree_id, None)

        return self._pen().submit(work)

    async def flush(self) -> None:
        """Returns once everything queued so far is committed. Raises the first error that nobody awaited."""
        await self._pen().flush()

    def _pen(self) -> Writer:
        if self._writer is None:
            raise StoreError(f"{self.name} was opened read-only; open it without read_only to write")
        return self._writer

    def _resume(self, batch: Batch, tree_id: str) -> _Cursor:
        connection = batch.connection
        key = key_of(connection, tree_id)
        row = connection.execute(select(trees.c.status, trees.c.policy_version).where(trees.c.key == key)).one()
        if row.status == "done":
            raise StoreError(f"tree {tree_id} is done and cannot grow; raise `attempt` to search again")
        connection.execute(update(trees).where(trees.c.key == key).values(status="running"))
        sizes = select(func.count(), func.coalesce(func.sum(expansions.c.drafts), 0)).where(expansions.c.tree == key)
        count, drafts = connection.execute(sizes).one()
        cursor = self._cursors[tree_id] = _Cursor(key, unescape(row.policy_version), count, drafts + 1)
        return cursor

    # -- reading ------------------------------------------------------------------------------------------------

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection whose reads see one state of the store. Raises StoreError where the database does, StoreLost
        while one that is shared does not answer."""
        try:
            with self._reading.connect() as connection:
                yield connection
        except DatabaseError as error:
            if self._database.shared and isinstance(error, OperationalError):
                raise away(self.name, error) from error
            raise StoreError(f"cannot read {self.name}: {error.orig}; restore the file from a copy") from error

    def status(self, tree_id: str) -> str | None:
        """'running', 'interrupted' or 'done'; None for a tree that was never begun."""
        with self.snapshot() as connection:
            found = connection.execute(select(trees.c.status).where(trees.c.id == tree_id)).scalar_one_or_none()
        return None if found is None else str(found)

    def ended(self, run: str) -> bool:
        """Whether `end_run` was told of it."""
        with self.snapshot() as connection:
            found = connection.execute(select(runs.c.ended).where(runs.c.run == escape(run))).scalar_one_or_none()
        return found is not None

    def header(self, tree_id: str) -> TreeHeader:
        """What the tree was started with. Raises StoreError if it is unknown or damaged."""
        with self.snapshot() as connection:
            return decode_header(*header_rows(connection, key_of(connection, tree_id)), Blobs(connection))

    def expansions(self, tree_id: str) -> list[Expansion]:
        """Every committed expansion, equal to what was appended, in order."""
        with self.snapshot() as connection, collector_paused():
            return self._expansions(connection, tree_id)

    def _expansions(self, connection: Connection, tree_id: str) -> list[Expansion]:
        key = key_of(connection, tree_id)
        fetch = Blobs(connection)
        fetch.prefetch(key)
        version = unescape(connection.execute(select(trees.c.policy_version).where(trees.c.key == key)).scalar_one())
        rows = expansion_rows(connection, key, tree_id)
        return [decode_expansion(row, below, version, fetch) for row, below in rows]

    def load(self, tree_id: str) -> Tree:
        """The tree as far as it was committed; a done one is unsealed and has its choice and reasons."""
        with self.snapshot() as connection, collector_paused():
            key = key_of(connection, tree_id)
            tree = Tree.start(decode_header(*header_rows(connection, key), Blobs(connection)))
            for expansion in self._expansions(connection, tree_id):
                tree.apply(expansion)
            end = end_of(connection, key)
        if end.status == "done":
            restore_end(tree, end)
        return tree

    def trees(
        self,
        run: str | None = None,
        suite: str | None = None,
        split: str | None = None,
        success: bool | None = None,
        policy_version: str | None = None,
        status: str | None = None,
        where: Mapping[str, object] | None = None,
    ) -> list[TreeRow]:
        """Summaries in order of creation of the trees for which everything given holds.

        where   more conditions, as {"nodes >=": 20, "task_id in": ["3", "7"]}; see `query.conditions`
        """
        asked: dict[str, object] = {
            "run": run, "suite": suite, "split": split, "policy_version": policy_version, "status": status,
            "success": success,
        }  # fmt: skip
        held = conditions({name: value for name, value in asked.items() if value is not None}) + conditions(where or {})
        with self.snapshot() as connection:
            found = list_trees(connection, held)
        if any(row.status == "running" for row in found) and not self._database.busy():
            # Their process was killed, or could not say so on a full disk: nobody grows them now.
            return [replace(row, status="interrupted") if row.status == "running" else row for row in found]
        return found

    def nodes(
        self,
        action: str | None = None,
        effect: str | None = None,
        status: str | None = None,
        where: Mapping[str, object] | None = None,
        limit: int | None = None,
    ) -> list[NodeRow]:
        """Nodes in order of creation, of the trees for which `where` holds, without what the world showed.

        action   name of a tool that is called in it, or a whole canonical key
        effect   such as "irreversible": as executed, else as declared;  status  what executing it gave, or "draft"
        """
        with self.snapshot() as connection:
            return find_nodes(connection, conditions(where or {}), action, effect, status, limit)

    def path_to(self, tree_id: str, node: int) -> list[NodeRow]:
        """The nodes from the root to `node`, with what the world showed. Raises StoreError if there is no such node."""
        with self.snapshot() as connection:
            return find_path(connection, tree_id, node)

    def branches(self, at_least: float, by: str = "value", where: Mapping[str, object] | None = None) -> list[Branch]:
        """Nodes whose children differ in value by at least `at_least`, the widest gap first.

        by   "value": what the episodes below a child gave, weighted by their shares; "score": the evaluator's estimate
        """
        if by not in ("value", "score"):
            raise StoreError(f"branches cannot be ranked by {by!r}; known: value, score")
        held = conditions(where or {})
        with self.snapshot() as connection, collector_paused():
            found = [row.id for row in connection.execute(select(trees.c.id).where(*held).order_by(trees.c.key))]
            columns = load_arrays(connection, found)
            scores = load_scores(connection, found) if by == "score" else None
        return branches_of(found, columns, scores, at_least)

    def compare(self, first: str, second: str) -> list[Comparison]:
        """Paired success of two runs of this store; see `compare.compare`."""
        return compare(self.trees(run=first), self.trees(run=second))

    def arrays(self, tree_ids: Sequence[str]) -> StoredArrays:
        """[N] numpy columns over the nodes of these trees by name, see `StoredArrays`; estimators take it as it is."""
        names = tuple(tree_ids)

        def more() -> dict[str, NDArray[Any]]:
            with self.snapshot() as connection, collector_paused():
                return load_more(connection, names)

        with self.snapshot() as connection, collector_paused():
            return StoredArrays(load_arrays(connection, names), load_reasons(connection, names), more)

    def check(self) -> list[str]:
        """One line per damage in the file; empty if it is whole."""
        with self.snapshot() as connection:
            return check(connection, self._database)
