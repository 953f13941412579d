"""An episode in a live world: search, commit, search again from where the world stands now."""

from __future__ import annotations

from dataclasses import dataclass, replace

from treewright.envs.types import Task
from treewright.search.commit import Approve, CommitJournal, CommitResult, Next, commit, continue_from
from treewright.search.engine import Keeper, Settings, search
from treewright.search.evidence import Evidence
from treewright.search.restore import Pool
from treewright.search.rules import Rule
from treewright.search.tree import Tree
from treewright.search.types import Budget, Evaluator, Proposer

__all__ = ["Episode", "run_episode"]


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
    The budget counts for each search. Raises what `search` and `commit` raise for contradictory input.
    """
    settings = settings or Settings()
    trees: list[Tree] = []
    results: list[CommitResult] = []
    continues = None
    continued: list[Pool] = []
    try:
        for attempt in range(commits):
            own = replace(settings, attempt=settings.attempt + attempt)
            tree = await search(
                task, pool, policy, rule=rule, evaluator=evaluator, budget=budget, settings=own, store=store,
                continues=continues, evidence=evidence,
            )  # fmt: skip
            trees.append(tree)
            if tree.chosen is None:
                break
            result = await commit(tree, tree.chosen, pool, approve=approve, journal=journal)
            results.append(result)
            if result.next is not Next.CONTINUE or result.task.horizon < 1:
                break
            pool = Pool(continue_from(pool.open, result), 1, pool.deadline)
            continued.append(pool)
            task, continues = result.task, result.continues
    finally:
        for one in continued:
            await one.close()
    return Episode(tuple(trees), tuple(results))
