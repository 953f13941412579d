"""What the gateway costs and what searching an agent's own program finds.

    treewright bench gateway --json docs/gateway.json

Overhead: a scripted policy behind the server against the same policy called directly. 32 sessions ask at once, so that
each waits for the others: a call's own part is the median latency divided by 32, less that of a direct call. The client
is in the same process, as bare as can be, and counts as the gateway's. Every call has a session of its own.

Search: three agents, best-first search against independent runs with as many policy tokens (gateway_agents.py).

Kills: a process that records an agent is killed at random; every call that the agent saw answered must be in the store,
and nothing of it may still run (gateway_kills.py).
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from treewright.agent.gateway.asked import Asked, Spoken
from treewright.agent.gateway.draws import Draws
from treewright.agent.gateway.server import make_app, running
from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.benchmarks.gateway_agents import AGENTS, HOPS, searched
from treewright.benchmarks.gateway_kills import held_in, kills
from treewright.envs.types import Observation, Task, ToolSpec
from treewright.search.types import Exchange

__all__ = ["main"]

KEY = "tw-bench-key-0123456789"
SESSIONS = 32


# -- overhead ---------------------------------------------------------------------------------------------------------


def says(task: Task, turns: Sequence[Exchange], tools: Sequence[ToolSpec], rng: random.Random) -> str:
    return "an answer of a few words"


async def _overhead(calls: int) -> dict[str, tuple[float, str]]:
    words = "a question of some words, as agents ask"
    policy, asked = ScriptedPolicy(says), Asked(api="chat", model="m", said=(Spoken("user", words),))
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": words}]}).encode()
    direct: list[float] = []
    for _ in range(2000):
        start = time.perf_counter()
        context = policy.context(Task("g", "", asked.said[0].text), (), Observation(""), (), ())
        await policy.draw(context, [1], 64)
        direct.append(time.perf_counter() - start)
    alone: list[float] = []
    together: list[float] = []
    async with running(make_app(Draws(policy, sessions=256), KEY)) as at:
        async with _Line(at) as line:
            for i in range(max(200, calls // 20)):
                start = time.perf_counter()
                await line.ask(f"alone{i}", body)
                alone.append(time.perf_counter() - start)

        async def one(session: int) -> None:
            async with _Line(at) as line:
                for i in range(calls // SESSIONS):
                    start = time.perf_counter()
                    await line.ask(f"s{session}-{i}", body)
                    together.append(time.perf_counter() - start)

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(one(i) for i in range(SESSIONS)))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    straight, count = statistics.median(direct), len(together)
    return {
        "gateway_overhead_ms_p50": ((statistics.median(together) / SESSIONS - straight) * 1e3, "ms"),
        "gateway_overhead_alone_ms_p50": ((statistics.median(alone) - straight) * 1e3, "ms"),
        "gateway_cpu_ms_per_call": (cpu / count * 1e3, "ms"),
        "gateway_direct_ms_p50": (straight * 1e3, "ms"),
        "gateway_calls_per_s": (count / wall, "1/s"),
        "gateway_calls_per_cpu_s": (count / cpu, "1/s"),
        "gateway_memory_growth_mb": ((after - before) / 1024, "MB"),
        "gateway_calls": (float(count), "calls"),
    }


class _Line:
    """One connection, with as little of a client as there can be."""

    def __init__(self, at: str) -> None:
        host, _, port = at.removeprefix("http://").partition(":")
        self.host, self.port = host, int(port)

    async def __aenter__(self) -> _Line:
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def ask(self, session: str, body: bytes) -> bytes:
        head = (
            f"POST /s/{session}/v1/chat/completions HTTP/1.1\r\nhost: {self.host}\r\nx-api-key: {KEY}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self.writer.write(head.encode() + body)
        answer = await self.reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer.decode("latin-1"))
        size = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return await self.reader.readexactly(size)


# -- all --------------------------------------------------------------------------------------------------------------


def main(
    quick: bool = False,
    json_path: str | None = None,
    plot_path: str | None = None,
    only: Sequence[str] = (),
    peer_python: Path | None = None,
) -> dict[str, Any]:
    """The figures; `only` names parts: overhead, kills, or agents (react, graph, smolagents_agent; react:3 asks
    questions of three look-ups, which a single run answers more often, and does not count for the smallest gain).

    peer_python  an interpreter that has smolagents and openai; without it that agent is left out
    """
    figures: dict[str, tuple[float, str]] = {}
    agents: dict[str, Any] = {}
    wanted = tuple(only)
    if not wanted or "overhead" in wanted:
        figures |= asyncio.run(_overhead(1600 if quick else 10_240))
    named = [one for one in wanted if one.partition(":")[0] in AGENTS]
    for name in named if wanted else ("react",) if quick else AGENTS:
        agent, _, hops = name.partition(":")
        python = str(peer_python) if peer_python and agent == "smolagents_agent" else sys.executable
        if agent == "smolagents_agent" and peer_python is None:
            print("smolagents_agent is left out: name an interpreter that has it with --peer-python", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            agents[name] = asyncio.run(searched(agent, 6 if quick else 60, Path(folder), python, int(hops or HOPS)))
        print(name, agents[name], flush=True)
    if set(agents) & set(AGENTS):
        figures["agent_search_gain_min"] = (min(agents[name]["gain"] for name in set(agents) & set(AGENTS)), "times")
    if not wanted or "kills" in wanted:
        figures |= kills(20 if quick else 1000)
    for name, (value, unit) in figures.items():
        print(f"{name:<32} {value:10.3f} {unit}")
    out = {"quick": quick, "figures": {n: {"value": v, "unit": u} for n, (v, u) in figures.items()}, "agents": agents}
    if json_path is not None and only:
        held_in(Path(json_path), figures, agents, quick=quick)
    return out
