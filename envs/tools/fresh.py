"""Does a restart bring an MCP server back to its first state? A probe: read, write, restart, read again.

A server is called fresh when a new process finds the first state. Where it keeps its state in a file or a database of
its own that is not so, and going back by a restart would show one branch what another did, without a word. So what
harmless calls answered at the first start is asked for again at the first starts after something was written, in any
session of the world: an answer that is another one, and stays so over one more restart, was outlived by the state. One
that changes with every restart (a clock, a process id, chance) says nothing and is not asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from weakref import WeakKeyDictionary

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action

__all__ = ["Freshness"]

Ask = Callable[[Action], Awaitable[str]]
"""Makes a call that only reads and gives its answer as text."""

MAX_ASKED = 8
ENOUGH = 3  # starts after a write that found the first state; then the server is believed


class Freshness:
    """What the sessions of one world know of their server's restarts; shared between them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.first: dict[Action, str] | None = None
        self.written = False
        self._passed = 0
        self._gates: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

    async def started(self, ask: Ask, harmless: Sequence[Action]) -> Mapping[Action, str]:
        """To be called at every start: what differs from the first start, if something was written since.

        Where it is not empty, the server must be started once more and `judge` be asked.
        """
        async with self._gates.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            if self.first is None:
                told = [(call, await ask(call)) for call in harmless[:MAX_ASKED]]
                self.first = {call: text for call, text in told if await ask(call) == text}
                return {}
        if not self.written or self._passed >= ENOUGH:
            return {}
        found = {call: await ask(call) for call in self.first}
        differing = {call: text for call, text in found.items() if text != self.first.get(call, text)}
        self._passed += not differing
        return differing

    async def judge(self, ask: Ask, differing: Mapping[Action, str]) -> None:
        """After one more start. Raises TreewrightError where an answer stayed what the writes had made of it."""
        assert self.first is not None
        for call, text in differing.items():
            if await ask(call) == text:
                raise TreewrightError(self._refusal(call, self.first[call], text))
            self.first.pop(call, None)

    def wrote(self, for_good: bool) -> None:
        """A call that is no reading was made. `for_good`: in a live world, where no restart is to undo it; what shows
        afterwards is no evidence any more."""
        self.written = True
        if for_good:
            self._passed = ENOUGH

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
