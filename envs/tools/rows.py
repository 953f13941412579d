"""What tools of one's own answer beside plain values: generators, which run as a list, and objects that say where they
lie in memory."""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
from collections.abc import Awaitable, Callable, Generator
from typing import Any

__all__ = ["Addresses", "listed"]

log = logging.getLogger("treewright")

MAX_ROWS = 100_000  # of a generator, which may be endless
ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-f]{6,}>")


async def listed(value: Any, call: Callable[..., Awaitable[Any]]) -> Any:
    """What a generator gives, as a list; everything else as it is. `call` runs a plain function, maybe in a thread.

    A tool that writes `yield` runs only where somebody asks for its items. Raises what it raises, and ValueError past
    MAX_ROWS items.
    """
    if inspect.isgenerator(value):
        return await call(_all_of, value)
    if not inspect.isasyncgen(value):
        return value
    rows: list[Any] = []
    async with contextlib.aclosing(value):
        async for row in value:
            rows.append(row)
            _bound(rows)
    return rows


def _all_of(value: Generator[Any, Any, Any]) -> list[Any]:
    rows: list[Any] = []
    with contextlib.closing(value):
        for row in value:
            rows.append(row)
            _bound(rows)
    return rows


def _bound(rows: list[Any]) -> None:
    if len(rows) > MAX_ROWS:
        raise ValueError(f"it gives more than {MAX_ROWS} items")


class Addresses:
    """Tools whose answers say where an object lies in memory; each is told once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def look(self, tool: str, text: str) -> None:
        if " at 0x" in text and tool not in self._told and (found := ADDRESS.search(text)):
            self._told.add(tool)
            log.warning(
                "the tool %r answered %.120s, whose address is another one each time; return text or plain data, or "
                "give its class a __str__",
                tool,
                found.group(),
            )
