"""Rounds of mazes that hold a file until they are closed; prints as JSON which measures rose: for test_soak.py."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import soak  # type: ignore[import-not-found]
from slopes import Sampler  # soak has put its folder on the search path

from treewright.envs import suite
from treewright.envs.maze import Maze


class Held(Maze):
    """A maze that holds a file until it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.file = os.open(os.devnull, os.O_RDONLY)

    async def close(self) -> None:
        os.close(self.file)
        await super().close()


async def main() -> None:
    async def opened() -> Held:
        return Held()

    found = replace(suite("maze"), open=opened)
    tasks = soak.many(found, 4)
    sampler = Sampler()

    async def work(number: int) -> Any:
        await soak.grow(found, tasks, 4, f"r{number}", expansions=1)

    await soak.rounds(work, 0.0, sampler)
    slopes = sampler.slopes(patience=20.0)
    print(slopes, file=sys.stderr)
    print(json.dumps({name: bool(slope.above_noise) for name, slope in slopes.items()}))


if __name__ == "__main__":
    asyncio.run(main())
