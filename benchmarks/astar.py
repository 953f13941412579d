"""Section of `treewright bench search` about A* that listens: to a model of steps, alone and beside the plan memory.

The model learns from trees of 200 training tasks of the office that the plan memory has not seen; the evaluator and the
memory know nothing of the test tasks, and nothing of four kinds of jobs among them.
"""

from __future__ import annotations

import asyncio
import functools
import math
from typing import Any

from treewright.agent.judges.steps import StepJudge
from treewright.agent.policies.uniform import uniform_calls
from treewright.benchmarks.rules import (
    DRAWS,
    LONG,
    MEMORY,
    Figures,
    dealt,
    expansions_to,
    office_memory,
    on_office_at_once,
    rate_of,
    uniform_on_office,
)
from treewright.envs.tools.office import MODEL, UNSEEN
from treewright.search.engine import Settings, search
from treewright.search.restore import Pool
from treewright.search.rules import rule
from treewright.search.rules.plan_memory import PlanMemory
from treewright.search.tree import Tree
from treewright.search.types import Budget
from treewright.training.step_model import StepExample, StepModel, examples_of, fit

__all__ = ["learned_figures", "step_model"]

GROWN, EXPANSIONS = 200, 25  # trees that the model of steps learns from, and their budget


@functools.lru_cache(maxsize=2)
def step_model(memory: PlanMemory, trees: int = GROWN) -> StepModel:
    """The model of steps, from training tasks after those of the memory, grown by A* with the memory."""
    found = dealt(_steps, trees, trees * EXPANSIONS >= LONG, memory, trees)
    return fit([example for one in found for example in one])


def _steps(part: slice, memory: PlanMemory, trees: int) -> list[list[StepExample]]:
    """The steps of each tree."""
    order = rule("astar", memory=memory, draws=DRAWS, root_draws=DRAWS)

    async def grown() -> list[Tree]:
        pool = Pool(MODEL.open)
        settings = Settings(run="steps", max_tokens=200)
        some = MODEL.tasks("train", MEMORY + trees)[MEMORY:][part]
        return [
            await search(task, pool, uniform_calls, rule=order, budget=Budget(expansions=EXPANSIONS), settings=settings)
            for task in some
        ]

    return [examples_of([tree]) for tree in asyncio.run(grown())]


def learned_figures(quick: bool) -> Figures:
    """astar_learned_vs_uniform_expansions: without a memory, as astar_vs_uniform_expansions; best_first_learned goes by
    the same model's estimates alone. astar_joined has memory and model; astar_found_unseen is its share on kinds of
    jobs of which neither has seen one."""
    tasks, budget, flat_budget = (26, 20, 40) if quick else (104, 40, 400)
    draws: dict[str, Any] = {"draws": DRAWS, "root_draws": DRAWS}
    memory = office_memory()
    judge = StepJudge(step_model(memory, 30 if quick else GROWN))
    flat = uniform_on_office(tasks, flat_budget)
    solved = sum(f.expansions is not None for f in flat)
    out: Figures = {"learned_budget": (float(budget), "expansions")}
    orders: dict[str, tuple[str, dict[str, Any]]] = {
        "astar_learned": ("astar", draws),
        "best_first_learned": ("score_first", draws),
        "astar_joined": ("astar", {**draws, "memory": memory}),
    }
    for name, (order, options) in orders.items():
        found = on_office_at_once(tasks, order, options, budget, judge)
        needed = expansions_to(found, solved)
        out[f"{name}_vs_uniform_expansions"] = (expansions_to(flat, solved) / needed or math.nan, "x")
        out[f"{name}_expansions"] = (needed, "expansions")
        out[f"{name}_found"] = (rate_of(found), "%")
        out[f"{name}_chosen"] = (100 * sum(f.chosen for f in found) / tasks, "%")
        unseen = rate_of([f for f in found if f.task.data["kind"] in UNSEEN])
        out["astar_found_unseen" if name == "astar_joined" else f"{name}_found_unseen"] = (unseen, "%")
    return out
