"""Repair instead of restart: shortest paths over the states of a world, kept right while the world changes.

    planner = Planner(EnvironmentProbe(env, task))
    await planner.start()
    await planner.grow()                      # every state that can be reached; or grow(until=goal)
    planner.invalidate([(state, action.key)]) # the world said that these steps changed, or a commit changed them
    await planner.grow()                      # only what hangs on them is looked at again

States are known by fingerprint, so equal states are one. An edge is one action taken in one state: where it led and
what it cost. An invalidated edge is forgotten; the states whose way from the root used it become orphans; they are
re-opened from their border, cheapest first, and the queue of what was waiting before is kept. An orphan that is
reached again is validated by one step, all other recorded edges are believed. After FMT^x and RRT^X (Otte & Frazzoli,
Int. J. Robotics Research 35(7), 2016): orphan, re-open from the border, keep the queue. The costs at the end are those
of a restart.

Not promised: a change that nobody names is noticed only where a step is taken again, see `Planner.confirm`.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from treewright.envs.errors import Divergence, InvalidAction, RestoreUnsupported, TreewrightError
from treewright.envs.types import Action, Environment, Restore, Snapshot, StepResult, Task, seed_of
from treewright.search.restore import refuse_repeat

__all__ = ["Edge", "EnvironmentProbe", "Hop", "Planner", "Probe"]

TURN = 0.005  # seconds after which other tasks get their turn
State = Hashable
Hop = tuple[State, str]
"""An action taken in a state: the state's fingerprint and the action's canonical key, `Action.of(...).key`."""


@dataclass(frozen=True, slots=True)
class Edge:
    """What a step gave: the state it led to, its cost (positive), and what can be done there.

    `actions` holds canonical keys. A step that the world refused leads nowhere: `to` is None and the cost infinite.
    """

    to: State | None
    cost: float = 1.0
    actions: tuple[str, ...] = ()


class Probe(Protocol):
    """A way to take single steps from states that were reached before."""

    steps: int

    async def start(self) -> Edge:
        """The first state; its cost is not used."""

    async def look(self, state: State, action: str, path: Callable[[], Sequence[Hop]]) -> Edge:
        """Takes `action` in `state`, to which `path()` leads from the first state.

        Raises Divergence where it does not: its `step` is the number of hops up to and with the one that went wrong.
        """


@dataclass(slots=True)
class Planner:
    """Cheapest ways from the first state to every state that was reached.

    cost     state → cost of the cheapest known way; a state without one is absent
    above    state → the hop that its cheapest way ends with
    edges    hop → what it gave when it was last taken
    """

    probe: Probe
    root: State = None
    cost: dict[State, float] = field(default_factory=dict)
    above: dict[State, Hop] = field(default_factory=dict)
    edges: dict[Hop, Edge] = field(default_factory=dict)
    _below: dict[State, set[State]] = field(default_factory=dict)
    _into: dict[State, set[Hop]] = field(default_factory=dict)
    _actions: dict[State, tuple[str, ...]] = field(default_factory=dict)
    _orphans: set[State] = field(default_factory=set)
    _queue: list[tuple[float, int, State, str | None]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)
    _turn: float = 0.0

    # -- growing ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Finds the first state."""
        first = await self.probe.start()
        self.root, self._actions[first.to] = first.to, first.actions
        self.cost[first.to] = 0.0
        self._push(0.0, first.to)

    async def grow(self, until: State | None = None) -> float:
        """Settles states, cheapest first, until `until` is settled (None: all). Returns the cost of `until`.

        What was still waiting stays in the queue for the next call. inf where `until` cannot be reached. Other tasks
        get their turn every few milliseconds, however quick the world is.
        """
        while self._queue:
            await self._breathe()
            key, _, state, action = self._queue[0]
            if until is not None and self.cost.get(until, math.inf) <= key:
                break
            heapq.heappop(self._queue)
            if action is None:
                await self._expand(state, key)
            else:
                await self._settle(state, action, key)
        return self.cost.get(until, math.inf) if until is not None else math.nan

    async def _breathe(self) -> None:
        if time.monotonic() > self._turn:
            await asyncio.sleep(0)
            self._turn = time.monotonic() + TURN

    async def _expand(self, state: State, key: float) -> None:
        """Offers every edge out of a state; those never taken, or forgotten, are taken."""
        if key != self.cost.get(state):  # a stale entry: the state was orphaned or got cheaper
            return
        for action in self._actions[state]:
            if (state, action) not in self.edges and await self._take(state, action) is None:
                return
            self._offer(state, action)

    async def _settle(self, state: State, action: str, key: float) -> None:
        """Adopts the end of an edge, if this still is the cheapest way to it; orphans are validated by a step."""
        edge = self.edges.get((state, action))
        if edge is None or edge.to is None or key != self.cost.get(state, math.inf) + edge.cost:
            return
        if key >= self.cost.get(edge.to, math.inf):
            return
        if edge.to in self._orphans:
            found = await self._take(state, action)
            if found != edge:
                if found is not None:
                    self._offer(state, action)
                return
            self._orphans.discard(edge.to)
        self._adopt(edge.to, (state, action), key)

    def _adopt(self, state: State, hop: Hop, cost: float) -> None:
        if state in self.above:
            self._below[self.above[state][0]].discard(state)
        self.cost[state], self.above[state] = cost, hop
        self._below.setdefault(hop[0], set()).add(state)
        self._push(cost, state)

    async def _take(self, state: State, action: str) -> Edge | None:
        """One step in the world, recorded; None where `state` was not where its way leads, which is then repaired."""
        try:
            edge = await self.probe.look(state, action, lambda: self.path(state))
        except Divergence as error:
            self._diverged(self.path(state), error)
            return None
        if not edge.cost > 0:
            raise TreewrightError(f"{action} costs {edge.cost}; steps must cost more than 0")
        self._forget((state, action))
        self.edges[state, action] = edge
        if edge.to is not None:
            self._into.setdefault(edge.to, set()).add((state, action))
            self._actions[edge.to] = edge.actions
        return edge

    def _offer(self, state: State, action: str) -> None:
        edge = self.edges[state, action]
        if edge.to is not None and self.cost[state] + edge.cost < self.cost.get(edge.to, math.inf):
            self._push(self.cost[state] + edge.cost, state, action)

    def _push(self, key: float, state: State, action: str | None = None) -> None:
        heapq.heappush(self._queue, (key, next(self._order), state, action))

    def _forget(self, hop: Hop) -> None:
        edge = self.edges.pop(hop, None)
        if edge is not None and edge.to is not None:
            self._into[edge.to].discard(hop)

    # -- repair -------------------------------------------------------------------------------------------------

    def invalidate(self, hops: Iterable[Hop]) -> set[State]:
        """Forgets these steps and orphans what hung on them; returns the orphans. Costs no step: `grow` repairs.

        Hops that were never taken are ignored: `grow` would take them anyway.
        """
        named = {hop for hop in hops if hop in self.edges}
        lost: set[State] = set()
        for hop in named:
            to = self.edges[hop].to
            if to is not None and self.above.get(to) == hop:
                lost |= self._subtree(to)
            self._forget(hop)
        for state in lost:
            self.cost.pop(state, None)
            above = self.above.pop(state, None)
            if above is not None:
                self._below[above[0]].discard(state)
        self._orphans |= lost
        for state in lost:  # the border: what still leads into an orphan from outside
            for source, action in self._into.get(state, ()):
                if source in self.cost:
                    self._offer(source, action)
        for source, _ in named:
            if source in self.cost:  # its forgotten edges are taken when it is expanded again
                self._push(self.cost[source], source)
        return lost

    def invalidate_where(self, touched: Callable[[State, str], bool]) -> set[State]:
        """Invalidates every recorded step for which `touched(state, action)`: what an irreversible action changed."""
        return self.invalidate([hop for hop in self.edges if touched(*hop)])

    async def confirm(self, goal: State) -> float:
        """Walks to `goal` step by step, repairs where a step gives something new, until a whole way was confirmed.

        Returns its cost; inf if there is no way left. Finds changes for the worse that nobody named.
        """
        while (cost := await self.grow(goal)) < math.inf:
            way = self.path(goal)
            for i, (state, action) in enumerate(way):
                await self._breathe()
                try:
                    same = await self.probe.look(state, action, way[:i].copy) == self.edges[state, action]
                except Divergence as error:
                    self._diverged(way[:i], error)
                    break
                if not same:
                    self.invalidate([(state, action)])
                    break
            else:
                return cost
        return math.inf

    def _diverged(self, path: Sequence[Hop], error: Divergence) -> None:
        if not 0 < error.step <= len(path):
            raise TreewrightError(f"the first state has changed: {error}; begin anew with another Planner") from error
        self.invalidate([path[error.step - 1]])

    def _subtree(self, state: State) -> set[State]:
        found, stack = {state}, [state]
        while stack:
            new = self._below.get(stack.pop(), set()) - found
            found |= new
            stack.extend(new)
        return found

    # -- reading ------------------------------------------------------------------------------------------------

    def path(self, state: State) -> list[Hop]:
        """The hops of the cheapest known way from the first state to `state`. Raises KeyError without one."""
        hops: list[Hop] = []
        while state != self.root:
            hops.append(self.above[state])
            state = hops[-1][0]
        return hops[::-1]


@dataclass(slots=True)
class EnvironmentProbe:
    """Steps in an environment: by snapshot where it has some, by replay otherwise. `steps` counts all, replays too.

    cost     of a step, from its result; 1 for every step unless given (truth rewards are not for search: use info)
    actions  what can be done in every state; None asks the world each time and takes the tools without arguments
    """

    env: Environment
    task: Task
    cost: Callable[[StepResult], float] = lambda result: 1.0
    actions: Sequence[Action] | None = None
    steps: int = 0
    _saved: dict[State, Snapshot] = field(default_factory=dict)
    _keys: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self._keys = tuple(action.key for action in self.actions) if self.actions is not None else None

    async def start(self) -> Edge:
        seen = await self.env.reset(self.task, seed_of(self.task.seed, "plan"))
        await self._save(seen.fingerprint)
        return Edge(seen.fingerprint, 0.0, await self._choices())

    async def look(self, state: State, action: str, path: Callable[[], Sequence[Hop]]) -> Edge:
        await self._reach(state, path)
        await refuse_repeat(self.env, Action.from_key(action))  # a planner takes every step many times
        self.steps += 1
        try:
            result = await self.env.step(Action.from_key(action), _key(state, action))
        except InvalidAction:
            return Edge(None, math.inf)
        to = result.observation.fingerprint
        await self._save(to)
        over = result.terminated or result.truncated
        return Edge(to, self.cost(result), () if over else await self._choices())

    async def _reach(self, state: State, way: Callable[[], Sequence[Hop]]) -> None:
        if state in self._saved:
            found = (await self.env.restore(self._saved[state])).fingerprint
            if found == state:
                return
            del self._saved[state]
        path = way()
        if path and Restore.REPLAY not in self.env.restore_ways:
            raise RestoreUnsupported(f"{self.env.name} offers no way back to a state {len(path)} steps from the first")
        found = (await self.env.reset(self.task, seed_of(self.task.seed, "plan"))).fingerprint
        for i, (source, action) in enumerate(path):
            if found != source:
                raise Divergence(str(source), found, i)
            await refuse_repeat(self.env, Action.from_key(action))
            self.steps += 1
            try:
                found = (await self.env.step(Action.from_key(action), _key(source, action))).observation.fingerprint
            except InvalidAction as error:
                raise Divergence(str(source), f"invalid action: {error}", i + 1) from error
        if found != state:
            raise Divergence(str(state), found, len(path))

    async def _save(self, state: State) -> None:
        if state not in self._saved and self.env.restore_ways & {Restore.STATE, Restore.FORK}:
            self._saved[state] = await self.env.snapshot()

    async def _choices(self) -> tuple[str, ...]:
        if self._keys is not None:
            return self._keys
        return tuple(Action.of(tool.name).key for tool in await self.env.actions())


def _key(state: State, action: str) -> int:
    return seed_of("plan", str(state), action)
