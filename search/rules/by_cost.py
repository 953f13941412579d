"""The frontier of A*: least cost first, with weights, states reached again more cheaply, and what is proved so far."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence

from treewright.envs.types import Effect
from treewright.search.tree import Tree
from treewright.search.types import NodeStatus

__all__ = ["ByCost"]

_ENDED = frozenset({NodeStatus.TERMINAL, NodeStatus.COMMITTED})


class ByCost:
    """Lowest g + w·h first (Hart, Nilsson and Raphael 1968; weighted: Pohl 1970).

    g, h     cost of the path to a node, and what is expected to come; both are at least 0
    weights  w, one after the other, none rising: once the cheapest end is proved to cost at most w times the least,
             the next one counts, and what waits is put in order anew (ARA*, Likhachev, Gordon and Thrun 2003)
    state    what a node is equal to; None for a node that is like no other. Of equal ones only the first and those
             that are cheaper than all before them wait, whether the earlier ones were expanded or not: a state that was
             closed is opened again, as it must be where h falls by more than a step costs. The rest is dropped

    An end costs g + h: its h is the doubt that is left. With h = 0 everywhere it is Dijkstra's order.
    """

    __slots__ = (
        "_closed",
        "_cost",
        "_ends",
        "_flying",
        "_g",
        "_h",
        "_heap",
        "_least",
        "_state",
        "_states",
        "_tree",
        "_weights",
        "dropped",
        "reopened",
    )

    def __init__(
        self,
        tree: Tree,
        g: Callable[[int], float],
        h: Callable[[int], float],
        weights: Sequence[float] = (1.0,),
        state: Callable[[int], str | None] | None = None,
    ) -> None:
        self._tree, self._g, self._h, self._state = tree, g, h, state
        self._weights = list(weights)
        self._cost: dict[int, tuple[float, float]] = {}  # what waits or is under way: g, h
        self._heap: list[tuple[float, int]] = []
        self._least: list[tuple[float, int]] = []  # the same nodes by g + h
        self._flying: set[int] = set()
        self._ends: list[tuple[float, int]] = []
        self._states: dict[str, tuple[float, int]] = {}  # the cheapest g of each state, and its node
        self._closed: set[str] = set()
        self.dropped: list[int] = []
        self.reopened = 0

    @property
    def weight(self) -> float:
        return self._weights[0]

    def offer(self, node: int) -> None:
        if node in self._cost:
            return
        g, h = self._g(node), self._h(node)
        if g != g or h != h:
            raise ValueError(f"node {node} costs g = {g}, h = {h}; both must be numbers")
        key = self._state(node) if self._state is not None else None
        if key is not None:
            if key in self._states and self._states[key][0] <= g:
                self.dropped.append(node)
                return
            if key in self._closed:
                self._closed.discard(key)
                self.reopened += 1
            self._states[key] = g, node
        self._cost[node] = g, h
        heapq.heappush(self._heap, (g + self.weight * h, node))
        heapq.heappush(self._least, (g + h, node))

    def peek(self) -> int | None:
        if len(self._weights) > 1 and self.bound() <= self.weight:
            while len(self._weights) > 1 and self.bound() <= self.weight:
                del self._weights[0]
            self._heap = [(g + self.weight * h, i) for i, (g, h) in self._cost.items() if i not in self._flying]
            heapq.heapify(self._heap)
        while self._heap and self._stale(self._heap[0][1]):
            node = heapq.heappop(self._heap)[1]
            self.dropped.append(node)
            del self._cost[node]
        return self._heap[0][1] if self._heap else None

    def _stale(self, node: int) -> bool:
        """A cheaper way to the same state came while it waited."""
        key = self._state(node) if self._state is not None else None
        return key is not None and self._states[key][1] != node

    def take(self) -> int:
        if self.peek() is None:
            raise IndexError("no node waits")
        node = heapq.heappop(self._heap)[1]
        self._flying.add(node)
        if self._state is not None and (key := self._state(node)) is not None:
            self._closed.add(key)
        return node

    def applied(self, node: int, new: range) -> None:
        self._flying.discard(node)
        self._cost.pop(node, None)
        for i in (node, *new):
            if self._ended(i):
                heapq.heappush(self._ends, (self._g(i) + self._h(i), i))

    def _ended(self, node: int) -> bool:
        """The world ended the episode there, or the action that would waits for commit."""
        tree = self._tree
        waits = tree.status[node] is NodeStatus.DRAFT and tree.effect[node] is Effect.IRREVERSIBLE
        return node > 0 and (tree.status[node] in _ENDED or waits)

    # -- what is proved -----------------------------------------------------------------------------------------

    def least(self) -> float:
        """The smallest g + h of what waits or is under way: no path still to be found costs less, if h is not above
        the truth; infinite where nothing waits."""
        while self._least and (self._least[0][1] not in self._cost or self._stale(self._least[0][1])):
            heapq.heappop(self._least)
        return self._least[0][0] if self._least else math.inf

    def best(self) -> float:
        """What the cheapest end costs; infinite without one."""
        while self._ends and not self._ended(self._ends[0][1]):  # a repair has cut it off
            heapq.heappop(self._ends)
        return self._ends[0][0] if self._ends else math.inf

    def bound(self) -> float:
        """How many times the least possible the cheapest end costs at most; 1 is proved, infinite without an end."""
        return ratio(self.best(), self.least())

    def proved(self) -> bool:
        """The cheapest end is within the last weight of the least."""
        return self.bound() <= self._weights[-1]


def ratio(best: float, least: float) -> float:
    """best / least, at least 1: both 0 is 1, and an infinite best is infinite whatever the least."""
    if math.isinf(best):
        return math.inf
    if best <= least:
        return 1.0
    return best / least if least > 0 else math.inf
