"""What policies behind an engine or a server share: a line of waiting draws, deadlines, counters, exchanged weights."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from treewright.agent.policies.line import PrefixLine
from treewright.agent.policies.policy import PolicyStats
from treewright.agent.policies.weights import served_folder, weights_in
from treewright.envs.errors import TreewrightError
from treewright.envs.types import ToolSpec
from treewright.search.types import Context, PolicyFault

T = TypeVar("T")

__all__ = ["ExchangingPolicy", "ServedPolicy", "ToolContext", "amount", "tools_of", "with_tools"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContext(Context):
    """A context that remembers which tools there are: for grammars, and for servers that take schemas."""

    tools: tuple[ToolSpec, ...] = ()


def with_tools(context: Context, tools: Sequence[ToolSpec]) -> ToolContext:
    return ToolContext(
        keep=context.keep, delta=context.delta, ids=context.ids, messages=context.messages, tools=tuple(tools)
    )


def tools_of(context: Context) -> tuple[ToolSpec, ...]:
    """The tools at the context's node; none where it does not know them."""
    return context.tools if isinstance(context, ToolContext) else ()


def amount(name: str, value: Any, *, least: float = -math.inf, above: float = -math.inf, hint: str = "") -> None:
    """Raises TreewrightError for an option that is no number, or too small."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and value >= least and value > above
    if not good:
        bound = f" of at least {least:g}" if least > -math.inf else f" above {above:g}" if above > -math.inf else ""
        raise TreewrightError(f"policy option {name} = {value!r}; give a number{bound}" + (f": {hint}" if hint else ""))


class ServedPolicy:
    """Draws that wait in a line (see PrefixLine) and have a deadline; a subclass makes them.

    concurrency  draws or requests under way at once; the rest waits in the order of `order`
    deadline     seconds for one draw() with all its waiting and retries; then it is a PolicyFault
    """

    def __init__(
        self,
        *,
        name: str,
        version: str,
        temperature: float,
        concurrency: int,
        order: str,
        deadline: float,
        grammar: bool,
    ) -> None:
        amount("temperature", temperature, least=0.0, hint="0 is greedy, 1 samples")
        amount("deadline", deadline, above=0.0, hint="seconds for one draw")
        self.name, self._version = name, version
        self.temperature, self.deadline, self.grammar = float(temperature), deadline, grammar
        self.line = PrefixLine(concurrency, order)
        self.stats = PolicyStats()
        self._busy, self._since = 0, 0.0
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def version(self) -> str:
        return self._version

    @property
    def sampling(self) -> dict[str, Any]:
        """What differs from plain sampling at temperature 1; kept in the header of every tree."""
        out: dict[str, Any] = {} if self.temperature == 1.0 else {"temperature": self.temperature}
        return out | ({"grammar": "actions of the node's tools"} if self.grammar else {})

    async def _in_time(self, drawn: Awaitable[T], last: Callable[[], str]) -> T:
        """What `drawn` gives. Raises PolicyFault after the deadline, with what `last` says; counts faults."""
        try:
            async with asyncio.timeout(self.deadline):
                return await drawn
        except TimeoutError as error:
            self.stats.faults += 1
            raise PolicyFault(f"{self.name}: no answer within {self.deadline:g} s{last()}") from error
        except PolicyFault:
            self.stats.faults += 1
            raise

    @asynccontextmanager
    async def _place(self, ids: Sequence[int]) -> AsyncIterator[None]:
        """A place in the line, counted as time at work. A line does not outlive the event loop it was made in."""
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            self._busy, self.line = 0, PrefixLine(self.line.limit, self.line.order)
        self._loop = loop
        async with self.line.place(ids):
            if not self._busy:
                self._since = time.monotonic()
            self._busy += 1
            try:
                yield
            finally:
                self._busy -= 1
                if not self._busy:
                    self.stats.seconds += time.monotonic() - self._since


class ExchangingPolicy(ServedPolicy):
    """One whose weights can be exchanged while draws wait, and which can give its accelerator back meanwhile."""

    colocated = False
    """Shares its accelerator with the trainer, and sleeps while that works."""

    sure = True
    """The version names the weights that are drawn from. False: it is the name that a server goes by, which may have
    been given others."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._asleep = False
        self._swap = asyncio.Lock()  # held while weights are exchanged or memory is given back

    # What a subclass does; nobody draws meanwhile.

    async def _take_weights(self, folder: str) -> None:
        raise NotImplementedError

    async def _take_adapter(self, mark: str, folder: str) -> None:
        raise NotImplementedError

    async def _fall_asleep(self) -> bool:
        raise NotImplementedError

    async def _wake_up(self) -> None:
        raise NotImplementedError

    async def load_weights(self, path: str | Path, version: str = "") -> str:
        """Takes the weights of a folder once the draws under way are done; returns the new version.

        Draws that wait get the new weights. Raises TreewrightError where that fails: the weights that are there then
        are unknown, so nothing should be drawn.
        """
        name = version or await asyncio.to_thread(weights_in, path)
        folder = await asyncio.to_thread(lambda: served_folder(Path(path).resolve()))
        async with self.held():
            await self._take_weights(folder)
            self._version, self.sure = name, True
        return name

    def given(self, version: str) -> None:
        """Another process has handed the server weights that go by this name."""
        self._version = version

    async def load_adapter(self, path: str | Path, version: str = "") -> str:
        """Draws from now on with the LoRA adapter in a `peft` folder; returns the new version."""
        mark = version or await asyncio.to_thread(weights_in, path)
        folder = str(await asyncio.to_thread(Path(path).resolve))
        async with self.held():
            await self._take_adapter(mark, folder)
            self._version = version or f"{self._version.partition('+')[0]}+{mark}"
        return self._version

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Nobody draws meanwhile; a model that sleeps is woken, and who waited for that draws with the new weights."""
        async with self._swap:
            if self._asleep:
                await self._wake_up()
                self._asleep = False
            else:
                await self.line.shut()
            try:
                yield
            finally:
                self.line.reopen()

    async def sleep(self) -> bool:
        """Gives the accelerator to the trainer; draws wait until `wake`. False where there is nothing to give."""
        async with self._swap:
            await self.line.shut()
            try:
                self._asleep = await self._fall_asleep()
            finally:
                if not self._asleep:
                    self.line.reopen()
            return self._asleep

    async def wake(self) -> None:
        """The end of `sleep`; does nothing where that did nothing."""
        async with self._swap:
            if self._asleep:
                await self._wake_up()
                self._asleep = False
                self.line.reopen()
