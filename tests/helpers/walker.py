"""A policy for the maze from a plain distribution: bytes as tokens, exact log-probs, seeded draws."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from typing import Any

from treewright.envs.types import Observation, Task, ToolSpec
from treewright.search.types import Candidate, Completion, Context, Exchange, Score

MOVES = [f'move {{"to": "{way}"}}' for way in ("north", "east", "south", "west")]
TABLE = [(m, 0.22) for m in MOVES] + [("stop {}", 0.07), ("dance {}", 0.05)]


class Walker:
    """Draws a line from `table`; `delay` scrambles the order in which draws come back."""

    version = "walker-1"

    def __init__(self, table: list[Any] = TABLE, delay: bool = False) -> None:
        self.table, self.delay, self.asked = table, delay, 0

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange], base: Sequence[int]
    ) -> Context:
        said = turns[-1].observation.text if turns else f"{task.goal}\n{first.text}"
        delta = tuple(f"\n{said}\n".encode())
        return Context(keep=len(base), delta=delta, ids=(*base, *delta))

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> Sequence[Completion]:
        self.asked += 1
        if self.delay:
            for _ in range(random.randrange(6)):
                await asyncio.sleep(0)
        return [self._one(seed) for seed in seeds]

    def _one(self, seed: int) -> Completion:
        u, total = random.Random(seed).random(), 0.0
        text, p = self.table[-1]
        for text, p in self.table:  # noqa: B007
            total += p
            if u < total:
                break
        ids = tuple(text.encode())
        return Completion(
            text, ids, (math.log(p),) + (0.0,) * (len(ids) - 1), finish_reason="stop", policy_version=self.version
        )


class Likelihood:
    async def evaluate(self, task: Task, candidates: Sequence[Candidate]) -> list[Any]:
        return [Score(math.exp(c.path_logprob / c.path_actions)) for c in candidates]
