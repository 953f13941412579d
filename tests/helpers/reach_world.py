"""A world and parts in which every setting of a search shows: used by name, as a user's own module."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any

from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.envs import BaseEnvironment, EnvFault, Observation, StepResult, ToolSpec
from treewright.envs.types import Action, Effect, Restore, Snapshot, Suite, Task, digest
from treewright.search.types import Candidate, Completion, Context, Exchange, Score

SEEN: dict[str, Any] = {"open": 0, "most_open": 0, "drawing": set(), "most_trees": 0, "goals": set()}
STEPS = ("one", "two", "three")


class Steps(BaseEnvironment):
    """Three steps, then the end. `data` of a task makes trouble: slow, fails once, drifts on replay."""

    sandboxed = True
    restore_ways = frozenset({Restore.STATE})
    tools = [
        ToolSpec(
            "go", "", {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]}, Effect.READ
        )
    ]
    failed: set[Any] = set()

    async def reset(self, task: Task, key: int) -> Observation:
        self.data = task.data
        self.path: tuple[str, ...] = ()
        return self.seen()

    def seen(self) -> Observation:
        return Observation(f"at {'/'.join(self.path) or 'start'} of the hall", digest("reach", repr(self.path)))

    async def step(self, action: Action, key: int) -> StepResult:
        if self.data.get("slow"):
            await asyncio.sleep(30)
        to = action.arguments["to"]
        if self.data.get("fails") and to == "b" and (self.path, to) not in Steps.failed:
            Steps.failed.add((self.path, to))
            raise EnvFault("the hall is dark")
        self.path = (*self.path, to)
        over = len(self.path) == len(STEPS)
        return StepResult(self.seen(), float(over and "b" in self.path), over, effect=Effect.READ)

    async def snapshot(self) -> Snapshot:
        return Snapshot(Restore.STATE, repr((self.data, self.path)).encode(), self.seen().fingerprint)

    async def restore(self, snapshot: Snapshot) -> Observation:
        self.data, self.path = eval(snapshot.data)
        return self.seen()


async def opened() -> Steps:
    SEEN["open"] += 1
    SEEN["most_open"] = max(SEEN["most_open"], SEEN["open"])
    made = Steps()
    close = made.close

    async def closing() -> None:
        SEEN["open"] -= 1
        await close()

    made.close = closing  # type: ignore[method-assign]
    return made


def _tasks(split: Any, count: int) -> list[Task]:
    kinds: tuple[dict[str, bool], ...] = ({}, {"fails": True}, {}, {"slow": True})
    made = [
        Task("steps", f"{split}-{i}", "walk the hall", seed=i, horizon=4, data=data) for i, data in enumerate(kinds)
    ]
    return made[:count]


SUITE = Suite("steps", _tasks, opened, sessions=4, max_tokens=80)


class Walker(ScriptedPolicy):
    """Says go a or go b, in different words; each draw costs money. `quotes`: says what it saw first."""

    def __init__(self, quotes: bool = False, same: bool = False, words: bool = True) -> None:
        super().__init__(self.say, name="walker", version="walker", trainable=False)
        self.quotes, self.same, self.words = quotes, same, words

    def say(self, task: Task, turns: Any, tools: Any, rng: Random, first: Any) -> str:
        to = "a" if self.same else rng.choice("ab")
        gap = " " * rng.randrange(8) if self.words else ""
        quoted = "<evidence>walk the hall</evidence>\n" if self.quotes else ""
        return f'{quoted}go {{"to": {gap}"{to}"}}'

    def dearest(self, max_tokens: int) -> float:
        return 0.5

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange], base: Sequence[int]
    ) -> Context:
        SEEN["goals"].add(task.goal)
        return super().context(task, tools, first, turns, base)

    async def draw(self, context: Any, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        from dataclasses import replace

        SEEN["drawing"].add(context.task.id)
        SEEN["most_trees"] = max(SEEN["most_trees"], len(SEEN["drawing"]))
        for _ in range(8):  # others may begin meanwhile
            await asyncio.sleep(0)
        out = [replace(done, money=0.5) for done in await super().draw(context, seeds, max_tokens)]
        SEEN["drawing"].discard(context.task.id)
        return out


class Judge:
    """0.5 for everything, at ten tokens a candidate."""

    def __init__(self, worth: float = 0.5) -> None:
        self.worth = worth

    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> list[Any]:
        return [Score(self.worth, 10) for _ in candidates]
