"""A watchdog beside a call: how often other tasks got their turn, and how long the loop was held at most.

A hold is counted in processor time of the loop's own thread, which other processes and threads do not lengthen.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = ["HOLD", "Watched", "watched"]

HOLD = 0.5  # seconds of processor time for which one call may keep the loop to itself
STUCK = 120  # seconds after which a loop that never comes back is shown with its stack, and the run ends
BETWEEN = 0.001  # seconds between two turns of the watchdog

T = TypeVar("T")


@dataclass(slots=True)
class Watched:
    """turns that the watchdog got;  longest  processor time in seconds between two of them, or of all without one."""

    turns: int = 0
    longest: float = 0.0


async def watched(call: Coroutine[Any, Any, T]) -> tuple[T, Watched]:
    """What the call gives, and what the watchdog saw meanwhile."""
    seen, last = Watched(), time.thread_time()

    def look() -> None:
        nonlocal last
        now = time.thread_time()
        seen.longest, last = max(seen.longest, now - last), now

    async def watch() -> None:
        while True:
            await asyncio.sleep(BETWEEN)
            look()
            seen.turns += 1

    gc.disable()  # what other tests of this process have left is not this call's to look through
    faulthandler.dump_traceback_later(STUCK, exit=True)
    dog = asyncio.create_task(watch())
    try:
        await asyncio.sleep(0)
        return await call, seen
    finally:
        look()  # what came after the last turn, or all where there was none
        dog.cancel()
        faulthandler.cancel_dump_traceback_later()
        gc.enable()
