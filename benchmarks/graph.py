"""What the LangGraph episode graph adds to the bare engine, per expansion."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

from treewright.agent.policies.scripted import ScriptedPolicy, scripted_choice
from treewright.agent.runs.graph import episode_graph
from treewright.envs.maze import make_suite
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import breadth_first
from treewright.search.types import Budget

__all__ = ["figures"]

MOVES = [(f'move {{"to": "{way}"}}', 0.25) for way in ("north", "east", "south", "west")]


def figures(quick: bool = False) -> dict[str, tuple[float, str]]:
    """name → (value, unit): microseconds of processor time per expansion of the maze, medians of interleaved runs.

    langgraph_us_per_expansion        what the graph takes more than the bare engine, without a checkpointer
    langgraph_saver_us_per_expansion  the same with LangGraph's in-memory checkpointer
    engine_us_per_expansion           the bare engine's own, two draws an expansion, both executed
    """
    return asyncio.run(_measure(100 if quick else 400, 5 if quick else 9))


async def _measure(expansions: int, repeats: int) -> dict[str, tuple[float, str]]:
    from langgraph.checkpoint.memory import InMemorySaver

    suite = make_suite(12)
    (task,) = suite.tasks("train", 1)
    budget, settings, rule = Budget(expansions=expansions), Settings(), breadth_first(root_draws=2)

    def policy() -> ScriptedPolicy:
        return scripted_choice(MOVES)

    async def bare() -> None:
        await search(task, Pool(suite.open), policy(), rule=rule, budget=budget, settings=settings)

    async def graph(saver: object = None) -> None:
        made = episode_graph(
            Pool(suite.open), [task], policy(), rule=rule, budget=budget, settings=settings, checkpointer=saver
        )
        await made.ainvoke({"task_id": task.id}, {"configurable": {"thread_id": "1"}} if saver is not None else None)

    ways: dict[str, Callable[[], Awaitable[None]]] = {
        "bare": bare,
        "graph": graph,
        "saver": lambda: graph(InMemorySaver()),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            start = time.process_time()
            await run()
            taken[name].append((time.process_time() - start) * 1e6 / expansions)
    middle = {name: statistics.median(times[1:]) for name, times in taken.items()}
    return {
        "langgraph_us_per_expansion": (middle["graph"] - middle["bare"], "µs"),
        "langgraph_saver_us_per_expansion": (middle["saver"] - middle["bare"], "µs"),
        "engine_us_per_expansion": (middle["bare"], "µs"),
    }
