"""What waits to be popped, in which order: by priority, by layer, or by a walk down from the root.

A frontier is told what happened (a node waits, a pop was taken, its result was applied) in an order that does not
depend on timing, so what it shows next does not either. Equal candidates go in order of creation.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from treewright.search.tree import Node, Tree

__all__ = ["Allotting", "ByDescent", "ByLayer", "ByPriority", "Delayed", "Frontier", "Proving", "ucb"]


class Frontier(Protocol):
    """The nodes that a pop could do something with."""

    @property
    def dropped(self) -> Sequence[int]:
        """What the rule gave up; nothing drops out of a frontier unseen."""

    def offer(self, node: int) -> None:
        """A node waits from now on."""

    def peek(self) -> int | None:
        """The next node; None if none waits, or if the rule first needs results that are under way."""

    def take(self) -> int:
        """Removes what `peek` shows; its result will be `applied`. Raises IndexError if there is nothing."""

    def applied(self, node: int, new: range) -> None:
        """The result of a pop is in the tree: the nodes `new` were made, and those that wait are offered next."""


def _checked(node: int, priority: float) -> float:
    """A NaN would break the order of a heap."""
    if priority != priority:
        raise ValueError(f"node {node} has a NaN priority; a rule must return a number, or None to drop the node")
    return priority


@runtime_checkable
class Allotting(Protocol):
    """A frontier that shares draws out over what waits."""

    def draws(self, node: int) -> int | None:
        """K of a node that is shown or was just taken, fixed before its first draw; None: what the rule says."""


@runtime_checkable
class Proving(Protocol):
    """A frontier that knows when no better end can come."""

    def proved(self) -> bool:
        """The best end that is there is as good as the rule asks for, whatever is still open."""


class ByPriority:
    """Highest priority first. A priority of None drops the node."""

    __slots__ = ("_heap", "_priority", "_tree", "dropped")

    def __init__(self, tree: Tree, priority: Callable[[Node], float | None]) -> None:
        self._tree, self._priority = tree, priority
        self._heap: list[tuple[float, int]] = []
        self.dropped: list[int] = []

    def offer(self, node: int) -> None:
        priority = self._priority(Node(self._tree, node))
        if priority is None:
            self.dropped.append(node)
        else:
            heapq.heappush(self._heap, (-_checked(node, priority), node))

    def peek(self) -> int | None:
        return self._heap[0][1] if self._heap else None

    def take(self) -> int:
        return heapq.heappop(self._heap)[1]

    def applied(self, node: int, new: range) -> None:
        """Nothing to learn: priorities are given once."""


class Delayed:
    """By priority, but some nodes wait aside until the rule releases them or nothing else is left.

    release  (tree, how many wait aside) → may they be popped now?
    """

    __slots__ = ("_aside", "_delay", "_open", "_release", "_tree")

    def __init__(
        self,
        tree: Tree,
        priority: Callable[[Node], float | None],
        delay: Callable[[Node], bool],
        release: Callable[[Tree, int], bool],
    ) -> None:
        self._tree, self._delay, self._release = tree, delay, release
        self._open, self._aside = ByPriority(tree, priority), ByPriority(tree, priority)

    @property
    def dropped(self) -> list[int]:
        return self._open.dropped + self._aside.dropped

    def offer(self, node: int) -> None:
        (self._aside if self._delay(Node(self._tree, node)) else self._open).offer(node)

    def _next(self) -> ByPriority:
        first, aside = self._open._heap, self._aside._heap
        if not first or (aside and aside[0] < first[0] and self._release(self._tree, len(aside))):
            return self._aside
        return self._open

    def peek(self) -> int | None:
        return self._next().peek()

    def take(self) -> int:
        return self._next().take()

    def applied(self, node: int, new: range) -> None:
        """Nothing to learn: priorities are given once."""


class ByLayer:
    """One depth after the other. When a layer is done, `keep` chooses from the next one; the rest is dropped.

    keep   (tree, candidates in order of creation) → those to expand, in that order
    allot  (tree, those that were kept) → draws of each, in place of what the rule gives every node alike
    """

    __slots__ = ("_allot", "_allotted", "_flying", "_gathered", "_keep", "_layer", "_tree", "dropped")

    def __init__(
        self,
        tree: Tree,
        keep: Callable[[Tree, Sequence[int]], Sequence[int]],
        allot: Callable[[Tree, Sequence[int]], Sequence[int]] | None = None,
    ) -> None:
        self._tree, self._keep, self._allot = tree, keep, allot
        self._allotted: dict[int, int] = {}
        self._layer, self._gathered, self._flying = deque[int](), list[int](), 0
        self.dropped: list[int] = []

    def offer(self, node: int) -> None:
        self._gathered.append(node)

    def peek(self) -> int | None:
        if not self._layer and not self._flying and self._gathered:
            kept = list(self._keep(self._tree, self._gathered))
            self.dropped += sorted(set(self._gathered) - set(kept))
            self._layer, self._gathered = deque(kept), []
            if self._allot is not None:
                self._allotted = dict(zip(kept, self._allot(self._tree, kept), strict=True))
        return self._layer[0] if self._layer else None

    def take(self) -> int:
        if self.peek() is None:
            raise IndexError("no node of this layer waits")
        self._flying += 1
        return self._layer.popleft()

    def applied(self, node: int, new: range) -> None:
        self._flying -= 1

    def draws(self, node: int) -> int | None:
        """K of a node of this layer; None where the rule says it."""
        return self._allotted.get(node)


class ByDescent:
    """From the root to the child of the highest upper confidence bound, until a node waits (Monte-Carlo tree search).

    A node's value is the mean of what was seen below it: `value` of every node made there, counted once. A pop under
    way counts as `virtual_loss` visits of value 0 on its path, so that the next walk turns elsewhere.
    """

    __slots__ = (
        "_exploration",
        "_flying",
        "_loss",
        "_open",
        "_total",
        "_tree",
        "_value",
        "_visits",
        "_waits",
        "dropped",
    )

    def __init__(self, tree: Tree, value: Callable[[Node], float], exploration: float, virtual_loss: float) -> None:
        self._tree, self._value = tree, value
        self._exploration, self._loss = exploration, virtual_loss
        self._waits: set[int] = set()
        self._open: list[int] = []  # how many nodes wait at or below each node
        self._visits: list[int] = []
        self._total: list[float] = []
        self._flying: list[int] = []
        self.dropped: list[int] = []
        self._grow()

    def _grow(self) -> None:
        more = len(self._tree) - len(self._open)
        self._open += [0] * more
        self._visits += [0] * more
        self._total += [0.0] * more
        self._flying += [0] * more

    def offer(self, node: int) -> None:
        self._grow()
        self._waits.add(node)
        self._along(self._open, node, 1)

    def _along(self, counts: list[int], node: int, by: int) -> None:
        while node >= 0:
            counts[node] += by
            node = self._tree.parent[node]

    def peek(self) -> int | None:
        if not self._open[0]:
            return None
        node = 0
        while node not in self._waits:
            alive = [child for child in self._tree.children[node] if self._open[child]]
            node = max(alive, key=lambda child, above=node: (self._bound(above, child), -child))  # type: ignore[misc]
        return node

    def _bound(self, parent: int, child: int) -> float:
        tries = self._visits[child] + self._loss * self._flying[child]
        above = self._visits[parent] + self._loss * self._flying[parent]
        return ucb(self._total[child], tries, above, self._exploration)

    def take(self) -> int:
        node = self.peek()
        if node is None:
            raise IndexError("no node waits")
        self._waits.remove(node)
        self._along(self._open, node, -1)
        self._along(self._flying, node, 1)
        return node

    def applied(self, node: int, new: range) -> None:
        self._grow()
        self._along(self._flying, node, -1)
        for child in new:
            value, at = self._value(Node(self._tree, child)), child
            while at >= 0:
                self._visits[at] += 1
                self._total[at] += value
                at = self._tree.parent[at]


def ucb(total: float, visits: float, above: float, exploration: float) -> float:
    """UCB1: mean + c·√(ln N / n); infinite for a node that was never visited (Auer et al. 2002; Kocsis 2006)."""
    if visits <= 0:
        return math.inf
    return total / visits + exploration * math.sqrt(math.log(max(above, 1.0)) / visits)
