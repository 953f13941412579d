"""The suite `recipes:FILE.jsonl`: goals that fall into parts, several ways each, perhaps in circles; the plan counts.

    {"goal": "soup", "needs": ["mix", "water"], "cost": 1, "name": "cook"}      one way to reach a goal
    {"target": "soup"}                                                          what a task asks for, or ["a", "b"]

    take {"goal": "soup", "way": 0}     decides on a way for an open goal; its needs are open then, each once

An episode ends when nothing is open. The reward is the least cost of any plan over that of the one that was made, each
step counted as often as it is needed: 1.0 for the cheapest. Without targets: what nothing needs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from treewright.envs.errors import InvalidAction, TreewrightError
from treewright.envs.lines import json_value
from treewright.envs.tools.schema import check_action
from treewright.envs.types import (
    Action,
    BaseEnvironment,
    Effect,
    Observation,
    Restore,
    Snapshot,
    StepResult,
    Suite,
    Task,
    ToolSpec,
    digest,
)

__all__ = ["Recipes", "RecipesEnvironment", "Way", "least_costs", "read_recipes", "recipes_suite"]

LINE = '{"goal": "soup", "needs": ["salt"], "cost": 1}'
MOST = 10_000  # goals up to which least costs are computed for rewards


@dataclass(frozen=True, slots=True)
class Way:
    """One way to reach a goal: what it needs, none if it is there at once, and what it costs."""

    needs: tuple[str, ...] = ()
    cost: float = 0.0
    name: str = ""


@dataclass(frozen=True, slots=True)
class Recipes:
    """ways of each goal in the order of the file;  targets, each one or several goals"""

    ways: Mapping[str, tuple[Way, ...]]
    targets: tuple[tuple[str, ...], ...]


def read_recipes(path: str | Path) -> Recipes:
    """The recipes of a file. Raises TreewrightError naming the line that is none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TreewrightError(f"cannot read recipes from {str(path)!r}: {error}; a file has lines as {LINE}") from error
    ways: dict[str, list[Way]] = {}
    targets: list[tuple[str, ...]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json_value(line)
            if "target" in row:
                wanted = row["target"]
                targets.append(tuple(map(str, wanted)) if isinstance(wanted, list) else (str(wanted),))
                continue
            needs, cost = row.get("needs", []), float(row.get("cost", 1.0))
            if not isinstance(needs, list) or not math.isfinite(cost) or cost < 0:
                raise ValueError("needs is a list of goals, and cost a number from 0 on")
            ways.setdefault(str(row["goal"]), []).append(Way(tuple(map(str, needs)), cost, str(row.get("name", ""))))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TreewrightError(f"{path}, line {number} is no recipe: {error}; write lines as {LINE}") from error
    if not ways:
        raise TreewrightError(
            f'{path} holds no recipe; write lines as {{"goal": "soup", "needs": ["salt"], "cost": 1}}'
        )
    needed = {need for some in ways.values() for way in some for need in way.needs}
    found = targets or [(goal,) for goal in ways if goal not in needed] or [(next(iter(ways)),)]
    return Recipes({goal: tuple(dict.fromkeys(some)) for goal, some in ways.items()}, tuple(found))


def least_costs(ways: Mapping[str, Sequence[Way]]) -> dict[str, float]:
    """The least cost of every goal, infinite where it cannot be reached: minima taken again until nothing falls."""
    cost = dict.fromkeys(ways, math.inf)
    falling = True
    while falling:
        falling = False
        for goal, some in ways.items():
            least = min((w.cost + sum(cost.get(need, math.inf) for need in w.needs) for w in some), default=math.inf)
            if least < cost[goal]:
                cost[goal], falling = least, True
    return cost


def _take() -> ToolSpec:
    schema = {
        "type": "object",
        "properties": {"goal": {"type": "string"}, "way": {"type": "integer", "minimum": 0}},
        "required": ["goal", "way"],
        "additionalProperties": False,
    }
    return ToolSpec("take", "decides on a way for an open goal, by its number", schema, Effect.REVERSIBLE)


class RecipesEnvironment(BaseEnvironment):
    """One session: which way was taken for which goal, and what is open."""

    restore_ways = frozenset({Restore.STATE, Restore.REPLAY})
    sandboxed = True
    tools = (_take(),)

    def __init__(self, recipes: Recipes, name: str) -> None:
        self.name, self._recipes = name, recipes
        self._targets: tuple[str, ...] = ()
        self._taken: dict[str, int] = {}
        self._started = False

    async def reset(self, task: Task, key: int) -> Observation:
        targets = task.data.get("targets")
        if not isinstance(targets, list | tuple) or not targets:
            raise TreewrightError(f"task {task.id!r} has no data.targets; give it a list of goals")
        self._targets, self._taken, self._started = tuple(map(str, targets)), {}, True
        return self._seen()

    async def actions(self) -> Sequence[ToolSpec]:
        return self.tools

    async def step(self, action: Action, key: int) -> StepResult:
        if not self._started:
            raise TreewrightError(f"{self.name}: step before reset; call reset(task, key) first")
        check_action(action, self.tools)
        if len(action.calls) != 1:
            raise InvalidAction("one way a turn")
        goal, number = str(action.calls[0].arguments["goal"]), int(action.calls[0].arguments["way"])
        if goal not in self._open():
            raise InvalidAction(f"{goal!r} is not open; open: {', '.join(self._open()) or 'nothing'}")
        ways = self._recipes.ways.get(goal, ())
        if number >= len(ways):
            raise InvalidAction(f"{goal!r} has {len(ways)} ways, numbered from 0")
        if any(goal == need or goal in self._below(need) for need in ways[number].needs):
            raise InvalidAction(f"{goal!r} would need itself that way")
        self._taken[goal] = number
        ended = not self._open()
        return StepResult(self._seen(), self._reward() if ended else 0.0, ended, effect=Effect.REVERSIBLE)

    async def effect(self, action: Action) -> Effect:
        return Effect.REVERSIBLE

    async def snapshot(self) -> Snapshot:
        data = json.dumps([self._targets, self._taken]).encode()
        return Snapshot(Restore.STATE, data, self._print(), size=len(data))

    async def restore(self, snapshot: Snapshot) -> Observation:
        targets, taken = json.loads(snapshot.data)
        self._targets, self._taken, self._started = tuple(targets), taken, True
        return self._seen()

    # -- the plan so far ----------------------------------------------------------------------------------------

    def _walk(self) -> list[str]:
        """Every goal that the plan needs, from the targets down, each once."""
        order = list(dict.fromkeys(self._targets))
        seen = set(order)
        for goal in order:
            for need in self._needs(goal):
                if need not in seen:
                    seen.add(need)
                    order.append(need)
        return order

    def _needs(self, goal: str) -> tuple[str, ...]:
        return self._recipes.ways[goal][self._taken[goal]].needs if goal in self._taken else ()

    def _open(self) -> list[str]:
        return [goal for goal in self._walk() if goal not in self._taken]

    def _below(self, goal: str) -> set[str]:
        seen, waiting = {goal}, [goal]
        for at in waiting:
            for need in self._needs(at):
                if need not in seen:
                    seen.add(need)
                    waiting.append(need)
        return seen

    def _reward(self) -> float:
        costs: dict[str, float] = {}

        def cost(goal: str) -> float:
            if goal not in costs:
                way = self._recipes.ways[goal][self._taken[goal]]
                costs[goal] = way.cost + sum(map(cost, way.needs))
            return costs[goal]

        if len(self._recipes.ways) > MOST:
            return math.nan
        least = least_costs(self._recipes.ways)
        made, best = sum(map(cost, self._targets)), sum(least[goal] for goal in self._targets)
        return 1.0 if made <= best else best / made

    def _print(self) -> str:
        return digest(json.dumps([self._targets, sorted(self._taken.items())]))

    def _seen(self) -> Observation:
        lines = []
        for goal in self._open():
            lines.append(f"open: {goal}")
            ways = self._recipes.ways.get(goal, ())
            lines += [f"  {i}: {w.name or 'from'} {' + '.join(w.needs) or 'nothing'}, cost {w.cost:g}"
                      for i, w in enumerate(ways)]  # fmt: skip
            if not ways:
                lines.append("  no way")
        return Observation("\n".join(lines) or "nothing is open", self._print())


def recipes_suite(path: str) -> Suite:
    """The suite of a file of recipes: a task for each target, every third one in the test split.

    Raises TreewrightError for a file that holds none.
    """
    if not path:
        raise TreewrightError("'recipes:' names no file; write recipes:FILE.jsonl")
    recipes = read_recipes(path)
    name = f"recipes:{path}"

    def tasks(split: str, count: int) -> Sequence[Task]:
        mine = [(i, g) for i, g in enumerate(recipes.targets) if (i % 3 == 2) == (split == "test")]
        if split not in ("train", "test"):
            raise TreewrightError(f"{name} has no split {split!r}; known: train, test")
        if count > len(mine):
            raise ValueError(f"{name} has {len(mine)} {split} tasks; {count} were asked for")
        return [
            Task(name, str(i), f"plan: {', '.join(goals)}", split=split, horizon=max(8, 2 * len(recipes.ways)),
                 data={"targets": list(goals)})
            for i, goals in mine[:count]
        ]  # fmt: skip

    async def opened() -> RecipesEnvironment:
        return RecipesEnvironment(recipes, name)

    return Suite(name, tasks, opened)
