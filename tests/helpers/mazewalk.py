"""Policies for the command line's tests: `--policy scripted:mazewalk:walker`."""

from __future__ import annotations

import asyncio

from treewright.agent.policies.scripted import scripted_choice

MOVES = [(f'move {{"to": "{way}"}}', 0.22) for way in ("north", "east", "south", "west")]
walker = scripted_choice([*MOVES, ("stop {}", 0.07), ("dance {}", 0.05)], name="walker")


class _Slow(type(walker)):
    async def draw(self, context, seeds, max_tokens):
        await asyncio.sleep(0.15)
        return await super().draw(context, seeds, max_tokens)


slow = _Slow([*MOVES, ("stop {}", 0.12)], name="slow", version="slow")
