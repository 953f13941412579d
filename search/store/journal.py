"""The journal of irreversible actions: intent durable, then dispatch, then outcome.

Every row is on disk, not only in the page cache, before the call that wrote it returns. It promises at most once, not
exactly once: an entry that stayed at `dispatched` when the process died may or may not have happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, func, insert, select

from treewright.envs.redact import Redactor
from treewright.envs.types import Observation
from treewright.search.store.codec import Encoder, decode_observation
from treewright.search.store.errors import StoreError
from treewright.search.store.models import journal, trees
from treewright.search.store.reading import Blobs, key_of
from treewright.search.store.values import unescape
from treewright.search.store.writer import Batch, Writer

__all__ = ["Journal", "JournalEntry", "JournalState"]


class JournalState(StrEnum):
    """INTENT about to be dispatched; DISPATCHED sent, answer unknown; DONE, FAILED answered; IN_DOUBT never known."""

    INTENT = "intent"
    DISPATCHED = "dispatched"
    DONE = "done"
    FAILED = "failed"
    IN_DOUBT = "in_doubt"


NEXT = {
    JournalState.INTENT: {JournalState.DISPATCHED, JournalState.FAILED},
    JournalState.DISPATCHED: {JournalState.DONE, JournalState.FAILED, JournalState.IN_DOUBT},
    JournalState.IN_DOUBT: {JournalState.DONE, JournalState.FAILED},
    JournalState.DONE: set(),
    JournalState.FAILED: set(),
}


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One call of an irreversible action and how far it got. `observation` is None until it is answered.

    reward, over  of a whole action that is done: what the world gave for it, and whether it ended the episode; None
                  where that is not known
    """

    id: int
    tree_id: str
    node: int
    call: int
    action_key: str
    state: JournalState
    observation: Observation | None
    reward: float | None = None
    over: bool | None = None


class Journal:
    """Entries of one store, made by TreeStore.journal. Writing must happen in a running event loop."""

    def __init__(
        self,
        writer: Callable[[], Writer],
        snapshot: Callable[[], AbstractContextManager[Connection]],
        redact: Redactor,
        guard: Callable[[Batch, str], None],
    ) -> None:
        self._writer = writer
        self._snapshot = snapshot
        self._redact = redact
        self._guard = guard

    def pending(self, tree_id: str | None = None) -> list[JournalEntry]:
        """Entries without a known answer, in order of intent: of one tree, or of the whole store."""
        return [e for e in self.entries(tree_id) if e.state not in (JournalState.DONE, JournalState.FAILED)]

    def entries(self, tree_id: str | None = None) -> list[JournalEntry]:
        """Every entry in its last state, in order of intent."""
        with self._snapshot() as connection:
            return read_entries(connection, tree_id)

    async def intent(self, tree_id: str, node: int, call: int, action_key: str) -> int:
        """Records that call number `call` of a node's action is about to be dispatched; returns the entry's id."""

        def work(batch: Batch) -> int:
            self._guard(batch, tree_id)
            values = {
                "tree": key_of(batch.connection, tree_id),
                "node": node,
                "call": call,
                "action": Encoder(self._redact).text(action_key),
                "state": JournalState.INTENT.value,
                "at": time.time(),
            }
            written = batch.connection.execute(insert(journal).values(values).returning(journal.c.id))
            return int(written.scalar_one())

        entry: int = await self._writer().submit(work, durable=True)
        return entry

    async def dispatched(self, entry: int) -> None:
        """Records that the action is being sent. Call it, await it, then send."""
        await self._step(entry, JournalState.DISPATCHED, None)

    async def outcome(
        self,
        entry: int,
        state: JournalState,
        observation: Observation | None = None,
        *,
        reward: float | None = None,
        over: bool | None = None,
    ) -> None:
        """Records the answer: DONE, FAILED or IN_DOUBT, with what was seen, the reward and whether it was the end."""
        await self._step(entry, JournalState(state), observation, reward, over)

    async def _step(
        self,
        entry: int,
        state: JournalState,
        observation: Observation | None,
        reward: float | None = None,
        over: bool | None = None,
    ) -> None:
        def work(batch: Batch) -> None:
            rows = _rows(batch.connection, (journal.c.id == entry) | (journal.c.entry == entry))
            if not rows or rows[0].entry is not None:
                raise StoreError(f"journal entry {entry} does not exist; journal.intent() gives the id")
            tree_id = select(trees.c.id).where(trees.c.key == rows[0].tree)
            self._guard(batch, batch.connection.execute(tree_id).scalar_one())
            now = JournalState(rows[-1].state)
            if state not in NEXT[now]:
                raise StoreError(f"journal entry {entry} is {now}, it cannot become {state}")
            encoder = Encoder(self._redact)
            seen = encoder.observation(observation) if observation is not None else (None,) * 4
            batch.blobs.update(encoder.blobs)
            first = rows[0]
            values = {
                "entry": entry,
                "tree": first.tree,
                "node": first.node,
                "call": first.call,
                "action": first.action,
                "state": state.value,
                **dict(zip(("observation", "fingerprint", "provenance", "parts"), seen, strict=True)),
                "at": time.time(),
                "reward": reward,
                "over": over,
            }
            batch.connection.execute(insert(journal), values)

        await self._writer().submit(work, durable=True)


def _rows(connection: Connection, where: Any) -> list[Any]:
    return list(connection.execute(select(journal).where(where).order_by(journal.c.id)))


def read_entries(connection: Connection, tree_id: str | None) -> list[JournalEntry]:
    """Every entry in its last state, in order of intent; of one tree or of all."""
    last = select(func.max(journal.c.id)).group_by(func.coalesce(journal.c.entry, journal.c.id))
    query = select(journal, trees.c.id.label("tree_id")).join(trees, trees.c.key == journal.c.tree)
    query = query.where(journal.c.id.in_(last)).order_by(func.coalesce(journal.c.entry, journal.c.id))
    if tree_id is not None:
        query = query.where(trees.c.id == tree_id)
    fetch = Blobs(connection)
    return [
        JournalEntry(
            row.entry or row.id,
            row.tree_id,
            row.node,
            row.call,
            unescape(row.action),
            JournalState(row.state),
            decode_observation((row.observation, row.fingerprint, row.provenance, row.parts), fetch),
            row.reward,
            row.over,
        )
        for row in connection.execute(query)
    ]
