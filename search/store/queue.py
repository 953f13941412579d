"""Work for many processes: each task is leased to one of them for a while, and whoever lost a lease can write no more.

A lease carries a token that grows with every lease of its task. Every transaction that writes a leased tree reads the
task's token under a row lock first: a process that was stopped beyond its lease, while another went on with the task,
finds a higher one and gets `Fenced`; it cannot write between the check and its commit either, since a lease that is
locked so is not given away. Times are the database's, so clocks of machines need not agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, Double, Engine, func, literal_column, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import OperationalError

from treewright.search.store.errors import Fenced, StoreError, away
from treewright.search.store.models import tasks

__all__ = ["Lease", "Queue", "check_lease"]

NOW = literal_column("extract(epoch from clock_timestamp())::float8", Double)
TRIES = 3


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to grow one tree until the lease ends, which `renew` puts off.

    position  which task of the run it is;  token  grows with every lease of the task
    tries     how often it was leased, this time included
    """

    tree_id: str
    position: int
    token: int
    tries: int


class Queue:
    """The tasks of one store, made by TreeStore.queue. Every call is one short transaction of its own.

    Calls raise StoreLost while the database does not answer; they may be made again.
    """

    def __init__(self, engine: Engine, snapshot: Callable[[], AbstractContextManager[Connection]], name: str) -> None:
        self._engine = engine
        self._snapshot = snapshot
        self._name = name

    @contextmanager
    def _begun(self) -> Iterator[Connection]:
        """A transaction. Raises StoreLost where the database does not answer."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except OperationalError as error:
            raise away(self._name, error) from error

    def add(self, run: str, tree_ids: Iterable[str]) -> int:
        """Puts the trees to be grown in line, in this order, and returns how many were not there before.

        A task that had failed is waiting again afterwards.
        """
        given = list(tree_ids)
        rows = [
            {"tree": tree, "run": run, "position": i, "state": "waiting", "token": 0, "tries": 0}
            for i, tree in enumerate(given)
        ]
        with self._begun() as connection:
            added = 0
            if rows:
                new = insert(tasks).on_conflict_do_nothing().returning(tasks.c.tree)
                added = len(connection.execute(new, rows).all())
            again = update(tasks).where(tasks.c.run == run, tasks.c.state == "failed", tasks.c.tree.in_(given))
            connection.execute(again.values(state="waiting", tries=0, why=None))
        return added

    def lease(self, run: str, owner: str, seconds: float) -> Lease | None:
        """The first task of the run that waits or whose lease has ended; None if there is none now."""
        free = (tasks.c.state == "waiting") | ((tasks.c.state == "leased") & (tasks.c.until < NOW))
        line = select(tasks.c.tree).where(tasks.c.run == run, free).order_by(tasks.c.position).limit(1)
        taken = (
            update(tasks)
            .where(tasks.c.tree == line.with_for_update(skip_locked=True).scalar_subquery())
            .values(
                state="leased",
                owner=owner,
                token=tasks.c.token + 1,
                tries=tasks.c.tries + 1,
                until=NOW + seconds,
            )
            .returning(tasks.c.tree, tasks.c.position, tasks.c.token, tasks.c.tries)
        )
        with self._begun() as connection:
            row = connection.execute(taken).one_or_none()
        return None if row is None else Lease(*row)

    def renew(self, lease: Lease, seconds: float) -> None:
        """Puts the end of a lease off. Raises Fenced if the task went to somebody else."""
        self._change(lease, until=NOW + seconds)

    def done(self, lease: Lease) -> None:
        """The tree is finished. Raises Fenced if the task went to somebody else."""
        self._change(lease, state="done", until=None)

    def give_back(self, lease: Lease, why: str | None = None, tries: int = TRIES) -> None:
        """Leaves the task to others; after `tries` leases that failed with a reason it counts as failed."""
        failed = why is not None and lease.tries >= tries
        self._change(lease, state="failed" if failed else "waiting", until=None, why=why)

    def _change(self, lease: Lease, **values: object) -> None:
        mine = (tasks.c.tree == lease.tree_id) & (tasks.c.token == lease.token) & (tasks.c.state == "leased")
        with self._begun() as connection:
            changed = connection.execute(update(tasks).where(mine).values(values)).rowcount
        if changed != 1:
            raise fenced(lease.tree_id)

    def counts(self, run: str) -> dict[str, int]:
        """How many tasks of the run are waiting, leased, done and failed."""
        query = select(tasks.c.state, func.count()).where(tasks.c.run == run).group_by(tasks.c.state)
        with self._snapshot() as connection:
            found = {state: number for state, number in connection.execute(query)}
        return {state: found.get(state, 0) for state in ("waiting", "leased", "done", "failed")}

    def failures(self, run: str) -> dict[str, str]:
        """Why tasks failed, by tree id."""
        query = select(tasks.c.tree, tasks.c.why).where(tasks.c.run == run, tasks.c.state == "failed")
        with self._snapshot() as connection:
            return {tree: why for tree, why in connection.execute(query)}


def fenced(tree_id: str) -> StoreError:
    return Fenced(f"tree {tree_id}: its lease has ended and the task went to another process; drop this search")


def check_lease(connection: Connection, tree_id: str, token: int) -> None:
    """Raises Fenced unless the newest lease of the tree has this token; holds it until the transaction ends."""
    query = select(tasks.c.token).where(tasks.c.tree == tree_id).with_for_update(read=True)
    if connection.execute(query).scalar_one_or_none() != token:
        raise fenced(tree_id)
