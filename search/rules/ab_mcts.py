"""Adaptive branching (AB-MCTS, arXiv 2503.04412): at every node, draw once more or go down, by Thompson sampling.

From the root, at each expanded node: a value is drawn from what is believed of a further draw here, and one from what
is believed of going on below. If the first is higher, the node itself draws again; else a value is drawn for each child
that can be gone on from, and the walk goes to the highest. A node that was not expanded is expanded. A score counts for
the node that drew it, as a draw; for every child on the way to it, as worth of going there; and for every node above
its parent, as worth of going down. This is the method's variant with node aggregation.

Beliefs are a Beta distribution over scores in [0, 1], or a normal one of unknown mean and variance, with the priors of
the paper's implementation. All that is drawn comes from the tree's seeds, so the tree depends on the width alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from treewright.envs.errors import TreewrightError
from treewright.envs.types import seed_of
from treewright.search.rules.base import Rule, estimate, fan_out, spell
from treewright.search.rules.choose import choose_by_score
from treewright.search.tree import Node, Tree
from treewright.search.types import NodeStatus

__all__ = ["Belief", "ByThompson", "ab_mcts"]

POSTERIORS = ("gaussian", "beta")


@dataclass(slots=True)
class Belief:
    """What is known of scores: how many, their sum, and the sum of their squares."""

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def add(self, score: float, weight: float = 1.0) -> None:
        self.count += weight
        self.total += weight * score
        self.squares += weight * score * score

    def beta(self, rng: random.Random) -> float:
        """A draw of the mean from Beta(½ + Σ s, ½ + Σ (1 − s))."""
        return rng.betavariate(0.5 + max(self.total, 0.0), 0.5 + max(self.count - self.total, 0.0))

    def gaussian(self, rng: random.Random) -> float:
        """A draw of the mean from the normal-inverse-χ² posterior with prior mean 0, κ = 1, ν = 1, variance 0.1."""
        kappa, nu = 1.0 + self.count, 1.0 + self.count
        mean = self.total / kappa
        spread = self.squares - self.total * mean  # Σ (s − s̄)² + κ₀ n/κ · s̄², for a prior mean of 0
        variance = (0.1 + max(spread, 0.0)) / nu
        sigma = math.sqrt(nu * variance / (2.0 * rng.gammavariate(nu / 2.0, 1.0)))
        return mean + rng.gauss(0.0, 1.0) * sigma / math.sqrt(kappa)


class ByThompson:
    """The walk above as a frontier: it shows nodes that were not expanded, and expanded ones to draw from again.

    widest  most draws of a node;  loss  weight of a pop under way, as a score of 0, on its path
    """

    __slots__ = (
        "_busy",
        "_child",
        "_down",
        "_draw",
        "_loss",
        "_room",
        "_sample",
        "_tree",
        "_visits",
        "_waits",
        "_widest",
    )

    def __init__(self, tree: Tree, sample: Callable[[Belief, random.Random], float], widest: int, loss: float) -> None:
        self._tree, self._sample, self._widest, self._loss = tree, sample, widest, loss
        self._waits: set[int] = set()
        self._busy: dict[int, int] = {}  # pops under way by node
        self._room: list[bool] = []  # something at or below the node can be popped
        self._draw: list[Belief] = []
        self._child: list[Belief] = []
        self._down: list[Belief] = []
        self._visits = 0
        self._grow()

    @property
    def dropped(self) -> Sequence[int]:
        return ()

    def _grow(self) -> None:
        for _ in range(len(self._tree) - len(self._room)):
            self._room.append(False)
            self._draw.append(Belief())
            self._child.append(Belief())
            self._down.append(Belief())

    def offer(self, node: int) -> None:
        self._grow()
        self._waits.add(node)
        self._mark(node)

    def _mark(self, node: int) -> None:
        """Whether something can be popped, from a node up as far as it changes."""
        while node >= 0:
            now = self._own(node) or any(self._room[child] for child in self._tree.children[node])
            if now == self._room[node]:
                return
            self._room[node] = now
            node = self._tree.parent[node]

    def _own(self, node: int) -> bool:
        """The node itself can be popped."""
        tree = self._tree
        if node in self._waits:
            return True
        return tree.status[node] is NodeStatus.EXPANDED and node not in self._busy and tree.drawn[node] < self._widest

    def peek(self) -> int | None:
        if not self._room or not self._room[0]:
            return None
        node, rng = 0, random.Random(seed_of(self._tree.seed[0], "walk", self._visits))
        while node not in self._waits:
            below = [child for child in self._tree.children[node] if self._room[child]]
            wider = self._own(node)
            if not below or (wider and self._sample(self._draw[node], rng) >= self._sample(self._down[node], rng)):
                return node
            node = max(below, key=lambda child: (self._sample(self._child[child], rng), -child))
        return node

    def take(self) -> int:
        node = self.peek()
        if node is None:
            raise IndexError("no node waits")
        self._visits += 1
        self._waits.discard(node)
        self._busy[node] = len(self._tree)
        self._count(node, 0.0, self._loss)
        self._mark(node)
        return node

    def applied(self, node: int, new: range) -> None:
        self._grow()
        if self._busy.pop(node, None) is not None:
            self._count(node, 0.0, -self._loss)
        for child in new:
            score = estimate(Node(self._tree, child))
            self._child[child].add(score)
            self._count(self._tree.parent[child], score, 1.0)
        self._mark(node)

    def _count(self, node: int, score: float, weight: float) -> None:
        """A score drawn at `node`: a draw for it, worth of every child on the way, worth of going down above."""
        if not weight:
            return
        self._draw[node].add(score, weight)
        while node >= 0:
            self._child[node].add(score, weight)
            node = self._tree.parent[node]
            if node >= 0:
                self._down[node].add(score, weight)


def ab_mcts(
    draws: int = 1,
    root_draws: int = 1,
    posterior: str = "gaussian",
    widest: int = 64,
    virtual_loss: float = 1.0,
    eager: bool | None = None,
) -> Rule:
    """Wider or deeper by Thompson sampling (AB-MCTS-A, arXiv 2503.04412), with the evaluator's estimates as scores.

    draws, root_draws  of one pop; the method makes one
    posterior     "gaussian" or "beta"
    widest        most draws of a node in all, so that a tree ends in a finite world
    virtual_loss  weight of a pop under way, as a score of 0

    Draws that were made after others had been looked at make a tree inexact.
    """
    if posterior not in POSTERIORS:
        raise TreewrightError(f"posterior = {posterior!r}; it is {' or '.join(map(repr, POSTERIORS))}")
    if widest < 1 or virtual_loss < 0:
        raise TreewrightError(f"widest = {widest}, virtual_loss = {virtual_loss}; at least 1 and at least 0")
    sample = Belief.beta if posterior == "beta" else Belief.gaussian
    name = spell(
        "ab_mcts", draws=draws, root_draws=root_draws, posterior=posterior, widest=widest, virtual_loss=virtual_loss,
        eager=eager,
    )  # fmt: skip
    return Rule(
        name=name,
        priority=estimate,
        draws=fan_out(root_draws, draws),
        eager=eager,
        frontier=lambda tree: ByThompson(tree, sample, widest, virtual_loss),
        choose=choose_by_score,
    )
