"""Calls to an environment: answered at once, late, never, wrongly, or cut off."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from treewright.envs.errors import ActionTimeout, SessionDied
from treewright.envs.maze import Maze
from treewright.search.restore import Pool


async def opened() -> Maze:
    return Maze()


async def call(
    *,
    waits: int = 0,
    forever: bool = False,
    raises: SessionDied | TimeoutError | None = None,
    log: list[Any] | None = None,
) -> str:
    try:
        for _ in range(waits):
            await asyncio.sleep(0)
        if forever:
            await asyncio.Event().wait()
        if raises:
            raise raises
        return "done"
    finally:
        if log is not None:
            log.append("left")


@pytest.mark.parametrize("waits", [0, 1, 5])
async def test_an_answer_comes_through_at_once_or_late(waits: int) -> None:
    assert await Pool(opened).timed(call(waits=waits), "step") == "done"


async def test_a_future_and_a_task_can_be_awaited_too() -> None:
    task = asyncio.create_task(call(waits=2))
    assert await Pool(opened).timed(task, "step") == "done"
    assert await Pool(opened).timed(task, "step") == "done"


@pytest.mark.parametrize("waits", [0, 2])
async def test_faults_pass_and_a_timeout_of_the_worlds_own_is_an_action_timeout(waits: int) -> None:
    with pytest.raises(SessionDied):
        await Pool(opened).timed(call(waits=waits, raises=SessionDied("gone")), "step")
    with pytest.raises(ActionTimeout, match="step"):
        await Pool(opened).timed(call(waits=waits, raises=TimeoutError()), "step")


async def test_a_call_that_never_answers_is_cut_at_the_deadline_and_cleans_up() -> None:
    log: list[Any] = []
    with pytest.raises(ActionTimeout, match="no answer within"):
        await Pool(opened, deadline=0.05).timed(call(waits=1, forever=True, log=log), "step")
    assert log == ["left"]


async def test_cancelling_reaches_into_the_call() -> None:
    log: list[Any] = []
    task = asyncio.create_task(Pool(opened).timed(call(forever=True, log=log), "step"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["left"]


async def test_a_lease_that_cannot_open_a_session_gives_its_place_back() -> None:
    tries = []

    async def broken() -> Maze:
        tries.append(1)
        if len(tries) == 1:
            raise SessionDied("no server")
        return Maze()

    pool = Pool(broken, size=1)
    with pytest.raises(SessionDied):
        async with pool.lease("t"):
            pass
    async with pool.lease("t") as session:
        assert session.at is None


async def test_a_session_that_was_held_in_trouble_is_lost() -> None:
    pool = Pool(opened, size=1)
    with pytest.raises(ValueError, match="trouble"):
        async with pool.lease("t") as session:
            session.at, session.tree = 7, "t"
            raise ValueError("trouble")
    async with pool.lease("t", (7,)) as again:
        assert again is session and again.at is None
