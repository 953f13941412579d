"""Plans in AND/OR graphs with circles: least cost by brute force, budgets, ranked routes, a watchdog."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from treewright.envs import TreewrightError
from treewright.search.planning.and_or import Step, plan


def solver_of(graph: dict[str, list[Step]]) -> tuple[Callable[[Any], Coroutine[Any, Any, Any]], list[Any]]:
    asked = []

    async def solver(goal: str) -> list[Step]:
        asked.append(goal)
        return graph.get(goal, [])

    return solver, asked


def random_graph(rng: random.Random, goals: int) -> dict[str, list[Step]]:
    """Circles, dead ends and parts that are needed twice; goal 0 is the target."""
    graph = {}
    for g in range(goals):
        steps = []
        for _ in range(rng.randint(0, 3)):
            parts = tuple(str(rng.randrange(goals)) for _ in range(rng.randint(0, 3)))
            steps.append(Step(parts, float(rng.randint(0, 4))))
        graph[str(g)] = steps
    return graph


def brute(graph: dict[str, list[Step]], goal: str) -> float:
    """Costs by repeated minimisation from above: after n rounds every plan without a circle was seen."""
    cost = dict.fromkeys(graph, math.inf)
    for _ in range(len(graph) + 1):
        cost = {g: min((s.cost + sum(cost[p] for p in s.parts) for s in steps), default=math.inf)
                for g, steps in graph.items()}  # fmt: skip
    return cost[goal]


def every_route(graph: dict[str, list[Step]], goal: str) -> list[Any]:
    """(cost, steps) of each way to choose one step per goal that reaches the target without a circle."""
    names = [g for g in graph if graph[g]]
    found = {}
    for choice in itertools.product(*(range(len(graph[g])) for g in names)):
        picked = {g: graph[g][i] for g, i in zip(names, choice, strict=True)}
        used: dict[str, Any] = {}

        def cost(g: str, above: frozenset[Any], picked: dict[str, Any] = picked, used: dict[str, Any] = used) -> Any:
            if g in above or g not in picked:
                return math.inf
            used[g] = picked[g]
            return picked[g].cost + sum(cost(p, above | {g}) for p in picked[g].parts)

        whole = cost(goal, frozenset())
        if math.isfinite(whole):
            found[tuple(sorted((g, graph[g].index(s)) for g, s in used.items()))] = whole
    return sorted(found.values())


async def test_a_circle_reaches_nothing_and_hangs_nothing() -> None:
    solver, asked = solver_of({"soup": [Step(("mix",))], "mix": [Step(("salt",))], "salt": [Step(("mix",))]})
    found = await asyncio.wait_for(plan("soup", solver), 120)
    assert found.routes == () and math.isinf(found.bound) and asked == ["soup", "mix", "salt"]
    solver, _ = solver_of({"mix": [Step(("salt",))], "salt": [Step(("mix",)), Step((), 2.0, "buy")]})
    found = await asyncio.wait_for(plan("mix", solver), 120)
    assert found.proved and found.routes[0].cost == 2.0 and found.routes[0].steps["salt"].name == "buy"


@pytest.mark.parametrize("at_once", [1, 8])
async def test_random_circles_are_solved_at_least_cost_within_the_budget(at_once: int) -> None:
    rng, reached = random.Random(at_once), 0
    for _ in range(150):
        graph = random_graph(rng, rng.randint(2, 12))
        solver, asked = solver_of(graph)
        best = brute(graph, "0")
        found = await plan("0", solver, at_once=at_once)
        assert len(asked) == len(set(asked)) == len(found.asked)
        assert found.bound == best
        assert [r.cost for r in found.routes] == ([best] if math.isfinite(best) else [])
        reached += math.isfinite(best)
        budget = rng.randint(1, 6)
        solver, asked = solver_of(graph)
        some = await plan("0", solver, budget=budget, at_once=at_once)
        assert len(asked) <= budget and some.bound <= best
        assert all(route.cost >= best for route in some.routes)
    assert reached > 40


def capped(truth: dict[str, float]) -> Callable[[str], float]:
    return lambda goal: min(truth[goal], 1e6)


async def test_true_estimates_save_questions_and_change_no_cost() -> None:
    rng, saved = random.Random(3), 0
    for _ in range(60):
        graph = random_graph(rng, 10)
        truth = {g: brute(graph, g) for g in graph}
        plain, some = solver_of(graph), solver_of(graph)
        blind = await plan("0", plain[0], at_once=1)
        known = await plan("0", some[0], at_once=1, estimate=capped(truth))
        assert math.isinf(truth["0"]) or known.routes[0].cost == blind.routes[0].cost
        saved += len(plain[1]) - len(some[1])
    assert saved > 0


async def test_ranked_routes_are_those_that_trying_all_finds() -> None:
    rng, several = random.Random(7), 0
    for _ in range(60):
        graph = random_graph(rng, 6)
        costs = every_route(graph, "0")
        solver, asked = solver_of(graph)
        found = await plan("0", solver, routes=5)
        assert [r.cost for r in found.routes] == pytest.approx(costs[:5]) and len(asked) == len(set(asked))
        several += len(costs) > 2
    assert several >= 3


async def test_shared_intermediates_are_made_once_for_several_targets() -> None:
    graph = {"a": [Step(("dough", "jam"), 1.0)], "b": [Step(("dough",), 1.0)], "dough": [Step((), 5.0)],
             "jam": [Step((), 2.0)]}  # fmt: skip
    solver, asked = solver_of(graph)
    (route,) = (await plan(["a", "b"], solver)).routes
    assert (route.cost, route.shared) == (14.0, 9.0) and list(route.steps)[:2] == ["a", "b"] and len(asked) == 4


async def test_other_tasks_get_their_turn_in_a_large_graph() -> None:
    """A watchdog: the longest it had to wait while a plan of 20,000 goals in circles was made."""
    n, loop = 20_000, asyncio.get_running_loop()

    async def solver(goal: str) -> list[Any]:
        g = int(goal)
        if 2 * g + 2 >= n:
            return [Step((str(g // 2),)), Step((), 1.0)]
        return [Step((str(2 * g + 1), str(2 * g + 2)), 1.0), Step((str(g // 2),), 0.0)]

    waits = []

    async def watch() -> None:
        while True:
            began = loop.time()
            await asyncio.sleep(0)
            waits.append(loop.time() - began)

    watchdog = asyncio.create_task(watch())
    found = await plan("0", solver, budget=n, at_once=256)
    watchdog.cancel()
    assert found.proved and len(found.asked) == n - 1
    assert len(waits) > 10, "it had its turn many times"


@pytest.mark.parametrize("wrong", [{"budget": 0}, {"routes": 0}, {"at_once": 0}, {"estimate": lambda g: -1.0}])
async def test_invalid_budgets_targets_and_costs_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TreewrightError):
        await plan("a", solver_of({})[0], **wrong)
    with pytest.raises(TreewrightError):
        await plan([], solver_of({})[0])
    with pytest.raises(TreewrightError, match="cost"):
        Step((), -1.0)
