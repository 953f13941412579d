"""Where a search acts from: nodes of the tree with their paths and prompts, held or rebuilt."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from treewright.envs.records import quick
from treewright.envs.types import Observation, Task, ToolSpec, seed_of
from treewright.search.asking import context_of
from treewright.search.restore import Pool, Snapshots, Waypoint
from treewright.search.segments import Part
from treewright.search.tree import Tree
from treewright.search.types import (
    Completion,
    Context,
    Exchange,
    NodeStatus,
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


@quick
@dataclass(frozen=True, slots=True)
class Spot:
    """A place to act from: a node of the tree, or one of a rollout that is not applied yet.

    path   the steps from the root here;  turns  what the policy is shown: those of the episode before the root, too
    part   the response under way, whose tokens `context` ends with; None between turns
    """

    path: tuple[Waypoint, ...]
    turns: tuple[Exchange, ...]
    context: Context
    logprob: float
    part: Part | None = None

    @property
    def seed(self) -> int:
        """Of the node's own draw."""
        return self.path[-1].seed if self.part is None else self.part.seed

    @property
    def place(self) -> int:
        """Of the last step: where a session stands for this node."""
        return self.path[-1].seed

    def within(self, seed: int, done: Completion) -> Spot:
        """The place behind a segment that was drawn here."""
        ids, before = self.context.ids + done.token_ids, self.part
        said = (before.ids if before else ()) + done.token_ids
        context = replace(self.context, keep=len(ids), delta=(), ids=ids)
        logprob = self.logprob + (math.fsum(done.logprobs) if done.logprobs else 0.0)
        part = Part(seed, said, (before.count if before else 0) + 1)
        return Spot(self.path, self.turns, context, logprob, part)

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
        seed = spot.seed
        if seed not in self.spots:
            self.spots[seed] = spot
            self.held += spot.size
            while self.held > HELD_TOKENS:
                self.held -= self.spots.popitem(last=False)[1].size
        return spot

    def _root(self) -> Spot:
        seen = self.tree.observation[0] or Observation(text="")
        begun = self._begun(seen, self.tools.get(self.tree.seed[0], ()))
        return self._hold(replace(begun, context=self._recorded(begun.context, 0, ())))

    def _begun(self, seen: Observation, tools: Sequence[ToolSpec]) -> Spot:
        """The place of a root that shows `seen`. Behind a commit its prompt holds what the episode did before."""
        tree, past = self.tree, self.tree.header.past
        turns: tuple[Exchange, ...] = ()
        if past is None:
            context = context_of(self.policy, self.task, tools, seen, (), ())
        else:
            turns = past.until(seen)
            context = context_of(self.policy, self.task, tools, past.first, turns, past.ids)
            context = replace(context, keep=0, delta=context.ids)
        return Spot((Waypoint(tree.seed[0], tree.key(0), None, seen.fingerprint),), turns, context, 0.0)

    def _below(self, above: Spot, node: int) -> Spot:
        """The place of a node, from that of its parent."""
        tree = self.tree
        if tree.in_turn(node):
            return self._hold(above.within(tree.seed[node], tree.draft(node).completion))
        seen = tree.observation[node] or Observation(text="")
        action = tree.action[node] if tree.error[node] is None else None
        turns = (*above.turns, Exchange(tree.text[node], tree.action[node], seen))
        base = above.context.ids + tree.ids[node]
        context = context_of(self.policy, self.task, self.tools.get(tree.seed[node], ()), self._first(), turns, base)
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
        return self.tree.header.first

    async def _drawn_at(self, node: int) -> Spot:
        """The place of a node, with a context that shows its tools: a resumed search asks the world for them first."""
        spot = self.spot(node)
        if spot.place not in self.tools:
            await self._tools_at(spot)
            if self.tree.status[node] is NodeStatus.DRAFT:  # executed in this pop: the tree does not know it yet
                return spot
            above = node
            self._drop(above)
            while self.tree.in_turn(above):  # the places in one turn share the context
                above = self.tree.parent[above]
                self._drop(above)
            spot = self.spot(node)
        return spot

    def _drop(self, node: int) -> None:
        held = self.spots.pop(self.tree.seed[node], None)
        self.held -= 0 if held is None else held.size

    async def _tools_at(self, spot: Spot) -> tuple[ToolSpec, ...]:
        if spot.place not in self.tools:
            async with self.pool.lease(self.tree.tree_id, (spot.place,)) as session:
                await self.pool.reach(session, self.tree.tree_id, self.task, spot.path, self.snapshots)
                self.tools[spot.place] = await self.pool.tools(session)
        return self.tools[spot.place]
