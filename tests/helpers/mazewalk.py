"""Policies for the command line's tests: `--policy scripted:mazewalk:walker`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from treewright.agent.policies.scripted import _ChoicePolicy, scripted_choice
from treewright.search.types import Completion, Context

MOVES = [(f'move {{"to": "{way}"}}', 0.22) for way in ("north", "east", "south", "west")]
walker = scripted_choice([*MOVES, ("stop {}", 0.07), ("dance {}", 0.05)], name="walker")


class _Slow(_ChoicePolicy):
    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        await asyncio.sleep(0.15)
        return await super().draw(context, seeds, max_tokens)


slow = _Slow([*MOVES, ("stop {}", 0.12)], name="slow", version="slow")
