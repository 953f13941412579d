"""One turn of a web workload under whichever build is on the path; imports nothing that builds do not all have.

    PYTHONPATH=BUILD/pkg python web_work.py miniwob|market SIZE

Prints one line of JSON: `cost` (seconds of wall clock for a step of MiniWoB's pages, seconds of processor for a step
of `market`, the browser's included), `steps`, a digest of what was found, and where the build is.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

POINTS = ((80, 120), (40, 90), (120, 160))  # as in peer_browsergym.py, which older builds have elsewhere


def processor_seconds() -> float:
    """Of this process and all that come from it, those that have ended included."""
    return sum(processes().values())


def processes() -> dict[int, float]:
    """This process and all that come from it: seconds of processor by number, with those of children that ended."""
    tick = os.sysconf("SC_CLK_TCK")
    known: dict[int, tuple[int, int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        known[int(entry.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    mine, more = {os.getpid()}, True
    while more:
        found = {pid for pid, (parent, _) in known.items() if parent in mine} - mine
        mine |= found
        more = bool(found)
    return {pid: known[pid][1] / tick for pid in mine if pid in known}


async def miniwob(size: int) -> dict[str, Any]:
    """Clicks at three points of every third page, `size` pages; the browser's own start and resets are not timed."""
    from treewright.envs.types import Action
    from treewright.envs.web.miniwob import make_task, names, open_session

    env, spent, steps, ended = await open_session(), 0.0, 0, []
    try:
        pages = names()[::3][:size]
        await env.reset(make_task("test", pages[0]), 0)
        for page in pages:
            await env.reset(make_task("test", page), 0)
            for x, y in POINTS:
                began = time.perf_counter()
                result = await env.step(Action.of("click_at", x=x, y=y), 0)
                spent, steps = spent + time.perf_counter() - began, steps + 1
                if result.terminated:
                    break
            ended.append(f"{page} {result.terminated} {result.reward:.3f}")
    finally:
        await env.close()
    return {"cost": spent / steps, "steps": steps, "digest": _digest(ended)}


async def market(size: int, mark: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """The expert on `size` tasks in one session, after a first one that warms the browser up; resets count as steps.

    mark  called where what counts begins, and where it has ended
    """
    from treewright.envs.types import Turn
    from treewright.envs.web.market import SUITE

    env, steps, ended = await SUITE.open(), 0, []
    try:
        before = 0.0
        for number, task in enumerate(SUITE.tasks("test", size + 1)):
            if number == 1:
                mark()
                before, steps = processor_seconds(), 0
            history, reward = [Turn(None, await env.reset(task, 0))], 0.0
            steps += 1
            for _ in range(task.horizon):
                assert SUITE.oracle is not None
                action = SUITE.oracle(task, history, await env.actions())
                result = await env.step(action, 0)
                history.append(Turn(action, result.observation))
                steps, reward = steps + 1, reward + result.reward
                if result.terminated:
                    break
            ended.append(f"{task.id} {len(history)} {reward}")
        spent = processor_seconds() - before
        mark()
    finally:
        await env.close()
        if SUITE.close is not None:
            await SUITE.close()
    return {"cost": spent / steps, "steps": steps, "digest": _digest(ended)}


def _digest(told: list[str]) -> str:
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


if __name__ == "__main__":
    from treewright.envs import types

    name, size = sys.argv[1], int(sys.argv[2])
    found = asyncio.run({"miniwob": miniwob, "market": market}[name](size))
    print(json.dumps({**found, "build": types.__file__}))
