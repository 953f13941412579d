"""Where a search acts from: nodes of the tree with their paths and prompts, held or rebuilt."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from functools import lru_cache

from treewright.envs.types import Observation, Task, ToolSpec, seed_of
from treewright.search.restore import Pool, Snapshots, Waypoint
from treewright.search.tree import Tree
from treewright.search.types import (
    Context,
    Exchange,
    Proposer,
)

__all__ = ["Places", "Spot", "draw_seed", "step_key"]

HELD_TOKENS = 16_000_000  # of all prompts that are held; 8 bytes a token, a prompt is a tuple of references


@lru_cache(maxsize=1024)
def draw_seed(seed: int, slot: int) -> int:
    """The seed of a draw at a node; asked for when it is drawn and when it is screened."""
    return seed_of(seed, slot)


@lru_cache(maxsize=1024)
def step_key(seed: int) -> int:
    """The key of the step that a draw is executed with; see Tree.key."""
    return seed_of(seed, "step")


@dataclass(frozen=True, slots=True)
class Spot:
    """A place to act from: a node of the tree, or one of a rollout that is not applied yet."""

    path: tuple[Waypoint, ...]
    turns: tuple[Exchange, ...]
    context: Context
    logprob: float

    @property
    def seed(self) -> int:
        return self.path[-1].seed

    @property
    def depth(self) -> int:
        return len(self.path) - 1

    @property
    def size(self) -> int:
        """What it weighs, counted in tokens: its prompt, its path and the objects around them."""
        return len(self.context.ids) + 128 + 2 * len(self.path)


@dataclass(slots=True, kw_only=True)
class Places:
    """The places of a tree. What is held here a resumed search rebuilds from the tree."""

    task: Task
    pool: Pool
    policy: Proposer
    tree: Tree
    snapshots: Snapshots
    tools: dict[int, tuple[ToolSpec, ...]] = field(default_factory=dict)
    spots: OrderedDict[int, Spot] = field(default_factory=OrderedDict)
    held: int = 0

    def spot(self, node: int) -> Spot:
        """The place of a node of the tree: held since it was executed, or rebuilt from the tree."""
        above: list[int] = []
        while (held := self.spots.get(self.tree.seed[node])) is None and node:
            above.append(node)
            node = self.tree.parent[node]
        if held is None:
            held = self._root()
        for below in reversed(above):
            held = self._below(held, below)
        return held

    def _hold(self, spot: Spot) -> Spot:
        """Keeps a place; the oldest ones go where all of them together get large."""
        if spot.seed not in self.spots:
            self.spots[spot.seed] = spot
            self.held += spot.size
            while self.held > HELD_TOKENS:
                self.held -= self.spots.popitem(last=False)[1].size
        return spot

    def _root(self) -> Spot:
        tree, first = self.tree, self._first()
        context = self.policy.context(self.task, self.tools.get(tree.seed[0], ()), first, (), ())
        point = Waypoint(tree.seed[0], tree.key(0), None, first.fingerprint)
        return self._hold(Spot((point,), (), self._recorded(context, 0, ()), 0.0))

    def _below(self, above: Spot, node: int) -> Spot:
        """The place of a node, from that of its parent."""
        tree = self.tree
        seen = tree.observation[node] or Observation(text="")
        action = tree.action[node] if tree.error[node] is None else None
        turns = (*above.turns, Exchange(tree.text[node], tree.action[node], seen))
        base = above.context.ids + tree.ids[node]
        context = self.policy.context(self.task, self.tools.get(tree.seed[node], ()), self._first(), turns, base)
        point = Waypoint(tree.seed[node], tree.key(node), action, seen.fingerprint, tree.effect[node])
        return self._hold(
            Spot((*above.path, point), turns, self._recorded(context, node, base), tree.path_logprob[node])
        )

    def _recorded(self, context: Context, node: int, base: tuple[int, ...]) -> Context:
        """The context with the tokens that the tree has for this node, whatever the policy would give now."""
        keep, delta = self.tree.keep[node], self.tree.delta[node]
        if (context.keep, context.delta) == (keep, delta):
            return context
        return replace(context, keep=keep, delta=delta, ids=base[:keep] + delta)

    def _first(self) -> Observation:
        return self.tree.observation[0] or Observation(text="")

    async def _tools_at(self, spot: Spot) -> tuple[ToolSpec, ...]:
        if spot.seed not in self.tools:
            async with self.pool.lease(self.tree.tree_id, (spot.seed,)) as session:
                await self.pool.reach(session, self.tree.tree_id, self.task, spot.path, self.snapshots)
                self.tools[spot.seed] = await self.pool.tools(session)
        return self.tools[spot.seed]
