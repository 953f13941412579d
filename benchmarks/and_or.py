"""Section of `treewright bench search` about AND/OR search: random circles against brute force, and one large graph."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Mapping, Sequence

from treewright.search.planning.and_or import Step, plan

__all__ = ["brute_force", "figures", "large_graph", "random_graph"]

Graph = Mapping[str, Sequence[Step]]
GOALS = 100_000


def random_graph(rng: random.Random, goals: int) -> dict[str, list[Step]]:
    """Steps of random goals with circles, dead ends and parts that are needed twice; goal 0 is the target."""
    return {
        str(g): [
            Step(tuple(str(rng.randrange(goals)) for _ in range(rng.randint(0, 3))), float(rng.randint(0, 4)))
            for _ in range(rng.randint(0, 3))
        ]
        for g in range(goals)
    }


def brute_force(graph: Graph, goal: str) -> float:
    """Minima taken again from above: after as many rounds as goals every plan without a circle was seen."""
    cost = dict.fromkeys(graph, math.inf)
    for _ in range(len(graph) + 1):
        cost = {
            g: min((s.cost + sum(cost[p] for p in s.parts) for s in steps), default=math.inf)
            for g, steps in graph.items()
        }
    return cost[goal]


def large_graph(goals: int) -> dict[str, list[Step]]:
    """A binary tree of parts, every goal with a step that leads in a circle as well."""
    out = {}
    for g in range(goals):
        back = Step((str(g // 2),), 0.0)
        inner = Step((str(2 * g + 1), str(2 * g + 2)), 1.0) if 2 * g + 2 < goals else Step((), 1.0)
        out[str(g)] = [back, inner] if g else [inner]
    return out


async def _measure(graphs: int, goals: int) -> dict[str, tuple[float, str]]:
    rng = random.Random(0)
    wrong = over = solved = 0
    for _ in range(graphs):
        graph = random_graph(rng, rng.randint(2, 12))
        asked: list[str] = []

        async def solver(goal: str, graph: Graph = graph, asked: list[str] = asked) -> Sequence[Step]:
            asked.append(goal)
            return graph.get(goal, ())

        best = brute_force(graph, "0")
        for at_once in (1, 8):
            found = await plan("0", solver, at_once=at_once)
            cost = found.routes[0].cost if found.routes else math.inf
            wrong += cost != best or found.bound != best
            solved += math.isfinite(best)
        budget = rng.randint(1, 6)
        asked.clear()
        await plan("0", solver, budget=budget)
        over += len(asked) > budget
    large = large_graph(goals)

    def steps(goal: str) -> Sequence[Step]:
        return large[goal]

    began = time.process_time()
    found = await plan("0", steps, budget=goals, at_once=256)
    took = time.process_time() - began
    return {
        "andor_graphs": (float(graphs), "graphs"),
        "andor_with_plans": (solved / 2, "graphs"),
        "andor_suboptimal": (float(wrong), "graphs"),
        "andor_over_budget": (float(over), "graphs"),
        "andor_large_goals": (float(len(found.asked)), "goals"),
        "andor_large_proved": (float(found.proved), "1"),
        "andor_large_seconds": (took, "s"),
    }


def figures(quick: bool) -> dict[str, tuple[float, str]]:
    """andor_suboptimal: plans that cost more than brute force finds, or whose bound is another; andor_over_budget: more
    goals asked for than allowed; andor_large_seconds: processor time of one graph of 100,000 goals in circles."""
    return asyncio.run(_measure(100 if quick else 1000, GOALS // 10 if quick else GOALS))
