"""Does a restart bring an MCP server back to its first state? A probe: read, write, restart, read again.

A server is called fresh when a new process finds the first state. Where it keeps its state in a file or a database of
its own that is not so, and going back by a restart would show one branch what another did, without a word. So what
harmless calls answered at the first start is asked for again at the first starts after something was written, in any
session of the world: an answer that is another one, and stays so over one more restart, was outlived by the state. One
that changes with every restart (a clock, a process id, chance) says nothing and is not asked again. Where another
session wrote between the two readings, a change says neither.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action

__all__ = ["Doubt", "Freshness"]

Ask = Callable[[Action], Awaitable[str]]
"""Makes a call that only reads and gives its answer as text."""

MAX_ASKED = 8
ENOUGH = 3  # starts after a write that found the first state; then the server is believed
DOUBTS = 8  # times that a call is asked again where others wrote meanwhile


@dataclass(frozen=True, slots=True)
class Doubt:
    """Answers unlike those at the first start; `writes` before they were read, None where one was under way."""

    answers: Mapping[Action, str]
    writes: int | None


class Freshness:
    """What the sessions of one world know of their server's restarts; shared between them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.first: dict[Action, str] | None = None
        self.written = False
        self._passed = 0
        self._writes, self._writing = 0, 0  # that have ended, and that are under way
        self._doubted = Counter[Action]()
        self._gates: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

    async def started(self, ask: Ask, harmless: Sequence[Action]) -> Doubt | None:
        """To be called at every start: what differs from the first start, if something was written since.

        Where something does, the server must be started once more and `judge` be asked.
        """
        async with self._gates.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            if self.first is None:
                told = [(call, await ask(call)) for call in harmless[:MAX_ASKED]]
                self.first = {call: text for call, text in told if await ask(call) == text}
                return None
        if not self.written or self._passed >= ENOUGH:
            return None
        writes = None if self._writing else self._writes
        found = {call: await ask(call) for call in self.first}
        differing = {call: text for call, text in found.items() if text != self.first.get(call, text)}
        self._passed += not differing
        return Doubt(differing, writes) if differing else None

    async def judge(self, ask: Ask, doubt: Doubt) -> None:
        """After one more start. Raises TreewrightError where an answer stayed what the writes had made of it."""
        assert self.first is not None
        for call, text in doubt.answers.items():
            first = self.first.get(call, text)
            if await ask(call) == text != first:
                raise TreewrightError(self._refusal(call, first, text))
            self._doubted[call] += 1
            if self._writes == doubt.writes or self._doubted[call] >= DOUBTS:
                self.first.pop(call, None)  # it changes by itself, or nothing can be made out

    @contextmanager
    def writing(self, for_good: bool) -> Iterator[None]:
        """Around a call that is no reading. `for_good`: in a live world, where no restart is to undo it; what shows
        afterwards is no evidence any more."""
        self.written = True
        if for_good:
            self._passed = ENOUGH
        self._writing += 1
        try:
            yield
        finally:
            self._writing -= 1
            self._writes += 1

    def saw(self, call: Action, text: str) -> None:
        """A policy's own reading of the first state, in a server that nothing was written to."""
        if self.first is not None and not self.written and len(self.first) < MAX_ASKED:
            self.first.setdefault(call, text)

    def _refusal(self, call: Action, first: str, now: str) -> str:
        name = call.name
        return (
            f"{self.name} is not fresh: what was written outlives a restart. {name} answered {first!r:.80} at the "
            f"first start and {now!r:.80} after a write and two restarts, so going back by a restart would show one "
            "branch what another did. Give the server a folder to keep its state in (folder = …, with {folder} in "
            f"command or env), or write fresh = false; if {name} tells a clock or chance, write probe = false"
        )
