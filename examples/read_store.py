"""Trees out of a store: one row per tree, one per node, whole trees, and columns as numpy arrays.

    python examples/read_store.py FOLDER

`store.arrays` maps names to arrays of equal length; `pandas.DataFrame(dict(columns))` or polars' makes a table of it.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import numpy as np
from own_tools import TASKS, clerk

import treewright
from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.envs.custom import custom_suite
from treewright.search import Budget, Settings
from treewright.search.store import TreeStore
from treewright.training.credit import estimate


async def grow(path: Path) -> None:
    """Something to read: four trees for each of two tasks."""
    suite = custom_suite("shelf", TASKS, "own_tools:Shelf", "own_tools:reward")
    with TreeStore.open(path) as store:
        for attempt in range(4):
            for task in suite.tasks("train", 2):
                settings = Settings(run="shelves", attempt=attempt, close=True)
                await treewright.search(
                    task, suite, ScriptedPolicy(clerk), store=store, budget=Budget(expansions=4), settings=settings
                )


def read(path: Path) -> None:
    with TreeStore.open(path, read_only=True) as store:  # others may write at the same time
        rows = store.trees(run="shelves", where={"nodes >=": 3})
        print(f"{len(rows)} trees, {sum(row.nodes for row in rows)} nodes")

        columns = store.arrays([row.tree_id for row in rows])
        inner = columns["drawn"] > 0
        print(f"draws per expanded node: {np.mean(columns['drawn'][inner]):.2f}")
        for i in range(min(3, len(rows))):
            mine = columns["tree"] == i
            total = np.nansum(columns["reward"][mine])
            print(f"  {rows[i].task_id}: rewards add up to {total:.1f} in {mine.sum()} nodes")

        credit = estimate("split_loo", columns)  # steps of stored trees get their credit without loading a tree
        print(f"credit of the best step: {np.max(credit.coef):.3f}")

        for row in store.nodes(action="put", limit=3):
            print(f"  put at node {row.node} of tree {row.tree_id[:8]}, {row.status}")
        tree = store.load(rows[0].tree_id)
        print(f"the first tree has digest {tree.digest()}")


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "trees.sqlite"
    if not path.exists():
        asyncio.run(grow(path))
    read(path)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/shelves"))
