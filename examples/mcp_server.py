"""An MCP server as a world. The server is somebody's program; one line makes it a suite:

    treewright run "mcp:python notes_server.py notes/notes.txt/0" --policy scripted:mcp_server:writer
    treewright run mcp:notes.toml/0 --policy scripted:mcp_server:writer
    python examples/mcp_server.py

In the first line nobody declares what the tools do, so nothing is explored. notes.toml says it, and in which folder the
server's state lies: each session works on a copy, which is put back to go back. A server without a folder is started
afresh instead, the calls that led to the node are made again, and each answer is compared.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path

import treewright
from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.envs.types import Task, ToolSpec, Turn
from treewright.search import Budget, Settings, rule
from treewright.search.types import Exchange


def writer(task: Task, turns: Sequence[Exchange], tools: Sequence[ToolSpec], rng: random.Random) -> str:
    """Stands for a model: writes milk or bread, twice, and ends."""
    if len(turns) == 2:
        return 'done {"answer": "written"}'
    return "add " + json.dumps({"text": rng.choice(["milk", "bread"])})


def reward(task: Task, history: Sequence[Turn]) -> float:
    """1 when the notes hold exactly what was asked for, in any order."""
    said = [turn.action.arguments["text"] for turn in history if turn.action and turn.action.name == "add"]
    return float(sorted(said) == sorted(task.truth["notes"]))


async def main() -> None:
    suite = treewright.suite(f"mcp:{Path(__file__).with_name('notes.toml')}")
    tree = await treewright.search(
        suite.tasks("train", 1)[0],
        suite,
        ScriptedPolicy(writer),
        rule=rule("breadth_first", draws=8),
        budget=Budget(expansions=4),
        settings=Settings(close=True),
    )
    ends = [tree.outcome_of(leaf) for leaf in tree.leaves()]
    print(f"{len(tree)} nodes, {len(ends)} ends, {sum(ends):.0f} of them right; exact: {tree.exact}")


if __name__ == "__main__":
    asyncio.run(main())
