"""What identifies a tree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from treewright.envs.types import Task, digest
from treewright.search.types import Outcome

__all__ = ["TreeHeader", "tree_name"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeHeader:
    """What identifies a tree and lets a search resume: everything fixed before the first pop.

    tree_id   128-bit hash of (run, task, attempt) as 32 hex digits
    settings  the search settings as plain JSON; a resume with other settings is refused
    root      what reset gave
    continues (tree_id, node_id) of the committed tree this one goes on from, or None
    """

    run: str
    task: Task
    attempt: int
    seed: int
    policy_version: str
    settings: dict[str, Any]
    root: Outcome
    continues: tuple[str, int] | None = None
    tree_id: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tree_id", tree_name(self.run, self.task, self.attempt))


def tree_name(run: str, task: Task, attempt: int) -> str:
    """The id of a tree: 32 hex digits."""
    return digest(run, f"{task.suite}/{task.id}", str(attempt))
