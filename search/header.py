"""What identifies a tree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from treewright.envs.types import Observation, Task, digest
from treewright.search.past import Past
from treewright.search.types import Exchange, Outcome

__all__ = ["TreeHeader", "tree_name"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeHeader:
    """What identifies a tree and lets a search resume: everything fixed before the first pop.

    tree_id   128-bit hash of (run, task, attempt) as 32 hex digits
    settings  the search settings as plain JSON; a resume with other settings is refused
    root      what reset gave
    continues (tree_id, node_id) of the committed tree this one goes on from, or None
    past      what the episode did until then; None for nothing, and for trees begun by versions that kept none
    """

    run: str
    task: Task
    attempt: int
    seed: int
    policy_version: str
    settings: dict[str, Any]
    root: Outcome
    continues: tuple[str, int] | None = None
    past: Past | None = None
    tree_id: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tree_id", tree_name(self.run, self.task, self.attempt))

    @property
    def first(self) -> Observation:
        """What the episode began with: at the root, unless there is a past."""
        return self.root.observation if self.past is None else self.past.first

    @property
    def turns(self) -> tuple[Exchange, ...]:
        """The turns before the root, oldest first; the last one shows what the root does."""
        return () if self.past is None else self.past.until(self.root.observation)


def tree_name(run: str, task: Task, attempt: int) -> str:
    """The id of a tree: 32 hex digits."""
    return digest(run, f"{task.suite}/{task.id}", str(attempt))
