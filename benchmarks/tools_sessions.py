"""MCP sessions side by side, for `treewright bench worlds`: calls a second, and what a call costs the client.

    python -m treewright.benchmarks.tools_sessions SESSIONS MILLISECONDS CALLS

Each session has a server process of its own, whose only tool waits; its client is the one that worlds use.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

from mcp.client.stdio import StdioServerParameters

from treewright.envs.tools.mcp import MCPEnvironment
from treewright.envs.types import Action, Effect, Task

__all__ = ["Ran", "figures", "side_by_side"]

SERVER = Path(__file__).with_name("tools_server.py")
SLOW = 5.0  # ms that a call takes which is not free
MANY = 64


@dataclass(frozen=True, slots=True)
class Ran:
    """calls, seconds by the clock, processor seconds of the client's process, digest of all answers."""

    calls: int
    seconds: float
    processor: float
    digest: str


def side_by_side(sessions: int, milliseconds: float, calls: int) -> Ran:
    """`calls` steps in all, shared evenly among sessions that are open already."""
    return asyncio.run(_run(sessions, milliseconds, calls))


async def _run(sessions: int, milliseconds: float, calls: int) -> Ran:
    server = StdioServerParameters(command=sys.executable, args=["-I", "-S", str(SERVER), str(milliseconds)])
    worlds = [
        MCPEnvironment(server, effects={"wait": Effect.REVERSIBLE}, sandboxed=True, probe=False)
        for _ in range(sessions)
    ]
    try:
        await asyncio.gather(*(world.reset(Task("bench", "wait", "wait"), 0) for world in worlds))
        began, used = time.perf_counter(), time.process_time()
        found = await asyncio.gather(*(_steps(world, calls // sessions) for world in worlds))
        seconds, processor = time.perf_counter() - began, time.process_time() - used
    finally:
        await asyncio.gather(*(world.close() for world in worlds))
    told = blake2b(json.dumps(found).encode(), digest_size=16).hexdigest()
    return Ran(sum(map(len, found)), seconds, processor, told)


async def _steps(world: MCPEnvironment, count: int) -> list[str]:
    return [(await world.step(Action.of("wait", note=f"call {i}"), i)).observation.text for i in range(count)]


def figures(quick: bool) -> dict[str, tuple[float, str]]:
    """name → (value, unit): eight sessions against one, and what a call costs the client with 1, 8 and 64 of them."""
    calls = 512 if quick else 4096
    ran = {(n, ms): side_by_side(n, ms, calls // (4 if ms else 1)) for ms in (0.0, SLOW) for n in (1, 8, MANY)}

    def pace(n: int, ms: float) -> float:
        return ran[n, ms].calls / ran[n, ms].seconds

    out = {
        "tool_sessions_8_vs_1_free": (pace(8, 0.0) / pace(1, 0.0), "x, calls that cost the server nothing"),
        f"tool_sessions_8_vs_1_{SLOW:g}ms": (pace(8, SLOW) / pace(1, SLOW), f"x, calls of {SLOW:g} ms"),
        f"tool_sessions_{MANY}_vs_1_{SLOW:g}ms": (pace(MANY, SLOW) / pace(1, SLOW), "x"),
    }
    for n in (1, 8, MANY):
        free = ran[n, 0.0]
        out[f"tool_client_ms_per_call_{n}"] = (1e3 * free.processor / free.calls, f"ms of processor, {n} sessions")
    return out


if __name__ == "__main__":
    asked = sys.argv[1:]
    print(json.dumps(asdict(side_by_side(int(asked[0]), float(asked[1]), int(asked[2])))))
