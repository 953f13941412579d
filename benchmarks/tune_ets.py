"""Chooses the settings of `ets` that `treewright bench search` measures, on training tasks of the office alone.

    python -m treewright.benchmarks.tune_ets                  # 132 tasks, some minutes of one idle core
    python -m treewright.benchmarks.tune_ets 44 8             # the first of them, at width 8

Four kinds of job are left out of the plan memory, since test tasks have kinds of which no plan is known either. For
each setting: success and kept tokens of the beam of the same width over its own.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from treewright.agent.judges.plans import PlanLikeness, demonstrated_plans
from treewright.agent.policies.uniform import uniform_calls
from treewright.benchmarks.rules import DRAWS, ETS, MEMORY, rate_of, search_all, tokens_of
from treewright.envs.tools.office import MODEL, oracle
from treewright.search.restore import Pool
from treewright.search.rules import rule
from treewright.search.types import Budget

__all__ = ["LEFT_OUT", "SETTINGS", "tune"]

LEFT_OUT = ("copy_code", "assign_close", "move_event", "escalate")
FIRST, TASKS, WIDTH = 400, 132, 4
COUNT = {"cover": "count", "temperature": 0.1}
WEIGHT = {"cover": "weight", "temperature": 0.1, "distance": 0.05}

SETTINGS: tuple[dict[str, Any], ...] = (
    {**COUNT, "cost_weight": 5.0, "cover_weight": 1.5, "distance": 0.3},
    {**COUNT, "cost_weight": 2.0, "cover_weight": 0.0, "distance": 0.05},
    *({**WEIGHT, "cost_weight": cost, "cover_weight": 1.0} for cost in (1.0, 2.0, 3.0, 4.0, 6.0, 10.0)),
    {**WEIGHT, "cost_weight": 3.0, "cover_weight": 0.5},
    {**WEIGHT, "cost_weight": 6.0, "cover_weight": 0.5},
    {**WEIGHT, "cost_weight": 3.0, "cover_weight": 1.0, "temperature": 0.15},
    {**WEIGHT, "cost_weight": 3.0, "cover_weight": 1.0, "distance": 0.3},
)


def tune(count: int = TASKS, width: int = WIDTH) -> list[tuple[dict[str, Any], float, float]]:
    """(setting, found in per cent, times fewer tokens than the beam); the first row is the beam itself, {}."""
    known = [task for task in MODEL.tasks("train", MEMORY) if task.data["kind"] not in LEFT_OUT]
    tasks = MODEL.tasks("train", FIRST + count)[FIRST:]
    draws = {"draws": DRAWS, "root_draws": DRAWS, "width": width}
    orders = [({}, rule("beam", **draws)), *((s, rule("ets", **draws, **s)) for s in SETTINGS)]

    async def run() -> list[tuple[dict[str, Any], float, float]]:
        judge = PlanLikeness(await demonstrated_plans(known, MODEL.open, oracle))
        out: list[tuple[dict[str, Any], float, float]] = []
        whole = 0.0
        for setting, order in orders:
            found = await search_all(tasks, Pool(MODEL.open), uniform_calls, order, Budget(expansions=200), judge)
            whole = whole or tokens_of(found)
            out.append((setting, rate_of(found), whole / tokens_of(found)))
            print(
                f"{out[-1][1]:5.1f} % {out[-1][2]:5.2f} x  {setting or 'beam'}{'  <-' * (setting == ETS)}", flush=True
            )
        return out

    return asyncio.run(run())


if __name__ == "__main__":
    tune(*map(int, sys.argv[1:3]))
