"""What repair costs beside a restart: a world of 2,000 states in which 20 random steps change after it was searched."""

from __future__ import annotations

import asyncio
import heapq
import math
import random
import statistics
from dataclasses import dataclass

from treewright.envs.errors import InvalidAction
from treewright.envs.types import (
    Action,
    BaseEnvironment,
    Effect,
    Observation,
    Restore,
    Snapshot,
    StepResult,
    Task,
    ToolSpec,
)
from treewright.search.planning.repair import EnvironmentProbe, Hop, Planner

__all__ = ["Grid", "Outcome", "Terrain", "compare", "figures"]

WAYS = {"north": (0, -1), "south": (0, 1), "west": (-1, 0), "east": (1, 0)}
Steps = dict[tuple[int, str], tuple[int, float]]


@dataclass(slots=True)
class Terrain:
    """A grid of width × height states whose steps cost 1 to 9, each its own; `steps` maps (state, way) → (to, cost).

    A step that is missing is a wall. All sessions share the terrain, so a change is there for each of them.
    """

    width: int
    height: int
    steps: Steps

    @classmethod
    def make(cls, width: int, height: int, seed: int) -> Terrain:
        """A tenth of all steps is missing."""
        rng, steps = random.Random(f"terrain {seed}"), dict[tuple[int, str], tuple[int, float]]()
        for y in range(height):
            for x in range(width):
                for way, (dx, dy) in WAYS.items():
                    inside = 0 <= x + dx < width and 0 <= y + dy < height
                    if inside and rng.random() < 0.9:
                        steps[y * width + x, way] = ((y + dy) * width + x + dx, float(rng.randint(1, 9)))
        return cls(width, height, steps)

    def change(self, count: int, rng: random.Random) -> list[tuple[int, str]]:
        """Changes `count` random steps: gone, dearer, cheaper or leading elsewhere. Returns which."""
        changed = rng.sample(sorted(self.steps), count)
        for i, hop in enumerate(changed):
            to, cost = self.steps[hop]
            if i % 4 == 0:
                del self.steps[hop]
            elif i % 4 == 1:
                self.steps[hop] = (to, cost + rng.randint(1, 20))
            elif i % 4 == 2:
                self.steps[hop] = (to, max(0.5, cost - rng.randint(1, 8)))
            else:
                self.steps[hop] = (rng.randrange(self.width * self.height), cost)
        return changed

    def costs(self) -> dict[int, float]:
        """Cost of the cheapest way from state 0 to every state that can be reached: plain Dijkstra on the true map."""
        best, queue = {0: 0.0}, [(0.0, 0)]
        while queue:
            cost, state = heapq.heappop(queue)
            if cost > best[state]:
                continue
            for way in WAYS:
                to, price = self.steps.get((state, way), (state, math.inf))
                if cost + price < best.get(to, math.inf):
                    best[to] = cost + price
                    heapq.heappush(queue, (cost + price, to))
        return best


class Grid(BaseEnvironment):
    """A walker on a terrain. A snapshot holds the place only: the terrain may change under it."""

    name = "grid"
    restore_ways = frozenset({Restore.STATE, Restore.REPLAY})
    sandboxed = False
    tools = tuple(ToolSpec(way, effect=Effect.REVERSIBLE) for way in WAYS)

    def __init__(self, terrain: Terrain, ways: frozenset[Restore] | None = None) -> None:
        self.terrain, self.at = terrain, 0
        self.restore_ways = ways or self.restore_ways

    async def reset(self, task: Task, key: int) -> Observation:
        self.at = 0
        return self._seen()

    async def step(self, action: Action, key: int) -> StepResult:
        found = self.terrain.steps.get((self.at, action.name))
        if found is None:
            raise InvalidAction(f"there is no way {action.name}")
        self.at, cost = found
        return StepResult(self._seen(), info={"cost": cost})

    async def snapshot(self) -> Snapshot:
        return Snapshot(Restore.STATE, self.at, str(self.at), size=8)

    async def restore(self, snapshot: Snapshot) -> Observation:
        self.at = snapshot.data
        return self._seen()

    def _seen(self) -> Observation:
        return Observation(f"at {self.at}", str(self.at))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Environment steps of a repair and of a restart after the same change, and whether all costs came out equal."""

    repair: int
    restart: int
    same: bool

    @property
    def ratio(self) -> float:
        return self.repair / self.restart


async def compare(
    seed: int, width: int = 50, height: int = 40, changes: int = 20, ways: frozenset[Restore] | None = None
) -> Outcome:
    """One world searched whole, changed, and then both repaired and searched anew; the map's Dijkstra is the judge."""
    terrain = Terrain.make(width, height, seed)
    planner = _planner(terrain, ways)
    await planner.start()
    await planner.grow()
    before = planner.probe.steps
    changed = terrain.change(changes, random.Random(f"changes {seed}"))
    planner.invalidate([_hop(state, way) for state, way in changed])
    await planner.grow()
    again = _planner(terrain, ways)
    await again.start()
    await again.grow()
    truth = {str(state): cost for state, cost in terrain.costs().items()}
    return Outcome(planner.probe.steps - before, again.probe.steps, planner.cost == again.cost == truth)


def _planner(terrain: Terrain, ways: frozenset[Restore] | None) -> Planner:
    task = Task("grid", "grid", "reach every state")
    moves = [Action.of(way) for way in WAYS]
    probe = EnvironmentProbe(Grid(terrain, ways), task, lambda result: float(result.info["cost"]), moves)
    return Planner(probe)


def _hop(state: int, way: str) -> Hop:
    return str(state), Action.of(way).key


def figures(quick: bool = False) -> dict[str, tuple[float, str]]:
    """name → (value, unit): median share over 50 seeds (quick: 10) of a restart's environment steps that repair took.

    2,000 states, 20 random changed steps. `repair_same_costs` is the share of seeds in which repair, restart and
    Dijkstra on the true map agree on the cost of every state.
    """
    outcomes = asyncio.run(_all(10 if quick else 50))
    ratios = [outcome.ratio for outcome in outcomes]
    return {
        "repair_vs_restart_steps": (statistics.median(ratios), "share"),
        "repair_vs_restart_steps_worst": (max(ratios), "share"),
        "repair_same_costs": (sum(outcome.same for outcome in outcomes) / len(outcomes), "share"),
    }


async def _all(seeds: int) -> list[Outcome]:
    return [await compare(seed) for seed in range(seeds)]
