"""Grows trees into a store until it is done or killed; prints 'done' and the digests."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Sequence

from treewright.search.types import Completion, Context

sys.path.insert(0, sys.argv[2])

from walker import Likelihood, Walker

from treewright.agent.runs.collect import collect, open_worlds
from treewright.envs.maze import SUITE
from treewright.search.engine import Settings
from treewright.search.rules import best_first
from treewright.search.store import TreeStore
from treewright.search.types import Budget


class Slow(Walker):
    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> Sequence[Completion]:
        await asyncio.sleep(random.random() * 0.004)
        return await super().draw(context, seeds, max_tokens)


async def main() -> None:
    with TreeStore.open(sys.argv[1]) as store:
        async with open_worlds([SUITE], sessions=4) as worlds:
            trees = await collect(
                SUITE.tasks("train", 6),
                worlds,
                Slow(),
                rule=best_first(),
                budget=Budget(expansions=12),
                settings=Settings(in_flight=3, close=True, max_tokens=64),
                evaluator=Likelihood(),
                store=store,
            )
    print("digests", *(t.digest() for t in trees), flush=True)


print("begun", flush=True)
asyncio.run(main())
