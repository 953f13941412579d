"""Asking a model once: equal questions that come together share one answer, and later ones find it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

__all__ = ["Once"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Once(Generic[K, T]):
    """Answers by question, the `remembered` that were asked for last; None: all of them."""

    def __init__(self, remembered: int | None = None) -> None:
        self.remembered = remembered
        self._known: OrderedDict[K, asyncio.Future[T]] = OrderedDict()

    def __contains__(self, key: K) -> bool:
        return key in self._known

    async def get(self, key: K, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The answer; `ask` is called where the question is new. What it raises is raised, and is not remembered."""
        if key not in self._known:
            self._known[key] = asyncio.ensure_future(ask())
            if self.remembered is not None and len(self._known) > self.remembered:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        try:
            return await asyncio.shield(self._known[key])
        except BaseException:
            self._known.pop(key, None)
            raise

    def found(self, key: K) -> T | None:
        """The answer, None where it is not there yet or never came."""
        known = self._known.get(key)
        ended = known is not None and known.done() and not known.cancelled() and known.exception() is None
        return known.result() if known is not None and ended else None

    def all_found(self) -> list[T]:
        """Every answer that is there."""
        return [answer for key in self._known if (answer := self.found(key)) is not None]
