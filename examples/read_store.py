"""Trees out of a store: one row per tree, one per node, whole trees, and columns as numpy arrays.

    python examples/read_store.py FOLDER

`store.arrays` gives a plain dict of arrays of equal length; `pandas.DataFrame(columns)` or `polars.DataFrame(columns)`
takes it as it is.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import numpy as np
from own_rule import walker

import treewright
from treewright.search import Budget, Settings
from treewright.search.store import TreeStore


async def grow(path: Path) -> None:
    """Something to read: trees of eight mazes."""
    suite = treewright.suite("maze")
    with TreeStore.open(path) as store:
        for task in suite.tasks("train", 8):
            await treewright.search(
                task,
                suite,
                walker,
                store=store,
                budget=Budget(expansions=8),
                settings=Settings(run="mazes", close=True),
            )


def read(path: Path) -> None:
    with TreeStore.open(path, read_only=True) as store:  # others may write at the same time
        rows = store.trees(run="mazes", where={"nodes >=": 5})
        print(f"{len(rows)} trees, {sum(row.nodes for row in rows)} nodes")

        columns = store.arrays([row.tree_id for row in rows])
        inner = columns["drawn"] > 0
        print(f"draws per expanded node: {np.mean(columns['drawn'][inner]):.2f}")
        for tree in range(min(3, len(rows))):
            mine = columns["tree"] == tree
            print(f"  {rows[tree].task_id}: reward {np.nansum(columns['reward'][mine]):.0f} in {mine.sum()} nodes")

        for row in store.nodes(action="stop", limit=3):
            print(f"  stop at node {row.node} of tree {row.tree_id[:8]}, {row.status}")
        tree = store.load(rows[0].tree_id)
        print(f"the first tree has digest {tree.digest()}")


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "trees.sqlite"
    if not path.exists():
        asyncio.run(grow(path))
    read(path)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/mazes"))
