"""How many tokens a forward pass gives with drafting, on trees of the packaged model; part of `bench policy`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from treewright.agent.policies.policy import SEEDLING
from treewright.envs.errors import TreewrightError

__all__ = ["drafting"]

TEMPERATURES, QUICK = (0.0, 0.7, 1.0), (0.7,)


async def _grow(policy: Any, tasks: int) -> list[Any]:
    from treewright.agent.runs.collect import collect, open_worlds
    from treewright.agent.runs.loop import tasks_for
    from treewright.search.engine import Settings
    from treewright.search.rules import best_first
    from treewright.search.types import Budget

    async with open_worlds(["kg", "stdlib", "workbench"]) as worlds:
        trees = await collect(
            tasks_for(worlds, "test", 0, tasks), worlds, policy, rule=best_first(), budget=Budget(expansions=4),
            settings=Settings(close=True, max_tokens=128), concurrency=1,
        )  # fmt: skip
    return [(t.ids, t.status) for t in trees]


async def _compare(tasks: int, temperatures: Sequence[float]) -> dict[str, tuple[float, str]]:
    from treewright.agent.policies.drafting import DraftingPolicy
    from treewright.agent.policies.hf import HFPolicy

    out: dict[str, tuple[float, str]] = {}
    for temperature in temperatures:
        plain = HFPolicy.load(str(SEEDLING), temperature=temperature)
        drafting = DraftingPolicy.load(str(SEEDLING), temperature=temperature)
        try:
            if await _grow(plain, tasks) != await _grow(drafting, tasks):
                raise TreewrightError(f"drafting changed a tree at temperature {temperature:g}; nothing was measured")
            out[f"draft_tokens_per_pass_t{temperature:g}"] = (drafting.tokens_per_pass, "tokens")
        finally:
            await plain.close()
            await drafting.close()
    return out


def drafting(quick: bool) -> dict[str, tuple[float, str]]:
    """{figure: (value, unit)}. Raises TreewrightError if drafting changes what is drawn."""
    return asyncio.run(_compare(1, QUICK) if quick else _compare(12, TEMPERATURES))
