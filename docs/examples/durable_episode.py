"""An episode that survives kill -9: LangGraph's SQLite checkpointer keeps where it stands, the store keeps the tree.

    pip install langgraph-checkpoint-sqlite
    python docs/examples/durable_episode.py runs/durable          # kill it whenever you like
    python docs/examples/durable_episode.py runs/durable          # the same line goes on where it was

The checkpoint holds ids only. A pop that was under way at the kill is made again, with the same draws. With
durability="sync" a checkpoint is on disk before the next step begins; LangGraph's default writes it beside the next
steps, and a kill may find the episode some steps earlier: the store then wins, and only ids are behind.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from treewright.agent.policies.scripted import scripted_choice
from treewright.agent.runs.graph import episode_graph
from treewright.envs.maze import make_suite
from treewright.search.restore import Pool
from treewright.search.store import TreeStore
from treewright.search.types import Budget

MOVES = [(f'move {{"to": "{way}"}}', 0.24) for way in ("north", "east", "south", "west")]


async def main(folder: Path) -> str:
    """Runs or takes up the episode; prints each step of the graph and returns the tree's digest."""
    suite, grown = make_suite(5), []
    tasks = suite.tasks("train", 1)
    config = {"configurable": {"thread_id": "durable"}}
    with TreeStore.open(folder / "trees.sqlite") as store:
        async with AsyncSqliteSaver.from_conn_string(str(folder / "checkpoints.sqlite")) as saver:
            graph = episode_graph(
                Pool(suite.open), tasks, scripted_choice([*MOVES, ("stop {}", 0.04)]), budget=Budget(expansions=30),
                store=store, checkpointer=saver, on_end=lambda tree, result: grown.append(tree),
            )  # fmt: skip
            # Not `.next`: it leaves out a step that was done when the kill came, and whose checkpoint was to follow.
            begun = (await graph.aget_state(config)).tasks
            print("taking up after", begun[0].name if begun else "nothing: a new episode", flush=True)
            start = None if begun else {"task_id": tasks[0].id}
            async for update in graph.astream(start, config, durability="sync"):
                print("step", *update, flush=True)
    print(f"tree {grown[0].tree_id}: {len(grown[0])} nodes, digest {grown[0].digest()}", flush=True)
    return grown[0].digest()


if __name__ == "__main__":
    home = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/durable")
    home.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(home))
