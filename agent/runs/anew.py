"""Trees that faults left without a result are grown anew when their line is typed again, as further attempts."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from treewright.envs.types import Task
from treewright.search.header import tree_name
from treewright.search.store import TreeStore

__all__ = ["AGAIN", "attempts", "lost_in"]

AGAIN = 1 << 20
"""Between an attempt that was lost and the one in its place: far from those of tasks that are given several times."""


def lost_in(store: TreeStore, run: str) -> set[str]:
    """Ids of a run's finished trees in which faults kept every episode from ending."""
    done = store.trees(run=run, status="done")
    return {row.tree_id for row in done if row.success is None and row.chosen is None}


def attempts(run: str, tasks: Iterable[tuple[Task, int]], lost: Collection[str]) -> dict[str, tuple[Task, int]]:
    """Task and attempt by tree id: of every task the attempts that were lost, then the one that counts.

    tasks  each with its first attempt
    """
    found: dict[str, tuple[Task, int]] = {}
    for task, attempt in tasks:
        while (name := tree_name(run, task, attempt)) in lost:
            found[name] = task, attempt
            attempt += AGAIN
        found[name] = task, attempt
    return found
