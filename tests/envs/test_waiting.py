"""What nothing may interrupt: it goes on when whoever waits is cancelled, and nobody's error makes no noise."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from treewright.envs.waiting import done_anyway


async def test_it_gives_what_the_work_gives_and_raises_what_it_raises() -> None:
    async def two() -> int:
        return 2

    async def wrong() -> None:
        raise OSError("no disk")

    assert await done_anyway(two()) == 2
    with pytest.raises(OSError, match="no disk"):
        await done_anyway(wrong())


@pytest.mark.parametrize("fails", [False, True])
async def test_the_work_goes_on_when_the_wait_is_cancelled_and_its_error_is_not_logged(fails: bool) -> None:
    logged, done = list[dict[str, Any]](), asyncio.Event()
    began, go_on = asyncio.Event(), asyncio.Event()

    def log(_: Any, what: dict[str, Any]) -> None:
        """What is said of `work`; garbage of others may speak, such as a client that closes itself when collected."""
        task = what.get("future") or what.get("task")
        if task is None or task.get_coro().__name__ == "work":
            logged.append(what)

    asyncio.get_running_loop().set_exception_handler(log)

    async def work() -> None:
        began.set()
        await go_on.wait()
        done.set()
        if fails:
            raise OSError("the database is away")

    waiting = asyncio.create_task(done_anyway(work()))
    await began.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go_on.set()
    await asyncio.wait_for(done.wait(), 5)
    await asyncio.sleep(0)
    del waiting
    gc.collect()
    await asyncio.sleep(0)
    assert not logged
