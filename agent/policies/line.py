"""Who is served next: an admission line in front of a model server, ordered by shared prefix.

A server keeps the keys and values of recent prompts and forgets the least recently used. Draws that share a prefix
should therefore reach it one after the other: siblings first, then cousins. The line changes when a draw is made,
never what it says, since a draw depends on its prompt and seed alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from treewright.envs.errors import TreewrightError

__all__ = ["ORDERS", "PrefixLine", "shared"]

ORDERS = ("prefix", "arrival")
PATIENCE = 32  # times the limit that others may be let in before one that waits
RECENT = 64  # distinct prompts that are taken to be in the server's cache still


@dataclass(slots=True)
class _Waiter:
    ids: tuple[int, ...]
    number: int
    future: asyncio.Future[None]
    since: int
    match: int = 0


@dataclass(slots=True)
class PrefixLine:
    """At most `limit` places; the next free one goes to the draw that shares most with those let in before it.

    order  'prefix': longest common prefix with one of the RECENT prompts let in, then the order of arrival (longest
           shared prefix first, Zheng et al. 2024, arXiv:2312.07104); 'arrival': first come, first served. Nobody is
           passed over more than PATIENCE · limit times.
    """

    limit: int
    order: str = "prefix"
    now: int = 0
    _recent: deque[tuple[int, ...]] = field(default_factory=lambda: deque(maxlen=RECENT))
    _waiting: list[_Waiter] = field(default_factory=list)
    _arrived: int = 0
    _let_in: int = 0
    _alone: bool = False
    _empty: asyncio.Future[None] | None = None

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise TreewrightError(f"concurrency = {self.limit} would let nothing through; give at least 1")
        if self.order not in ORDERS:
            raise TreewrightError(f"order = {self.order!r} is not known; write one of {', '.join(ORDERS)}")

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._waiting)

    @asynccontextmanager
    async def place(self, ids: Sequence[int] = ()) -> AsyncIterator[None]:
        """Waits for a place and holds it; `ids` is the prompt. A cancelled wait leaves the line."""
        waiter = _Waiter(tuple(ids), self._arrived, asyncio.get_running_loop().create_future(), self._let_in)
        self._arrived += 1
        if self.order == "prefix":
            waiter.match = max((shared(waiter.ids, seen) for seen in self._recent), default=0)
        self._waiting.append(waiter)
        self._admit()
        try:
            await waiter.future
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif not waiter.future.cancelled():
                self._leave()
            raise
        try:
            yield
        finally:
            self._leave()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Waits until nobody holds a place and lets nobody in meanwhile: for exchanging weights."""
        await self.shut()
        try:
            yield
        finally:
            self.reopen()

    async def shut(self) -> None:
        """Lets nobody in any more and waits until nobody holds a place."""
        if self._alone:
            raise TreewrightError("weights are being exchanged, or the model sleeps; await that before another one")
        self._alone = True
        if self.now:
            self._empty = asyncio.get_running_loop().create_future()
            try:
                await self._empty
            except asyncio.CancelledError:
                self.reopen()
                raise
            finally:
                self._empty = None

    def reopen(self) -> None:
        self._alone = False
        self._admit()

    def _leave(self) -> None:
        self.now -= 1
        if not self.now and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.now < self.limit and not self._alone:
            waiter = self._next()
            self._waiting.remove(waiter)
            if waiter.future.done():
                continue
            self.now += 1
            self._let_in += 1
            self._remember(waiter.ids)
            waiter.future.set_result(None)

    def _remember(self, ids: tuple[int, ...]) -> None:
        if self.order == "prefix" and ids not in self._recent:
            self._recent.append(ids)
            for waiter in self._waiting:
                waiter.match = max(waiter.match, shared(waiter.ids, ids))

    def _next(self) -> _Waiter:
        first = self._waiting[0]
        if self.order == "arrival" or self._let_in - first.since > PATIENCE * self.limit:
            return first
        return max(self._waiting, key=lambda w: (w.match, -w.number))


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    size = min(len(a), len(b))
    if a[:size] == b[:size]:
        return size
    low, high = 0, size
    while low < high:  # slices compare in C: bisection beats a loop over tokens
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low
