"""`treewright routes FILE`: least-cost plans over a file of recipes, ranked, kept as a tree."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from treewright.agent.cli.options import Name, console, go, read_config, say
from treewright.envs.errors import TreewrightError

__all__ = ["routes_command"]


def routes_command(
    file: Annotated[Path, typer.Argument(help='JSON lines: {"goal": "soup", "needs": ["mix"], "cost": 1}.')],
    target: Annotated[
        list[str] | None, typer.Option(help="A goal to reach; again for several at once. The file's targets if none.")
    ] = None,
    routes: Annotated[int, typer.Option(min=1, help="How many plans, the cheapest first.")] = 3,
    budget: Annotated[int, typer.Option(min=1, help="Most distinct goals that are looked at.")] = 100_000,
    name: Name = None,
) -> None:
    """Find the cheapest plans for goals that fall into parts, circles included, by AND/OR search.

    The search is kept in runs/NAME as a tree, with the cheapest plan marked. The same file is a world to act in:
    treewright run recipes:FILE/0.

      treewright routes recipes.jsonl --target soup --routes 3
    """
    from treewright.envs.recipes import read_recipes
    from treewright.envs.types import Task
    from treewright.search.planning.and_or import plan
    from treewright.search.planning.drawn import store_whole
    from treewright.search.planning.routes import as_tree, solver_of
    from treewright.search.store import TreeStore

    cfg = read_config(name, None, None, None, None)
    recipes = read_recipes(file)
    wanted = [tuple(target)] if target else list(recipes.targets)
    for goals in wanted:
        if missing := [goal for goal in goals if goal not in recipes.ways]:
            raise TreewrightError(f"{file} has no way to reach {missing[0]!r}; add a line with that goal")
    solver = solver_of(recipes)

    async def work() -> None:
        with TreeStore.open(cfg.store_at) as store:
            for number, goals in enumerate(wanted):
                began = time.monotonic()
                found = await plan(goals, solver, budget=budget, routes=routes, at_once=256)
                took = time.monotonic() - began
                console.print(f"{', '.join(goals)}: {len(found.asked)} goals looked at in {took:.2f} s", markup=False)
                if not found.routes:
                    proof = (
                        "there is no plan"
                        if found.bound == float("inf")
                        else "the budget ended before a plan was whole"
                    )
                    console.print(f"  {proof}", markup=False)
                for rank, route in enumerate(found.routes, 1):
                    sure = ", the least" if rank == 1 and found.proved else ""
                    console.print(
                        f"  {rank}. cost {route.cost:g}{sure}; {route.shared:g} with each step once", markup=False
                    )
                    for goal, step in route.steps.items():
                        needs = f" from {' + '.join(step.parts)}" if step.parts else ""
                        console.print(f"     {goal}: {step.name or 'take'}{needs} ({step.cost:g})", markup=False)
                task = Task("recipes", f"{file.name}/{number}", f"plan: {', '.join(goals)}", split="test")
                tree, made = as_tree(found, goals, task, f"{cfg.name} {time.time_ns()}")
                store_whole(store, tree, made)
            await store.flush()

    go(work)
    say(f"stored in {cfg.store_at}; to look at it: treewright view {shlex.quote(cfg.store_at)}")
