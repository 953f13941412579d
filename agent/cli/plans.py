"""`treewright plans FILE`: the plans of a run's solved tasks, as a memory for A*."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from treewright.agent.cli.after import collect_anew
from treewright.agent.cli.options import Name, console, must_exist, read_config, say
from treewright.search.rules.plan_memory import PlanMemory

__all__ = ["plans_command"]


def plans_command(
    file: Annotated[Path, typer.Argument(help="The memory: a file of JSON lines, made or added to.")],
    name: Name = None,
) -> None:
    """Learn the plans of a run's solved training tasks, for search.rule=astar.

    treewright plans plans.jsonl --name first
    treewright collect --name second --set search.rule=astar --set search.options.memory=plans.jsonl
    """
    from treewright.search.store import TreeStore

    cfg = read_config(name, None, None, None, None)
    must_exist(cfg)
    known = PlanMemory.load(file) if file.exists() else PlanMemory()
    with TreeStore.open(cfg.store_at, read_only=True) as store:
        rows = store.trees(status="done", split="train")
        grown = known.learn(store.load(row.tree_id) for row in rows)
    grown.save(file)
    console.print(f"{len(rows)} finished trees of training tasks: {len(grown) - len(known)} new plans")
    line = collect_anew(cfg, "astar", "search.rule=astar", f"search.options.memory={file}")
    say(f"{len(grown)} plans in {file}; next: {line}")
