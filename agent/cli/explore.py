"""`treewright explore`: a site without tasks becomes a tree of its states, and tasks that can be checked."""

from __future__ import annotations

import json
import shlex
from typing import Annotated

import typer

from treewright.agent.cli.options import ConfigFile, Name, Sets, console, go, read_config
from treewright.envs.errors import TreewrightError
from treewright.envs.whole import write_whole

__all__ = ["explore"]


def explore(
    site: Annotated[str, typer.Argument(help="An address, or a site file such as shop.toml (docs/web.md).")],
    steps: Annotated[int, typer.Option(min=1, help="Steps of the site, the way back included.")] = 500,
    explorers: Annotated[int, typer.Option(min=1, help="Sessions side by side.")] = 2,
    goals: Annotated[
        str | None, typer.Option(help="A model that words the goals, as --policy names it; else a template does.")
    ] = None,
    name: Name = None,
    config: ConfigFile = None,
    set_: Sets = None,
) -> None:
    """Grow a tree of a site's states by novelty, verify its paths, and write tasks of them.

    The tasks go to runs/NAME/tasks.jsonl.

      treewright explore https://shop.example/ --steps 500 --name shop
      treewright explore shop.toml --set worlds.same_page=distance:0.05
      treewright explore shop.toml --goals openai:MODEL@http://127.0.0.1:8000/v1
    """
    from treewright.agent.policies.opening import open_policy
    from treewright.agent.policies.policy import Writer
    from treewright.agent.runs.collect import open_worlds, suites_of
    from treewright.agent.runs.explore import explore as grow
    from treewright.agent.runs.goals import worded
    from treewright.search.store import TreeStore

    cfg = read_config(name or "explore", config, set_, f"web:{site}", None)
    found = suites_of(cfg)
    model = open_policy(goals) if goals else None
    if model is not None and not isinstance(model, Writer):
        raise TreewrightError(f"--goals {goals}: {model.name} writes no sentences; name hf:, vllm: or openai:")

    async def work() -> None:
        async with open_worlds(found, explorers, cfg.worlds.deadline) as worlds:
            world = next(iter(worlds.values()))
            task = world.suite.tasks("test", 1)[0]
            with TreeStore.open(cfg.store_at) as store:
                seen = await grow(
                    task, world.pool, steps, explorers=explorers, seed=cfg.seed, store=store, run=f"{cfg.name} {steps}"
                )
        tasks, by_model = seen.tasks, 0
        if model is not None:
            tasks, by_model = await worded(tasks, model, cfg.seed)
            await model.close()
        made = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in tasks)
        path = write_whole(cfg.home / "tasks.jsonl", made)
        console.print(
            f"{len(seen.states)} states, {len(seen.kinds)} kinds of pages in {seen.tree.spent.env_steps} steps; "
            f"{len(seen.verified)} reached again by replay; {len(tasks)} tasks in {path}"
            + (f", {by_model} of them worded by {goals}" if goals else ""),
            soft_wrap=True, markup=False, highlight=False,
        )  # fmt: skip
        if seen.tasks:
            more = [word for one in (*(set_ or ()), f"worlds.tasks_file={path}") for word in ("--set", one)]
            line = ["treewright", "collect", "--name", cfg.name, "--suites", f"web:{site}", *more]
            console.print(f"next: {shlex.join(line)}", soft_wrap=True, markup=False, highlight=False)

    go(work)
