"""The end of a server cannot be cut short: not by who waits for it, nor by an event loop that closes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import mcp.client.stdio
import pytest
from mcp.client.stdio import StdioServerParameters
from raw_server import RAW
from speed import patient

from treewright.envs.tools.connection import Connection

# A server that says when its standard input was closed and goes on until it is terminated.
STUBBORN = (
    "import os\nopen('pid', 'w').write(str(os.getpid()))\n"
    + RAW
    + """
serve([{"name": "wait", "inputSchema": {"type": "object"}}], lambda *_: sys.stdin.read())
if sys.argv[1:] == ["stubborn"]:
    import time
    open("told", "w").close()
    time.sleep(600)
"""
)


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Path]:
    """Where the server is; one that a failing test has left is killed before the loop closes, which waits for it."""
    yield tmp_path
    if runs(tmp_path):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not end by itself is terminated after half a second."""
    monkeypatch.setattr(mcp.client.stdio, "PROCESS_TERMINATION_TIMEOUT", 0.5)


async def opened(folder: Path, *words: str) -> Connection:
    (folder / "server.py").write_text(STUBBORN)
    command = ["-I", "-S", str(folder / "server.py"), *words]
    found = Connection(StdioServerParameters(command=sys.executable, args=command, cwd=folder), deadline=patient(30))
    await found.open()
    return found


def runs(folder: Path) -> bool:
    """Whether the server's process is there."""
    with suppress(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)
        return True
    return False


async def told(folder: Path) -> None:
    """Waits until the server knows that it is to end."""
    async with asyncio.timeout(patient(20)):
        while not (folder / "told").exists():  # noqa: ASYNC110 (another process makes it)
            await asyncio.sleep(0.005)


async def ended(tasks: Collection[asyncio.Task[Any]], folder: Path) -> bool:
    """Whether the tasks end, and their server with them."""
    _, left = await asyncio.wait(tasks, timeout=patient(10))
    return not left and not runs(folder)


async def test_a_loop_that_closes_waits_for_a_server_that_is_being_ended(folder: Path, quick: None) -> None:
    before = asyncio.all_tasks()
    connection = await opened(folder, "stubborn")
    closing = asyncio.create_task(connection.close())
    await told(folder)
    tasks = asyncio.all_tasks() - before
    for task in tasks:  # as `asyncio.run` does at its end
        task.cancel()
    assert await ended(tasks, folder) and closing.cancelled()


async def test_a_loop_may_close_at_any_moment_of_an_ending(folder: Path) -> None:
    for turns in range(15):
        before = asyncio.all_tasks()
        connection = await opened(folder)
        closing = asyncio.create_task(connection.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        tasks = asyncio.all_tasks() - before
        for task in tasks:
            task.cancel()
        assert await ended(tasks, folder) and closing.done(), f"cancelled after {turns} turns of the loop"


@pytest.mark.parametrize("calls", [False, True])
async def test_who_waits_for_the_end_and_is_cancelled_still_waits_for_it(
    calls: bool, folder: Path, quick: None
) -> None:
    connection = await opened(folder, "stubborn")
    call = asyncio.create_task(connection.call("wait", {})) if calls else None
    await asyncio.sleep(0)
    closing = asyncio.create_task(connection.close())
    if calls:
        await asyncio.sleep(0)
    else:
        await told(folder)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert connection.dead and not runs(folder)
    if call is not None:
        await asyncio.gather(call, return_exceptions=True)
