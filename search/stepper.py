"""A search that is driven from outside, one pop at a time and phase by phase."""

from __future__ import annotations

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Task
from treewright.search.engine import Running
from treewright.search.expand import Expander, Pop
from treewright.search.restore import Pool
from treewright.search.rules import Rule
from treewright.search.settings import Keeper, Settings
from treewright.search.tree import Tree
from treewright.search.types import Budget, Evaluator, Expansion, Proposer

__all__ = ["Stepper"]


class Stepper:
    """A search that is driven from outside, one pop at a time and phase by phase; ends in the tree of `search`.

    done = await stepper.start()
    while done is None and (pop := stepper.pop()):
        await stepper.work.propose(pop); stepper.work.screen(pop)
        await stepper.work.explore(pop); await stepper.work.judge(pop)
        stepper.apply(pop)
    tree = done or await stepper.finish()

    Only one expansion at a time can be stepped: more pops at once would not see each other's results in order.
    """

    def __init__(
        self,
        task: Task,
        pool: Pool,
        policy: Proposer,
        *,
        rule: Rule,
        evaluator: Evaluator | None = None,
        budget: Budget,
        settings: Settings,
        store: Keeper | None = None,
    ) -> None:
        if settings.in_flight != 1:
            raise TreewrightError(f"settings.in_flight = {settings.in_flight}; a search can only be stepped with 1")
        self._search = Running(task, pool, policy, rule, evaluator, budget, settings, store, None)
        self.tree_id = self._search.header().tree_id

    @property
    def work(self) -> Expander:
        """The four phases of a pop; there once `start` has returned None."""
        return self._search.work

    async def start(self) -> Tree | None:
        """Resets, or resumes what the store has; the tree itself if it was finished before."""
        if (done := await self._search.start()) is not None:
            return done
        search = self._search
        while len(search.tree.pops) < len(search.recorded) and (node := self._pick()) is not None:
            stored = search._dispatch(len(search.tree.pops), node, closing=False)
            assert isinstance(stored, Expansion)
            search._apply(stored)
        return None

    def pop(self) -> Pop | None:
        """Takes the best node; None when the budget is spent or nothing is left."""
        node = self._pick()
        if node is None:
            return None
        search, seq = self._search, len(self._search.tree.pops)
        again = search.repairs.of_pop.pop(seq, None)
        return Pop(seq, node, search._draws(node), again, first=search.tree.drawn[node])

    def _pick(self) -> int | None:
        self._search.popped = len(self._search.tree.pops)
        picked = self._search._next()
        return picked[0] if picked is not None else None

    def apply(self, pop: Pop) -> None:
        """Adds the result to the tree, the frontier and the store."""
        self._search._apply(pop.expansion())
        self._search._save()  # whoever drives from outside may stop at any step

    async def finish(self) -> Tree:
        """Closes open nodes if the settings say so, chooses, reveals, and waits until the store has it all."""
        await self._search.close()
        return await self._search.finish()
