"""Live episodes on the maze: nothing irreversible without approval, at most once with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from walker import Likelihood, Walker

from treewright.agent.runs.episode import Episode, run_episode
from treewright.envs.maze import SUITE, Maze
from treewright.envs.types import Task
from treewright.search.commit import Next
from treewright.search.engine import Settings
from treewright.search.restore import Pool
from treewright.search.store import TreeStore
from treewright.search.store.journal import JournalEntry
from treewright.search.types import Budget, NodeStatus

TASK = SUITE.tasks("train", 1)[0]


async def play(
    tmp_path: Path, ledger: list[Any], approve: str | Callable[[Any, Any], Any], table: list[tuple[str, float]]
) -> tuple[Episode, list[JournalEntry]]:
    async def opened() -> Maze:
        return Maze(sandboxed=False, ledger=ledger)

    pool = Pool(opened)
    with TreeStore.open(tmp_path / "live.sqlite") as store:
        episode = await run_episode(
            TASK, pool, Walker(table), journal=store.journal, approve=approve, evaluator=Likelihood(),
            budget=Budget(expansions=3), settings=Settings(), store=store,
        )  # fmt: skip
        entries = store.journal.entries()
    await pool.close()
    return episode, entries


PRESS = [("press {}", 0.9), ("stop {}", 0.1)]


async def test_without_approval_nothing_irreversible_happens(tmp_path: Path) -> None:
    ledger: list[Any] = []
    episode, entries = await play(tmp_path, ledger, "never", PRESS)
    assert ledger == [] and entries == []
    assert episode.commits[-1].next is Next.APPROVE


async def test_an_approved_action_happens_once_and_the_search_goes_on_after_it(tmp_path: Path) -> None:
    ledger: list[Any]
    ledger, asked = [], []

    def once(task: Task, action: Any) -> bool:
        asked.append(action.key)
        return len(asked) == 1

    episode, entries = await play(tmp_path, ledger, once, PRESS)
    assert len(ledger) == 1
    assert [e.state.value for e in entries] == ["done"]
    assert len(episode.trees) >= 2
    assert episode.trees[1].header.continues == episode.commits[0].continues
    assert NodeStatus.COMMITTED in set(episode.trees[0].status)


async def test_a_path_without_irreversible_steps_is_simply_executed(tmp_path: Path) -> None:
    ledger: list[Any] = []
    episode, entries = await play(tmp_path, ledger, "never", [("stop {}", 1.0)])
    assert episode.commits[-1].next is Next.DONE and entries == [] and ledger == []
