"""Sections of `treewright bench search` about the engine: what a node costs, and what sessions side by side gain."""

from __future__ import annotations

import asyncio
import random
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.agent.policies.uniform import uniform_calls
from treewright.envs.errors import TreewrightError
from treewright.envs.maze import make_suite
from treewright.envs.registry import suite as find_suite
from treewright.envs.types import Suite, Task, ToolSpec
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import best_first
from treewright.search.store import TreeStore
from treewright.search.types import Budget, Exchange, Proposer

__all__ = ["figures", "session_figures"]

Figures = dict[str, tuple[float, str]]

MOVES = [*(f'move {{"to": "{way}"}}' for way in ("north", "east", "south", "west")), "stop {}"]
PER_POP = 2.9  # nodes that a pop of four draws makes in the maze, duplicates merged
SIDE = 8  # cells; its horizon lets a tree of 1e5 nodes grow


def walk(task: Task, turns: Sequence[Exchange], tools: Sequence[ToolSpec], rng: random.Random) -> str:
    """A step in any direction, now and then the end."""
    return MOVES[int(rng.random() * len(MOVES))]


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds per node: of all threads of the process, and by the clock."""

    nodes: int
    cpu: float
    wall: float


async def cost_of(nodes: int, growing: bool = False) -> Cost:
    """Grows about `nodes` nodes in one tree on a maze, every expansion stored, the last one committed.

    growing  prompts grow with the path, so that deep nodes have more tokens; else all have about the same length
    """
    suite = make_suite(SIDE)
    task = suite.tasks("train", 1)[0]
    policy = ScriptedPolicy(walk, trainable=False, newest_only=not growing)
    with (
        tempfile.TemporaryDirectory(prefix="treewright-bench-") as folder,
        TreeStore.open(Path(folder) / "trees.sqlite") as store,
    ):
        cpu, wall = time.process_time(), time.perf_counter()
        tree = await search(
            task, suite, policy, rule=best_first(draws=4), store=store,
            budget=Budget(expansions=round(nodes / PER_POP)), settings=Settings(max_tokens=32),
        )  # fmt: skip
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        if store.status(tree.tree_id) != "done":
            raise TreewrightError("the tree was not stored to its end")
    return Cost(len(tree), cpu / len(tree) * 1e6, wall / len(tree) * 1e6)


def figures(quick: bool) -> Figures:
    """engine_us_per_node_1e3 and _1e5 (_1e4 in a quick run): processor time per node of all threads, environment,
    scripted policy and store included, and the same by the clock as ..._wall. The nodes of a large tree lie deeper: as
    ..._growing_prompts with prompts that grow with the path."""
    asyncio.run(cost_of(300))  # the first search pays for imports and compiled schemas
    sizes = {"1e3": 3 if quick else 9, "1e4" if quick else "1e5": 1}
    out: Figures = {}
    for kind, growing in (("", False), ("_growing_prompts", True)):
        for size, times in sizes.items():
            costs = [asyncio.run(cost_of(int(float(size)), growing)) for _ in range(times)]
            out[f"engine_us_per_node_{size}{kind}"] = (statistics.median(c.cpu for c in costs), "us")
            out[f"engine_us_per_node_{size}{kind}_wall"] = (statistics.median(c.wall for c in costs), "us")
    return out


# -- sessions side by side ------------------------------------------------------------------------------------------

_REFERENCE = re.compile(r"\be\d+\b")


def click(task: Task, turns: Sequence[Exchange], tools: Sequence[ToolSpec], rng: random.Random) -> str:
    """Clicks on something that the page shows, or goes back where it shows nothing."""
    shown = _REFERENCE.findall(turns[-1].observation.text) if turns else []
    if not shown:
        return 'goto {"path": "/"}' if not turns else "back {}"
    return f'click {{"ref": "{shown[int(rng.random() * len(shown))]}"}}'


async def speedup(suite: Suite, policy: Proposer, sessions: int, expansions: int, tasks: int) -> float:
    """Seconds with one session over seconds with `sessions`, the same trees at the same width; sessions are warm.

    Raises TreewrightError if the trees differ.
    """
    seconds, digests = [], []
    try:
        for size in (1, sessions):
            pool = Pool(suite.open, size)
            try:
                await _warm(suite, pool)
                await _grow(suite, pool, policy, sessions, sessions, 1)
                began = time.perf_counter()
                digests.append(await _grow(suite, pool, policy, sessions, expansions, tasks))
                seconds.append(time.perf_counter() - began)
            finally:
                await pool.close()
    finally:
        if suite.close is not None:
            await suite.close()
    if digests[0] != digests[1]:
        raise TreewrightError(f"{suite.name}: {sessions} sessions gave other trees than one")
    return seconds[0] / seconds[1]


async def _warm(suite: Suite, pool: Pool) -> None:
    """Every session is open and has begun a task."""
    task = suite.tasks("test", 1)[0]
    async with AsyncExitStack() as held:
        some = [await held.enter_async_context(pool.lease("warm")) for _ in range(pool.size)]
        await asyncio.gather(*(session.env.reset(task, 0) for session in some))
        for session in some:
            session.lost()


async def _grow(suite: Suite, pool: Pool, policy: Proposer, width: int, expansions: int, tasks: int) -> list[str]:
    trees = [
        await search(
            task, pool, policy, rule=best_first(draws=4, root_draws=8), budget=Budget(expansions=expansions),
            settings=Settings(in_flight=width, max_tokens=200),
        )
        for task in suite.tasks("test", tasks)
    ]  # fmt: skip
    return [tree.digest() for tree in trees]


def session_figures(quick: bool) -> Figures:
    """sessions_8_vs_1_speedup_web on `market` and ..._tools on `office`; a world that cannot be opened here is left
    out."""
    out: Figures = {}
    some = (8, 1) if quick else (32, 3)
    clicks = ScriptedPolicy(click, trainable=False)
    for key, name, policy in (("web", "market", clicks), ("tools", "office", uniform_calls)):
        suite = find_suite(name)
        try:
            if suite.available is not None:
                suite.available()
        except TreewrightError:
            continue
        out[f"sessions_8_vs_1_speedup_{key}"] = (asyncio.run(speedup(suite, policy, 8, *some)), "x")
    return out
