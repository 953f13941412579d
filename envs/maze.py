"""A maze on a grid: small, deterministic, forkable, with faults on demand. For tests and documentation.

Walls are drawn by the task's seed so that the goal is always reachable. `move` walks, `stop` ends the episode with
reward 1 at the goal, and `press` is an irreversible button that leaves a mark in the shared `ledger` of its world.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from treewright.envs.errors import EnvFault, InvalidAction, SessionDied
from treewright.envs.types import (
    Action,
    BaseEnvironment,
    Effect,
    Environment,
    Observation,
    Restore,
    Snapshot,
    StepResult,
    Suite,
    Task,
    ToolSpec,
    Turn,
    digest,
)

__all__ = ["SUITE", "Faults", "Maze", "make_suite"]

STATE = struct.Struct("<iqiii?")  # size, seed, place, how often the button was pressed, over or not
STEPS = {"north": (0, -1), "east": (1, 0), "south": (0, 1), "west": (-1, 0)}
TOOLS = (
    ToolSpec(
        "move",
        "walk one cell",
        {
            "type": "object",
            "properties": {"to": {"type": "string", "enum": list(STEPS)}},
            "required": ["to"],
            "additionalProperties": False,
        },
        Effect.REVERSIBLE,
    ),
    ToolSpec("press", "press the button; cannot be undone", {"type": "object", "properties": {}}, Effect.IRREVERSIBLE),
    ToolSpec("stop", "end here", {"type": "object", "properties": {}}, Effect.READ, terminal=True),
)

Cell = tuple[int, int]


@dataclass(slots=True)
class Faults:
    """Trouble to make, by index of the step call counted over all sessions of the world.

    kinds: 'die' SessionDied, 'error' EnvFault, 'hang' never answers, 'wrong' a state nobody asked for.
    """

    at: Mapping[int, str] = field(default_factory=dict)
    calls: int = 0

    def next(self) -> str | None:
        self.calls += 1
        return self.at.get(self.calls - 1)


@lru_cache(maxsize=256)
def _open_walls(size: int, seed: int) -> Mapping[Cell, tuple[str, ...]]:
    """Exits of every cell: a random spanning tree and a few extra doors."""
    rng = random.Random(f"maze {size} {seed}")
    exits: dict[Cell, set[str]] = {(x, y): set() for x in range(size) for y in range(size)}
    opposite = {"north": "south", "south": "north", "east": "west", "west": "east"}
    seen, stack = {(0, 0)}, [(0, 0)]
    while stack:
        x, y = stack[-1]
        ways = [d for d, (dx, dy) in STEPS.items() if (x + dx, y + dy) in exits and (x + dx, y + dy) not in seen]
        if not ways:
            stack.pop()
            continue
        way = rng.choice(ways)
        there = (x + STEPS[way][0], y + STEPS[way][1])
        exits[(x, y)].add(way)
        exits[there].add(opposite[way])
        seen.add(there)
        stack.append(there)
    for cell in rng.sample(sorted(exits), size):
        way = rng.choice(list(STEPS))
        there = (cell[0] + STEPS[way][0], cell[1] + STEPS[way][1])
        if there in exits:
            exits[cell].add(way)
            exits[there].add(opposite[way])
    return {cell: tuple(sorted(ways)) for cell, ways in exits.items()}


def _distances(exits: Mapping[Cell, Sequence[str]], goal: Cell) -> dict[Cell, int]:
    far, queue = {goal: 0}, deque([goal])
    while queue:
        x, y = queue.popleft()
        for way in exits[(x, y)]:
            there = (x + STEPS[way][0], y + STEPS[way][1])
            if there not in far:
                far[there] = far[(x, y)] + 1
                queue.append(there)
    return far


@lru_cache(maxsize=4096)
def _observation(size: int, at: Cell, pressed: int, ended: bool, ways: tuple[str, ...]) -> Observation:
    """What a state looks like; states are few and come again and again."""
    x, y = at
    goal = " goal" if at == (size - 1, size - 1) else ""
    text = "stopped" if ended else f"at {x},{y}{goal} open {' '.join(ways)}"
    return Observation(text, digest("maze", f"{size} {at} {pressed} {ended}"))


class Maze(BaseEnvironment):
    """One walker. Sandboxed by default; live (`sandboxed=False`) all sessions share the ledger of pressed buttons."""

    name = "maze"
    restore_ways = frozenset({Restore.FORK, Restore.STATE, Restore.REPLAY})
    tools = TOOLS

    def __init__(
        self,
        *,
        sandboxed: bool = True,
        ways: frozenset[Restore] | None = None,
        faults: Faults | None = None,
        ledger: list[str] | None = None,
    ) -> None:
        self.sandboxed = sandboxed
        self.restore_ways = self.restore_ways if ways is None else ways
        self.faults = faults or Faults()
        self.ledger = ledger if ledger is not None else []
        self.dead = False

    async def reset(self, task: Task, key: int) -> Observation:
        self._alive()
        self.size = int(task.data.get("size", 3))
        self.seed = task.seed
        self.exits = _open_walls(self.size, self.seed)
        self.at: Cell = (0, 0)
        self.pressed = 0
        self.ended = False
        return self._seen()

    async def step(self, action: Action, key: int) -> StepResult:
        self._alive()
        if (kind := self.faults.next()) is not None:
            await self._trouble(kind)
        if self.ended:
            raise InvalidAction("the episode is over; reset to begin again")
        if action.name == "move":
            way = action.calls[0].arguments.get("to")
            if not isinstance(way, str) or way not in STEPS:
                raise InvalidAction(f"move needs to = one of {', '.join(STEPS)}")
            if way not in self.exits[self.at]:
                raise InvalidAction(f"there is a wall to the {way}; open: {' '.join(self.exits[self.at])}")
            self.at = (self.at[0] + STEPS[way][0], self.at[1] + STEPS[way][1])
            return StepResult(self._seen(), effect=Effect.REVERSIBLE)
        if action.name == "press":
            self.pressed += 1
            self.ledger.append(f"{self.at}")
            return StepResult(self._seen(), effect=Effect.IRREVERSIBLE)
        if action.name == "stop":
            self.ended = True
            reward = float(self.at == (self.size - 1, self.size - 1))
            return StepResult(self._seen(), reward, terminated=True)
        raise InvalidAction(f"no action named {action.name!r}; known: move, press, stop")

    async def snapshot(self) -> Snapshot:
        self._alive()
        data = STATE.pack(self.size, self.seed, *self.at, self.pressed, self.ended)
        return Snapshot(Restore.STATE, data, self._seen().fingerprint, size=len(data))

    async def restore(self, snapshot: Snapshot) -> Observation:
        self._alive()
        self.size, self.seed, x, y, self.pressed, self.ended = STATE.unpack(snapshot.data)
        self.at = (x, y)
        self.exits = _open_walls(self.size, self.seed)
        return self._seen()

    def _seen(self) -> Observation:
        return _observation(self.size, self.at, self.pressed, self.ended, self.exits[self.at])

    def _alive(self) -> None:
        if self.dead:
            raise SessionDied("the maze collapsed")

    async def _trouble(self, kind: str) -> None:
        if kind == "die":
            self.dead = True
            raise SessionDied("the maze collapsed")
        if kind == "error":
            raise EnvFault("the floor is wet")
        if kind == "hang":
            await asyncio.Event().wait()
        if kind == "wrong":
            self.at = (self.size - 1, 0) if self.at != (self.size - 1, 0) else (0, self.size - 1)


def _tasks(size: int) -> Callable[[str, int], Sequence[Task]]:
    def tasks(split: str, count: int) -> Sequence[Task]:
        out = []
        for i in range(count):
            seed = 2 * i + (split == "test")
            far = _distances(_open_walls(size, seed), (size - 1, size - 1))[(0, 0)]
            out.append(
                Task(
                    "maze", f"{split}-{size}-{i}", f"reach {size - 1},{size - 1} and stop", seed=seed, split=split,
                    horizon=far + 5, data={"size": size},
                )
            )  # fmt: skip
        return out

    return tasks


def oracle(task: Task, history: Sequence[Turn], tools: Sequence[ToolSpec]) -> Action:
    """Walks down the distance to the goal from wherever the last observation says it stands."""
    size = int(task.data.get("size", 3))
    exits = _open_walls(size, task.seed)
    far = _distances(exits, (size - 1, size - 1))
    x, y = 0, 0
    for turn in history:
        words = turn.observation.text.split()
        if words[:1] == ["at"]:
            x, y = (int(n) for n in words[1].split(","))
    if far[(x, y)] == 0:
        return Action.of("stop")
    return Action.of("move", to=min(exits[(x, y)], key=lambda w: far[(x + STEPS[w][0], y + STEPS[w][1])]))


def make_suite(size: int = 3) -> Suite:
    """Mazes of `size` × `size` cells; even seeds train, odd seeds test."""

    async def open_session() -> Environment:
        return Maze()

    return Suite(
        "maze", _tasks(size), open_session, oracle=oracle, description="walk to the far corner and stop", max_tokens=24
    )


SUITE = make_suite()
