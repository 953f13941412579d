"""Repair after changes costs little and ends with the costs of a restart."""

from __future__ import annotations

import asyncio
import math
import random
import statistics
from typing import Any

import pytest

from treewright.benchmarks.repair import WAYS, Grid, Terrain, compare
from treewright.envs import Action, Restore, Task, TreewrightError
from treewright.search.planning.repair import EnvironmentProbe, Planner

MOVES = [Action.of(way) for way in WAYS]


def planner(terrain: Terrain, ways: frozenset[Any] | None = None) -> Planner:
    cost = lambda result: float(result.info["cost"])  # noqa: E731
    return Planner(EnvironmentProbe(Grid(terrain, ways), Task("grid", "grid", ""), cost, MOVES))


async def grown(terrain: Terrain, ways: Any = None) -> Planner:
    made = planner(terrain, ways)
    await made.start()
    await made.grow()
    return made


def key(way: str) -> str:
    return Action.of(way).key


def truth(terrain: Terrain) -> dict[str, Any]:
    return {str(state): cost for state, cost in terrain.costs().items()}


@pytest.mark.parametrize("seed", range(12))
async def test_costs_after_many_changes_are_those_of_dijkstra_on_the_changed_world(seed: int) -> None:
    rng = random.Random(seed)
    terrain = Terrain.make(9, 7, seed)
    made = await grown(terrain)
    for _ in range(8):
        changed = terrain.change(rng.randint(1, 12), rng)
        made.invalidate([(str(state), key(way)) for state, way in changed])
        await made.grow()
        assert made.cost == truth(terrain)
        for state in made.cost:
            assert sum(made.edges[hop].cost for hop in made.path(state)) == pytest.approx(made.cost[state])


@pytest.mark.parametrize("ways", [frozenset({Restore.STATE}), frozenset({Restore.REPLAY})])
async def test_every_way_back_gives_the_same_costs_and_saves_steps(ways: frozenset[Restore]) -> None:
    outcome = await compare(5, 10, 8, 3, ways)
    assert outcome.same and 0 < outcome.repair < outcome.restart


async def test_an_unaffected_world_costs_no_step() -> None:
    terrain = Terrain.make(10, 8, 1)
    made = await grown(terrain)
    before = made.probe.steps
    assert made.invalidate([]) == set()
    await made.grow()
    assert made.probe.steps == before


async def test_the_queue_survives_a_change_in_mid_search() -> None:
    terrain = Terrain.make(10, 8, 2)
    made = planner(terrain)
    await made.start()
    far = max(terrain.costs(), key=terrain.costs().__getitem__)
    near = sorted(terrain.costs(), key=terrain.costs().__getitem__)[30]
    await made.grow(str(near))
    waiting = len(made._queue)
    state, action = made.path(str(near))[1]
    way = Action.from_key(action).name
    del terrain.steps[int(str(state)), way]
    orphans = made.invalidate([(state, action)])
    assert orphans and len(made._queue) >= waiting
    assert await made.grow(str(far)) == terrain.costs().get(far, math.inf)


async def test_a_state_cut_off_has_no_cost_and_comes_back_when_a_way_opens() -> None:
    terrain = Terrain(3, 1, {(0, "east"): (1, 1.0), (1, "east"): (2, 2.0)})
    made = await grown(terrain)
    gone = terrain.steps.pop((0, "east"))
    assert made.invalidate([("0", key("east"))]) == {"1", "2"}
    await made.grow()
    assert made.cost == {"0": 0.0} and await made.grow("2") == math.inf
    terrain.steps[0, "east"] = gone
    made.invalidate([("0", key("east"))])
    assert await made.grow("2") == 3.0


async def test_an_unnamed_change_is_found_on_the_way_and_repaired_there() -> None:
    for seed in range(6):
        terrain = Terrain.make(8, 8, seed)
        made = await grown(terrain)
        goal = max(made.cost, key=made.cost.__getitem__)
        state, action = made.path(goal)[3]
        del terrain.steps[int(str(state)), Action.from_key(action).name]
        assert await made.confirm(goal) == truth(terrain).get(str(goal), math.inf)


async def test_a_replay_that_diverges_orphans_what_hangs_on_the_step_that_went_wrong() -> None:
    terrain = Terrain(
        4, 1, {(0, "east"): (1, 1.0), (1, "east"): (2, 1.0), (2, "east"): (3, 1.0), (0, "west"): (2, 9.0)}
    )
    made = planner(terrain, frozenset({Restore.REPLAY}))
    await made.start()
    await made.grow("2")
    terrain.steps[0, "east"] = (3, 1.0)
    await made.grow()
    assert made.cost == truth(terrain)


async def test_an_irreversible_action_invalidates_what_it_touched() -> None:
    terrain = Terrain.make(8, 8, 4)
    made = await grown(terrain)
    for state, way in list(terrain.steps):
        if way == "east" and state % 8 == 3:
            terrain.steps[state, way] = (state + 1, 30.0)
    orphans = made.invalidate_where(lambda state, action: action == key("east") and int(str(state)) % 8 == 3)
    assert 0 < len(orphans) < len(made.edges)
    await made.grow()
    assert made.cost == truth(terrain)


async def test_a_world_whose_beginning_changed_and_a_free_step_are_refused() -> None:
    terrain = Terrain(3, 1, {(0, "east"): (1, 0.0)})
    made = planner(terrain)
    await made.start()
    with pytest.raises(TreewrightError, match="must cost more than 0"):
        await made.grow()


def test_the_figure_is_within_its_bound_on_a_few_worlds() -> None:
    outcomes = [asyncio.run(compare(seed)) for seed in range(5)]
    assert all(outcome.same for outcome in outcomes)
    assert statistics.median(outcome.ratio for outcome in outcomes) <= 0.15
