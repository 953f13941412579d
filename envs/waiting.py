"""Waiting: as long as a server wants to be left alone (its header Retry-After), for what nothing may interrupt, and for
several things at once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

__all__ = ["LONGEST", "done_anyway", "seconds_until", "together"]

LONGEST = 3600.0
T = TypeVar("T")


def seconds_until(said: str | None, now: str | None = None) -> float:
    """Seconds, from 0 to LONGEST; 0 for nothing and for nonsense.

    said  "120", or "Wed, 21 Oct 2015 07:28:00 GMT" (RFC 9110, 10.2.3)
    now   the server's own clock as its header Date has it, so that a clock that is wrong here does no harm
    """
    if not said:
        return 0.0
    try:
        seconds = float(said)
    except ValueError:
        then = _date(said)
        seconds = (then - (_date(now or "") or datetime.now(UTC))).total_seconds() if then else 0.0
    return min(max(seconds, 0.0), LONGEST) if not math.isnan(seconds) else 0.0


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


async def done_anyway(work: Coroutine[Any, Any, T]) -> T:
    """Awaits `work`, which goes on where the waiting task is cancelled meanwhile; its error is then nobody's."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(_heard)  # `shield` leaves it to the event loop's log
    return await asyncio.shield(task)


def _heard(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order. The first failure cancels the others, and is raised when they have ended: nothing runs on.

    No asyncio.TaskGroup: that of Python 3.11.2, Debian 12's, leaves a task that waited for a failure counted as
    cancelled, and its next asyncio.timeout then ends in CancelledError.
    """
    tasks: list[asyncio.Task[T]] = []
    try:
        tasks.extend(asyncio.create_task(one) for one in work)
        if tasks:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        failed = next((task for task in tasks if task.done() and not task.cancelled() and task.exception()), None)
    finally:
        await _ended(tasks)
    if failed is not None:
        failed.result()  # raises
    return [task.result() for task in tasks]


async def _ended(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancels what still runs, and waits for its end even where the waiting task is cancelled meanwhile."""
    for task in tasks:
        task.cancel()
    late: asyncio.CancelledError | None = None
    while left := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(left)
        except asyncio.CancelledError as error:
            late = error
    for task in tasks:
        _heard(task)
    if late is not None:
        raise late
