"""A plain class as a world: its public methods are the tools, a deep copy is the way back. Nothing of ours is in it.

    python examples/own_tools.py

The same on the command line, with any policy:

    treewright run own_tools:Shelf/two --tasks-file own_tools.jsonl --reward own_tools:reward \\
        --policy scripted:own_tools:clerk
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path

import treewright
from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.envs.custom import custom_suite
from treewright.envs.types import Task, ToolSpec, Turn
from treewright.search import Budget, rule
from treewright.search.types import Exchange

TASKS = Path(__file__).with_suffix(".jsonl")


class Shelf:
    """Books that belong onto boards. It gets the task, prints what an episode begins with, and says what tools do."""

    effects = {"look": "read", "put": "reversible"}  # an effect that nobody declares is unknown, and waits for a commit

    def __init__(self, task: Task) -> None:
        self.boards = {book: "floor" for book in task.data["books"]}

    def __str__(self) -> str:
        return f"on the floor: {', '.join(self.boards)}"

    def look(self) -> str:
        """Shows which book stands where."""
        return json.dumps(self.boards)

    def put(self, book: str, board: str) -> str:
        """Puts a book onto a board: poems or maps."""
        if book not in self.boards:
            raise ValueError(f"no book {book!r}")  # what a method raises, the policy reads as an error
        self.boards[book] = board
        return f"{book} stands on {board}"


def reward(task: Task, history: Sequence[Turn], shelf: Shelf) -> float:
    """Share of the books that stand where they belong. It sees the truth; policy and search do not."""
    wanted = task.truth["boards"]
    return float(sum(shelf.boards[book] == board for book, board in wanted.items()) / len(wanted))


def clerk(task: Task, turns: Sequence[Exchange], tools: Sequence[ToolSpec], rng: random.Random) -> str:
    """Stands for a model: puts books onto boards by guessing, one after the other, then ends the task."""
    books = task.data["books"]
    if len(turns) < len(books):
        return "put " + json.dumps({"book": books[len(turns)], "board": rng.choice(["poems", "maps"])})
    return 'done {"answer": "tidy"}'


async def main() -> None:
    suite = custom_suite("shelf", TASKS, "own_tools:Shelf", "own_tools:reward")
    for task in suite.tasks("train", 2):
        tree = await treewright.search(
            task, suite, ScriptedPolicy(clerk), rule=rule("breadth_first", draws=4), budget=Budget(expansions=40)
        )
        ends = [tree.outcome_of(leaf) for leaf in tree.leaves()]
        print(f"{task.id}: {len(tree)} nodes, best end {max(ends):.2f}, mean {sum(ends) / len(ends):.2f}")


if __name__ == "__main__":
    asyncio.run(main())
