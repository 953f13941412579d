"""Bundled servers are forked from one process; they end with whoever stands for them, and begin without it too."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from speed import patient

from treewright.envs import Action, SessionDied
from treewright.envs.tools import forked
from treewright.envs.tools.workbench import open_workbench, tasks


def lines() -> dict[int, list[str]]:
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            found[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
    return found


def of(folder: Path, first: str) -> list[int]:
    return [pid for pid, line in lines().items() if str(folder) in line and line[0].endswith(first)]


def folder_of(env: Any) -> Path:
    return Path(env._state.path)


def forks_of(server: int) -> Any:
    """Those that forked this server: other tests of this process may have left some for other search paths."""
    parent = int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[1])
    (found,) = [forks for forks in forked._forks.values() if forks.process.pid == parent]
    return found


async def gone(folder: Path) -> None:
    end = time.monotonic() + patient(10)
    while of(folder, ""):
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


async def begun_again(env: Any) -> None:
    """The session notices, once it acts, that its server is gone; a reset brings another one."""
    await gone(folder_of(env))
    with pytest.raises(SessionDied):
        await env.step(Action.of("list_files"), 0)
    await env.reset(tasks("train", 1)[0], 0)
    assert "files: " in (await env.step(Action.of("list_files"), 0)).observation.text


async def test_a_server_ends_with_its_relay_and_a_relay_with_its_server() -> None:
    for killed in ("python", "workbench_server"):
        env = await open_workbench()
        try:
            await env.reset(tasks("train", 1)[0], 0)
            (relay,) = [p for p in of(folder_of(env), "") if p not in of(folder_of(env), "workbench_server")]
            (server,) = of(folder_of(env), "workbench_server")
            os.kill(relay if killed == "python" else server, signal.SIGKILL)
            await begun_again(env)
            (other,) = of(folder_of(env), "workbench_server")
            assert other != server
        finally:
            await env.close()


async def test_sessions_begin_again_where_the_process_that_forks_was_killed() -> None:
    env = await open_workbench()
    try:
        await env.reset(tasks("train", 1)[0], 0)
        (server,) = of(folder_of(env), "workbench_server")
        forks = forks_of(server)
        os.kill(forks.process.pid, signal.SIGKILL)
        forks.process.wait()
        os.kill(server, signal.SIGKILL)
        await begun_again(env)  # the relay itself is the server now
        assert not of(folder_of(env), "workbench_server") and of(folder_of(env), "")
        other = await open_workbench()
        try:
            await other.reset(tasks("train", 1)[0], 0)
            (server,) = of(folder_of(other), "workbench_server")
            assert forks_of(server).process.pid != forks.process.pid
        finally:
            await other.close()
    finally:
        await env.close()
