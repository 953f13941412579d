"""Trees that begin at stored nodes: grown for the prefix recipes, and for the loop's backward curriculum."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from treewright.agent.config import Config
from treewright.agent.policies.policy import Templated
from treewright.agent.runs.collect import World, settings_in
from treewright.agent.runs.setup import budget_of, evaluator_of, rule_of, settings_of
from treewright.agent.runs.stores import find_store
from treewright.envs.errors import TreewrightError
from treewright.envs.waiting import together
from treewright.search.engine import Keeper
from treewright.search.meter import Meter, Work, measured
from treewright.search.rooted import Start, search_from
from treewright.search.store import TreeStore
from treewright.search.tree import Tree
from treewright.search.types import Evaluator, layers
from treewright.training.recipes.curriculum import Curriculum, Front

__all__ = ["Starts", "grow_from"]


async def grow_from(
    config: Config,
    starts: Sequence[Start],
    worlds: Mapping[str, World],
    policy: Any,
    run: str,
    store: Keeper | None = None,
    index: int = 0,
    rates: Mapping[str, float] | None = None,
    evaluator: Evaluator | None = None,
) -> list[Tree]:
    """One tree from each start as the search section says, in the order of the starts; the seed changes with `index`.

    rates      success by suite so far, for a rule that adapts to it
    evaluator  one that is open already; None: the section's
    Raises TreewrightError if a start's suite has no world, and for search.evidence.
    """
    if config.search.evidence is not None:
        raise TreewrightError(
            "search.evidence cannot be asked for below stored turns, which may quote nothing; leave it out here"
        )
    for start in starts:
        if start.task.suite not in worlds:
            raise TreewrightError(f"a stored path is of suite {start.task.suite!r}; opened: {', '.join(worlds)}")
    gates = {name: asyncio.Semaphore(world.pool.size) for name, world in worlds.items()}
    section, evaluator = config.search, evaluator or evaluator_of(config.search, policy)
    templated = next((p for p in layers(policy) if isinstance(p, Templated)), None)
    respond = templated.template.response if templated is not None else None

    async def one(i: int, start: Start) -> Tree:
        world = worlds[start.task.suite]
        settings = settings_of(section, run=run, attempt=i, seed=config.seed + index)
        settings = settings_in(world.suite, settings)
        async with gates[start.task.suite]:
            return await search_from(
                start, world.suite.open, policy, rule=rule_of(section, rates), evaluator=evaluator,
                budget=budget_of(section), settings=settings, store=store, respond=respond,
            )  # fmt: skip

    return await together(one(i, start) for i, start in enumerate(starts))


class Starts:
    """The backward curriculum of a loop, with the stores that its starts are in; `cost` is what these stores cost.

    state  of an earlier part of the loop; None: it begins, and the sources are looked through
    own    the store of the loop's trees
    Raises TreewrightError for a source that is not there.
    """

    def __init__(self, config: Config, own: Keeper | None, state: Mapping[str, Any] | None, work: Work | None) -> None:
        settings = config.loop.curriculum
        self.config, self.cost = config, Meter()
        self._own, self._places = own, [find_store(name) for name in settings.sources]
        self._held: dict[str, Tree] = {}
        self.plan = Curriculum(settings, self._load, config.seed)
        if state is not None:
            self.plan.restore(state)
            return
        for tree in self._sources():
            self.cost += measured(tree, work)
            self.plan.gather([tree])
            self._hold([tree])

    def _sources(self) -> Iterator[Tree]:
        """The finished training trees of the sources."""
        for place in self._places:
            with TreeStore.open(place, read_only=True) as store:
                for row in store.trees(split="train", status="done"):
                    yield store.load(row.tree_id)

    def _hold(self, trees: Sequence[Tree]) -> None:
        """Keeps those that a start is in."""
        named = {front.tree for front in self.plan.fronts.values()}
        self._held |= {tree.tree_id: tree for tree in trees if tree.tree_id in named}

    def _load(self, tree_id: str) -> Tree:
        if tree_id not in self._held:
            self._held[tree_id] = self._find(tree_id)
        return self._held[tree_id]

    def _find(self, tree_id: str) -> Tree:
        if self._own is not None and self._own.status(tree_id) == "done":
            return self._own.load(tree_id)
        for place in self._places:
            with TreeStore.open(place, read_only=True) as store:
                if store.status(tree_id) == "done":
                    return store.load(tree_id)
        raise TreewrightError(
            f"tree {tree_id}, which a start of the curriculum is in, is in none of its stores; name its run among "
            "loop.curriculum.sources, or begin a run with a new name"
        )

    async def grow(
        self, roots: int, worlds: Mapping[str, World], policy: Any, run: str, store: Keeper | None, index: int,
        rates: Mapping[str, float], evaluator: Evaluator | None,
    ) -> tuple[list[Front], list[Tree]]:  # fmt: skip
        """The trees of a round that begin at stored nodes, beside `roots` others, and what they begin at."""
        chosen = [(f, start) for f, start in self.plan.choose(roots) if f.suite in worlds]
        starts = [start for _, start in chosen]
        trees = await grow_from(
            self.config, starts, worlds, policy, f"{run}/starts", store, index, rates, evaluator
        )  # fmt: skip
        return [front for front, _ in chosen], trees

    def note(self, roots: Sequence[Tree], begun: Sequence[Tree], chosen: Sequence[Front]) -> dict[str, float]:
        """See `Curriculum.note`."""
        told = self.plan.note(roots, begun, chosen)
        self._hold(roots)
        return told
