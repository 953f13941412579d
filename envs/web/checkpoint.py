"""Coming back on sites that save no state: address, cookies and storage first, verified replay where that fails.

A snapshot holds the address, what the browser keeps (cookies, local storage, IndexedDB) and the trail of actions since
reset. Restoring opens a fresh context beside the present one and takes its place only when the fingerprint matches.
What an address does not bring back (session storage, a page's own memory) is repeated from the nearest earlier
checkpoint, unless an action lies between that cannot be undone. Which checkpoint is tried first is a matter of the
prices measured so far.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from treewright.envs.errors import Divergence, EnvFault, InvalidAction, RestoreUnsupported, boundary
from treewright.envs.types import Action, Effect, Observation, Restore, Snapshot, StepResult, Task
from treewright.envs.web.environment import FullWebEnvironment

__all__ = ["CheckpointEnvironment", "Prices"]


@dataclass(slots=True)
class Prices:
    """Seconds that each part of the way back took, as running means.

    bare    a fresh context at the start;  stored  one with cookies and storage at an address;  step  one action
    """

    bare: float = 0.1
    stored: float = 0.2
    step: float = 0.1

    def seen(self, part: str, seconds: float) -> None:
        setattr(self, part, 0.7 * getattr(self, part) + 0.3 * seconds)


@dataclass(slots=True)
class _Point:
    """A state on the trail: how it was reached, where it is, and, if a snapshot was taken there, what was stored."""

    action: str
    effect: str
    fingerprint: str
    url: str
    storage: Any = None


class CheckpointEnvironment(FullWebEnvironment):
    """A live site that is come back to by checkpoints; `prices` and `ways` say what that took.

    ways  for each restore so far: how many actions were repeated after the checkpoint

    STATE covers what the browser keeps, not the server: where that has changed, restoring raises Divergence, and the
    page that was open before stays open.
    """

    name = "checkpoints"
    restore_ways = frozenset({Restore.STATE, Restore.REPLAY})

    def __init__(self, start: str, **settings: Any) -> None:
        super().__init__(start, **settings)
        self.prices = Prices()
        self.ways: list[int] = []
        self._trail: list[_Point] = []

    async def reset(self, task: Task, key: int) -> Observation:
        began = time.monotonic()
        seen = await super().reset(task, key)
        self.prices.seen("bare", time.monotonic() - began)
        self._trail = [_Point("", Effect.READ, seen.fingerprint, self._view.url)]
        return seen

    async def step(self, action: Action, key: int) -> StepResult:
        began = time.monotonic()
        result = await super().step(action, key)
        self.prices.seen("step", time.monotonic() - began)
        self._trail.append(_Point(action.key, result.effect, result.observation.fingerprint, self._view.url))
        return result

    async def snapshot(self) -> Snapshot:
        tab = self._live(ended=True)
        with tab.faults(f"{self.name} snapshot"):
            self._trail[-1].storage = await tab.context.storage_state(indexed_db=True)
        kept = {
            "task": asdict(self.task) if self.task else None,
            "trail": [asdict(point) for point in self._trail],
            "history": self._history,
            "answer": self._answer,
        }
        data = json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode()
        return Snapshot(Restore.STATE, data, self._trail[-1].fingerprint, size=len(data))

    async def restore(self, snapshot: Snapshot) -> Observation:
        """Raises Divergence if no checkpoint leads there, RestoreUnsupported for snapshots of another kind."""
        if snapshot.kind is not Restore.STATE:
            raise RestoreUnsupported(f"{self.name} cannot restore a {snapshot.kind} snapshot")
        kept = json.loads(snapshot.data)
        trail = [_Point(**point) for point in kept["trail"]]
        before = self._tab, self._trail, self.task
        self.task = Task(**kept["task"]) if kept["task"] else self.task
        found = ""
        starts = self._starts(trail)
        if not starts:
            raise RestoreUnsupported(
                f"{self.name}: every way back to {snapshot.fingerprint} sends something again that cannot be undone"
            )
        for start in starts:
            self._tab = None
            self._forget()
            seen = None
            try:
                with suppress(InvalidAction, EnvFault), boundary(f"{self.name} restore"):
                    async with asyncio.timeout(self.patience):
                        seen = await self._from(trail, start, kept)
            finally:
                found = seen.fingerprint if seen else found or "nothing"
                there = seen is not None and await self._is(seen, snapshot.fingerprint, len(trail) - 1)
                if not there:
                    await self._leave()
            if there and seen is not None:
                self.ways.append(len(trail) - 1 - start)
                if before[0] is not None:
                    await before[0].close()
                self._trail = trail
                return seen
        self._tab, self._trail, self.task = before
        if self._tab is not None and not self._tab.watcher.dead:
            self._document = -1
            await self._look()
        raise Divergence(snapshot.fingerprint, found, len(trail) - 1)

    async def _is(self, seen: Observation, fingerprint: str, step: int) -> bool:
        """True if what is shown counts as what was recorded, see `same_page`."""
        return seen.fingerprint == fingerprint or await self.recognise(fingerprint, step) is not None

    def _starts(self, trail: Sequence[_Point]) -> list[int]:
        """Where to begin, cheapest first: the start or a checkpoint, with nothing irreversible after it."""
        last = len(trail) - 1
        final = max((i for i, point in enumerate(trail) if Effect(point.effect).needs_commit), default=0)
        prices = {
            i: self.prices.stored + (last - i) * self.prices.step for i in range(final, last + 1) if trail[i].storage
        }
        if final == 0:
            prices[0] = min(prices.get(0, self.prices.bare), self.prices.bare) + last * self.prices.step
        return sorted(prices, key=lambda i: (prices[i], -i))

    async def _from(self, trail: Sequence[_Point], start: int, kept: Mapping[str, Any]) -> Observation:
        """The last point of the trail in a fresh context; an earlier fingerprint that differs ends the attempt."""
        began, point = time.monotonic(), trail[start]
        tab = self._tab = await self._fresh(point.storage or self.storage)
        tab.gate.writes = not self._guarded
        with tab.faults(f"{self.name} restore"):
            tab.watcher.begin()
            await tab.navigate(point.url)
            await self.settle(tab)
            self._may_load = True
            seen = await self._look()
        self.prices.seen("stored" if point.storage else "bare", time.monotonic() - began)
        for step in trail[start + 1 :]:
            if not await self._is(seen, trail[start].fingerprint, start):
                return seen
            start += 1
            seen = (await super().step(Action.from_key(step.action), 0)).observation
        if start == len(trail) - 1 and self._answer is None:
            self._history[:], self._answer = kept["history"], kept["answer"]
            seen = await self._observe()
        return seen
