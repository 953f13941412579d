"""What nothing may interrupt goes on when whoever waits is cancelled; what is done together ends together."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from treewright.envs.waiting import done_anyway, together


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


async def test_what_is_done_together_comes_in_order() -> None:
    async def late(i: int) -> int:
        await asyncio.sleep(0.01 * (3 - i))
        return i

    assert await together(late(i) for i in range(3)) == [0, 1, 2]
    assert await together([]) == []


@pytest.mark.parametrize("cancelled", [False, True])
async def test_what_is_done_together_has_ended_when_one_failed_or_all_were_cancelled(cancelled: bool) -> None:
    ended = list[int]()

    async def work(i: int) -> None:
        try:
            if i == 1 and not cancelled:
                raise OSError("the first to fail")
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0.01)
            ended.append(i)

    before = asyncio.all_tasks()
    doing = asyncio.create_task(together(work(i) for i in range(3)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    if cancelled:
        doing.cancel()
    with pytest.raises(asyncio.CancelledError if cancelled else OSError):
        await doing
    assert sorted(ended) == [0, 1, 2] and asyncio.all_tasks() == before


async def test_a_failure_of_things_done_together_leaves_no_cancellation_behind() -> None:
    async def fails() -> None:
        await asyncio.sleep(0.001)
        raise OSError("late")

    with pytest.raises(OSError, match="late"):
        await together([fails(), asyncio.sleep(600)])
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(600)


async def test_who_is_cancelled_twice_still_waits_for_the_end_of_all() -> None:
    ended = list[int]()

    async def slow(i: int) -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0.05)
            ended.append(i)

    doing = asyncio.create_task(together(slow(i) for i in range(2)))
    for _ in range(2):
        await asyncio.sleep(0.01)
        doing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doing
    assert sorted(ended) == [0, 1]
