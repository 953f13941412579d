"""Twelve faults of a network, three worlds behind one, three places: nothing hangs, and a fault is never a reward.

    python -P tests/faults/grid.py [--quick] [--each 100] [--only NAME …] [--json FILE]

tools      an MCP server over HTTP;  passages  a retrieval server;  pages  a site in a browser
opening    the first reset;  step  a step that was never made before;  back  whatever is made again to come back

Every trial grows one tree by the engine over a proxy that breaks the answers at that place, once or from then on. One
that passes must leave the tree of a quiet network; one that stays a tree whose lost nodes are faults without a reward,
or none at all, which the caller is told. A call may take its deadline and two seconds more. Passages ask the network
for steps alone: points where no call was broken count as trials, and not as faults met.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from fault_proxy import Exchange, Fault, FaultProxy, body, drip, half, latency, reset, silent, status
from speed import patient

from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.agent.runs.figures import write_figures
from treewright.envs import EnvFault
from treewright.envs.retrieval.remote import RemoteServer, RemoteWorld
from treewright.envs.tools.mcp import MCPEnvironment
from treewright.envs.types import Action, Effect, Environment, Observation, Snapshot, StepResult, Task
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import best_first
from treewright.search.tree import Tree
from treewright.search.types import Budget, NodeStatus

__all__ = ["FAULTS", "PLACES", "WORLDS", "main", "trials"]

PLACES = ("opening", "step", "back")
DEADLINE, SHORT, MORE = 2.0, 1.5, 2.0  # seconds: of a call, where answers never end, and what may come on top
ENDLESS = ("silent", "drip")
TRIES = 3  # of a trial in which a call was slow that nobody broke, while one without a fault is quick


async def hangs_up(exchange: Exchange) -> None:
    """The end of the connection without a word."""


async def garbage(exchange: Exchange) -> None:
    await exchange.send(b"\x00\x01\x02\r\n\r\n")


FAULTS: Mapping[str, Fault] = {
    "late": latency(0.05), "reset": reset, "half": half, "hangs up": hangs_up, "garbage": garbage, "silent": silent,
    "drip": drip(0.05), "429": status(429), "429 for an hour": status(
        429, {"retry-after": formatdate(time.time() + 3600, usegmt=True)}),
    "502": status(502), "503": status(503, {"retry-after": "0"}), "wrong": body(b'{"choices": [{"mess'),
}  # fmt: skip
"""Of a site, what is wrong is a page like any other: there `wrong` is 504."""


# -- the worlds -------------------------------------------------------------------------------------------------------


class Server(BaseHTTPRequestHandler):
    """An MCP server, a retrieval server and a site: the same answer for the same question."""

    def do_POST(self) -> None:
        ask = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "queries" in ask:
            found = [{"document": {"contents": f"{q} is {q[::-1]}"}, "score": 1.0} for q in ask["queries"]]
            return self.say({"result": [found]})
        version = (ask.get("params") or {}).get("protocolVersion", "2025-06-18")
        where = ((ask.get("params") or {}).get("arguments") or {}).get("where", "")
        listed = {"name": "look", "inputSchema": {"type": "object", "properties": {"where": {"type": "string"}}}}
        results = {
            "initialize": {
                "protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": {"name": "n", "version": "0"}
            },
            "tools/list": {"tools": [listed]},
            "tools/call": {"content": [{"type": "text", "text": f"a door to {where}"}]},
        }  # fmt: skip
        if "id" not in ask:
            return self.say(None, 202)
        failed = {"error": {"code": -32601, "message": "no such method"}}
        more = {"result": results[ask["method"]]} if ask["method"] in results else failed
        self.say({"jsonrpc": "2.0", "id": ask["id"], **more})

    def say(self, answer: object, code: int = 200) -> None:
        raw = b"" if answer is None else json.dumps(answer).encode()
        self.send(raw, "application/json", code)

    def send(self, raw: bytes, kind: str, code: int = 200) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        if "html" not in self.headers.get("Accept", ""):
            return self.say(None, 405)
        links = "".join(f"<a href=/{i}>go {i}</a> " for i in range(4))
        self.send(f"<title>{self.path}</title><h1>At {self.path}</h1>{links}".encode(), "text/html")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is told."""


def tools(port: int, deadline: float) -> Environment:
    return MCPEnvironment(
        f"http://127.0.0.1:{port}/mcp", deadline=deadline, effects={"look": Effect.REVERSIBLE}, sandboxed=True,
        fresh=True, probe=False, judge=lambda task, answer, folder: float(answer == "3"),
    )  # fmt: skip


def passages(port: int, deadline: float) -> Environment:
    return RemoteWorld(RemoteServer(f"http://127.0.0.1:{port}/retrieve", deadline))


def pages(port: int, deadline: float) -> Environment:
    from treewright.envs.web.environment import FullWebEnvironment

    return FullWebEnvironment(f"http://127.0.0.1:{port}/", locked=False, deadline=deadline, patience=deadline)


@dataclass(frozen=True)
class World:
    """How a session is opened: (port, deadline) → environment, and what its policy says: number → text."""

    open: Callable[[int, float], Environment]
    says: Callable[[int], str]


WORLDS = {
    "tools": World(tools, lambda n: f'done {{"answer": "{n}"}}' if n > 2 else f'look {{"where": "{n}"}}'),
    "passages": World(
        passages, lambda n: f'answer {{"text": "{n}"}}' if n > 2 else f'search {{"query": "what is {n}"}}'
    ),
    "pages": World(pages, lambda n: f'click {{"ref": "e{n + 1}"}}'),
}


@dataclass
class Struck:
    """Where the network breaks in one trial, and what came of it.

    left  how often it breaks;  calls  of this place that were broken;  over  most seconds past a call's deadline
    slow  calls that nobody broke and that took as long as a deadline: the machine is too busy for such a trial
    """

    place: str
    fault: Fault | None
    left: int
    deadline: float
    calls: int = 0
    over: float = -math.inf
    slow: int = 0
    known: set[object] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def at(self, place: str, proxy: FaultProxy) -> AsyncIterator[None]:
        hit = place == self.place and self.left > 0 and self.fault is not None
        before, began = len(proxy.seen), time.monotonic()
        proxy.always = self.fault if hit else None
        try:
            yield
        finally:
            proxy.always = None
            if hit and len(proxy.seen) > before:
                self.left, self.calls = self.left - 1, self.calls + 1
            took = time.monotonic() - began
            self.over = max(self.over, took - self.deadline)
            self.slow += not hit and took > 0.9 * self.deadline


class Behind:
    """A session whose calls may be those that the network breaks."""

    def __init__(self, inner: Environment, proxy: FaultProxy, struck: Struck) -> None:
        self.inner, self.proxy, self.struck = inner, proxy, struck

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def reset(self, task: Task, key: int) -> Observation:
        place = "back" if "reset" in self.struck.known else "opening"
        async with self.struck.at(place, self.proxy):
            seen = await self.inner.reset(task, key)
        self.struck.known.add("reset")
        return seen

    async def step(self, action: Action, key: int) -> StepResult:
        place = "back" if (action.key, key) in self.struck.known else "step"
        async with self.struck.at(place, self.proxy):
            result = await self.inner.step(action, key)
        self.struck.known.add((action.key, key))
        return result

    async def restore(self, snapshot: Snapshot) -> Observation:
        async with self.struck.at("back", self.proxy):
            return await self.inner.restore(snapshot)


# -- one trial --------------------------------------------------------------------------------------------------------


async def grown(world: World, upstream: int, struck: Struck, seed: int) -> Tree | EnvFault:
    """A tree over that network, or why it has no root."""
    policy = ScriptedPolicy(lambda task, turns, tools, rng: world.says(rng.randrange(4)))
    async with FaultProxy(upstream) as proxy:

        async def opened() -> Any:
            return Behind(world.open(proxy.port, struck.deadline), proxy, struck)

        pool = Pool(opened, 1, deadline=struck.deadline)
        task = Task("grid", f"t{seed}", "find 3", truth={"answers": ["3"]}, horizon=4)
        try:
            return await search(
                task, pool, policy, rule=best_first(draws=2, root_draws=2), budget=Budget(expansions=3),
                settings=Settings(seed=seed, max_tokens=64, retries=2),
            )  # fmt: skip
        except EnvFault as error:
            return error
        finally:
            await pool.close()


def zeros(tree: Tree) -> int:
    """Nodes that are faults and have a reward all the same."""
    return sum(tree.status[i] is NodeStatus.FAULT and not math.isnan(tree.reward(i)) for i in range(len(tree)))


async def trial(name: str, fault: str, place: str, number: int, upstream: int, quiet: dict[Any, str]) -> Counter[str]:
    """Counts of one; `quiet` holds the trees of a quiet network by seed."""
    seed, stays = number // 2, number % 2 == 1
    kind = status(504) if name == "pages" and fault == "wrong" else FAULTS[fault]
    deadline = patient(SHORT if fault in ENDLESS else DEADLINE)
    if (name, seed) not in quiet:
        found = await grown(WORLDS[name], upstream, Struck("", None, 0, patient(DEADLINE)), seed)
        assert isinstance(found, Tree), found
        quiet[name, seed] = found.digest()
    hangs = 0
    for _ in range(TRIES):
        struck = Struck(place, kind, 99 if stays else 1, deadline)
        found = await grown(WORLDS[name], upstream, struck, seed)
        if not struck.slow:
            break
        control = Struck("", None, 0, deadline)
        await grown(WORLDS[name], upstream, control, seed)
        if control.slow:  # so it is without a fault
            return Counter(grid_left_out=1)
    else:
        hangs = 1  # what nobody broke hangs, and only where something was broken before
    hangs = hangs or int(struck.over > patient(MORE))
    counts = Counter(grid_trials=1, grid_faults_met=int(struck.calls > 0), grid_hangs=hangs)
    if isinstance(found, Tree):
        same = found.digest() == quiet[name, seed]
        lost = NodeStatus.FAULT in found.status
        counts["grid_rewards_of_faults"] += zeros(found)
        counts["grid_mended"] += same
        # Whatever is no longer the tree of a quiet network says so, and only what stays may make it another.
        counts["grid_wrong_trees"] += not same and (found.exact or not lost or not stays)
    else:
        counts["grid_no_root"] += 1
        counts["grid_wrong_trees"] += not (stays and place == "opening")
    if counts["grid_wrong_trees"] or counts["grid_hangs"] or counts["grid_rewards_of_faults"]:
        why = found if isinstance(found, EnvFault) else f"{[s.value for s in found.status]} {found.reasons}"
        print(f"FAILED {name}: {fault} at {place} {number}: {dict(counts)}, {struck.over:+.1f} s, {why}", flush=True)
    return counts


async def trials(
    each: int, worlds: Sequence[str] = tuple(WORLDS), faults: Sequence[str] = tuple(FAULTS)
) -> Counter[str]:
    """So many trials at every point of the grid."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    total: Counter[str] = Counter()
    try:
        for name in worlds:
            gate, quiet = asyncio.Semaphore(2 if name == "pages" else 6), dict[Any, str]()

            async def one(words: tuple[str, str, int], name: str = name) -> Counter[str]:
                async with gate:  # noqa: B023
                    return await trial(name, *words, server.server_port, quiet)  # noqa: B023

            asked = [(fault, place, i) for fault in faults for place in PLACES for i in range(each)]
            found = sum(await asyncio.gather(*map(one, asked)), Counter[str]())
            print(f"{name:9} {dict(found)}", flush=True)
            total += found
    finally:
        server.shutdown()
        server.server_close()
        if "pages" in worlds:
            from treewright.envs.web.browser import close_browser

            await close_browser()
    return total


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two of each, without the browser")
    parser.add_argument("--each", type=int, help="trials at every point; 100")
    parser.add_argument("--only", nargs="+", choices=list(WORLDS))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(words)
    worlds = asked.only or [name for name in WORLDS if not (asked.quick and name == "pages")]
    logging.disable(logging.CRITICAL)
    counts = asyncio.run(trials(asked.each or (2 if asked.quick else 100), worlds))
    wrong = ("grid_hangs", "grid_rewards_of_faults", "grid_wrong_trees")
    figures = {name: (float(counts[name]), "1") for name in (*wrong, *sorted(counts))}
    for name, (value, _) in figures.items():
        print(f"{name:24} {value:,.0f}")
    if asked.json is not None:
        write_figures(asked.json, figures, quick=asked.quick, worlds=list(worlds))
    return 1 if any(counts[name] for name in wrong) else 0


if __name__ == "__main__":
    sys.exit(main())
