"""An episode in a live world: search, commit, search again from where the world stands now."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Task
from treewright.search.commit import (
    Approve,
    CommitJournal,
    CommitResult,
    Next,
    commit,
    committed_before,
    continue_from,
)
from treewright.search.engine import Keeper, Settings, search
from treewright.search.evidence import Evidence
from treewright.search.header import tree_name
from treewright.search.past import Past
from treewright.search.restore import Pool
from treewright.search.rules import Rule
from treewright.search.store import JournalEntry, JournalState, TreeStore
from treewright.search.tree import Tree
from treewright.search.types import Budget, Evaluator, Proposer

__all__ = ["Episode", "committed_calls", "run_episode", "settle", "unfinished"]


@dataclass(frozen=True, slots=True)
class Episode:
    """The trees in order, each but the last ended by a commit, and what each commit did."""

    trees: tuple[Tree, ...]
    commits: tuple[CommitResult, ...]

    @property
    def reward(self) -> float:
        """Sum of the rewards of what was really executed."""
        return sum(c.reward for c in self.commits)


async def run_episode(
    task: Task,
    pool: Pool,
    policy: Proposer,
    *,
    journal: CommitJournal,
    approve: Approve = "never",
    rule: Rule | None = None,
    evaluator: Evaluator | None = None,
    budget: Budget | None = None,
    settings: Settings | None = None,
    store: Keeper | None = None,
    evidence: Evidence | None = None,
    commits: int = 16,
) -> Episode:
    """Explores, executes the chosen path for real, and goes on until the episode is over or nothing may be done.

    approve   who lets irreversible actions through; 'never' ends the episode before the first one
    commits   most commits of one episode
    An episode that was killed goes on when it is called again with the same settings, store and journal: from the
    node that was committed last, in the world as it is now. What was committed is never sent again; what is in doubt
    ends the episode with Next.SETTLE until the journal is told. Policy and evaluator are shown all turns since the
    episode began, those before a commit too.
    The budget counts for each search. Raises what `search` and `commit` raise for contradictory input.
    """
    settings = settings or Settings()
    over = _Earlier([], [], settings.attempt, task, None, None)
    if store is not None:
        over = _earlier(store, journal, pool, over, settings)
    trees, results, first, task = over.trees, over.results, over.attempt, over.task
    continues, past = over.continues, over.past
    continued: list[Pool] = []
    try:
        for attempt in range(first, max(first + 1, settings.attempt + commits)):
            own = replace(settings, attempt=attempt)
            taken_up = store is not None and store.status(_name(own, task)) is not None
            tree = await search(
                task, pool, policy, rule=rule, evaluator=evaluator, budget=budget, settings=own, store=store,
                continues=continues, past=past, evidence=evidence,
            )  # fmt: skip
            trees.append(tree)
            if tree.chosen is None:
                if taken_up and tree.lost:
                    continue  # faults ended it then: tried again, now
                break
            result = await commit(tree, tree.chosen, pool, approve=approve, journal=journal)
            results.append(result)
            if taken_up and result.next is Next.SEARCH and not result.committed:
                continue  # grown in a world that is not there any more
            if result.next is not Next.CONTINUE or result.task.horizon < 1:
                break
            pool = Pool(continue_from(pool.open, result), 1, pool.deadline, around=pool.around)
            continued.append(pool)
            task, continues, past = result.task, result.continues, result.past
    finally:
        for one in continued:
            await one.close()
    return Episode(tuple(trees), tuple(results))


def unfinished(store: TreeStore, name: str, task: Task) -> str | None:
    """The run of a task's last episode, if that was cut off after something was sent.

    Episodes are the runs 'NAME NUMBER' of a store.
    """
    sent = [e.tree_id for e in store.journal.entries() if e.state not in (JournalState.INTENT, JournalState.FAILED)]
    rows = {row.tree_id: row for row in store.trees(suite=task.suite, where={"task_id": task.id})} if sent else {}
    of = {rows[tree].run for tree in sent if tree in rows}
    last = max((run for run in of if re.fullmatch(re.escape(name) + r" \d+", run)), default=None)
    return None if last is None or store.ended(last) else last


def committed_calls(store: TreeStore, run: str) -> int:
    """Calls that cannot be undone and were made by a run."""
    mine = {row.tree_id for row in store.trees(run=run)}
    return sum(e.state is JournalState.DONE and e.tree_id in mine for e in store.journal.entries())


async def settle(store: TreeStore, run: str, happened: bool | None) -> list[str]:
    """Tells the journal what became of an episode's calls in doubt; None leaves them. Those of the store that stay so.

    Raises TreewrightError where there is nothing in doubt to tell of.
    """
    mine: list[JournalEntry] = []
    left: list[JournalEntry] = []
    rows = {row.tree_id for row in store.trees(run=run)}
    for entry in store.journal.pending():
        if entry.state is not JournalState.INTENT:
            (mine if entry.tree_id in rows and happened is not None else left).append(entry)
    if happened is not None and not mine:
        raise TreewrightError("no call of this task is in doubt; type the same line without --in-doubt")
    for entry in mine:
        await store.journal.outcome(entry.id, JournalState.DONE if happened else JournalState.FAILED)
    return [entry.action_key for entry in left]


@dataclass(frozen=True, slots=True)
class _Earlier:
    """What is over of an episode that was taken up, and the attempt at which it goes on."""

    trees: list[Tree]
    results: list[CommitResult]
    attempt: int
    task: Task
    continues: tuple[str, int] | None
    past: Past | None


def _name(settings: Settings, task: Task) -> str:
    return tree_name(settings.run, task, settings.attempt)


def _earlier(store: Keeper, journal: CommitJournal, pool: Pool, now: _Earlier, settings: Settings) -> _Earlier:
    """The trees after which another one was begun: their commits are over, and are not looked at again."""
    while True:
        following = _name(replace(settings, attempt=now.attempt + 1), now.task)
        if store.status(following) is None:
            return now
        tree, header = store.load(_name(replace(settings, attempt=now.attempt), now.task)), store.header(following)
        results = now.results
        if tree.chosen is not None:
            mine = header.continues is not None and header.continues[0] == tree.tree_id
            reached = header.continues[1] if mine and header.continues is not None else None
            results = [*results, committed_before(tree, tree.chosen, pool, journal, reached)]
        task = replace(now.task, horizon=header.task.horizon)
        now = _Earlier([*now.trees, tree], results, now.attempt + 1, task, header.continues, header.past)
