"""Functions of a state that may take long (a copy, a fingerprint), beside the event loop while they do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Aside"]

T = TypeVar("T")
QUICK = 0.02  # seconds that a call may hold the loop up; a thread costs a tenth of a millisecond


class Aside:
    """Runs each function in a thread until it was seen to be quick, and again once it is slow.

    The functions only read what they are given. One that fails in a thread is called once more in the loop's own:
    some objects, such as connections of sqlite3, can be touched from the thread that made them alone.
    """

    def __init__(self) -> None:
        self._quick: set[str] = set()
        self._bound: set[str] = set()

    async def run(self, name: str, function: Callable[..., T], *arguments: Any) -> T:
        """What the function returns, or raises; `name` says which price it shares."""
        if name in self._bound:
            return function(*arguments)
        if name in self._quick:
            value, took = _timed(function, arguments)
            if took > QUICK:
                self._quick.discard(name)
            return value
        try:
            value, took = await asyncio.to_thread(_timed, function, arguments)
        except Exception:
            value = function(*arguments)
            self._bound.add(name)
            return value
        if took <= QUICK:
            self._quick.add(name)
        return value


def _timed(function: Callable[..., T], arguments: tuple[Any, ...]) -> tuple[T, float]:
    began = time.perf_counter()
    value = function(*arguments)
    return value, time.perf_counter() - began
