"""A* over plans after ToolChain* (arXiv 2310.13227), with the price of getting back.

    f(n) = g(n) + h(n) + restore_price·depth(n), the lowest first
    g(n) = Σ over the path (1 − g1)^α (1 − g2)^(1 − α)
    h(n) = (1 − h1)^β (1 − h2)^(1 − β)

    g1  the longest common subsequence of the path so far with a remembered plan, as a share of the path; the best plan
    g2  how often the node's action was drawn among the draws of its parent
    h1  the mean relative position of the node's step in the plans that hold it, 0 if none does
    h2  the length so far over the length of the imagined whole: the path and what the best matching plan goes on with

Where the published method asks a language model for an imagined completion, the memory gives it here, at no cost. Steps
match wholly (tool and where its arguments came from) or by half (the tool alone). With an empty memory the order is
that of uniform cost, frequent actions first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from treewright.envs.errors import TreewrightError
from treewright.search.frontier import ByPriority, Frontier
from treewright.search.rules.base import Rule, estimate, fan_out, same_action, spell
from treewright.search.rules.choose import ends
from treewright.search.rules.plan_memory import PlanMemory, alike, step_of
from treewright.search.tree import Node, Tree

__all__ = ["PathCosts", "astar", "lcs", "lcs_row"]


def lcs(path: Sequence[str], plan: Sequence[str]) -> float:
    """The weight of the longest common subsequence, steps matched as `alike` says. Quadratic; the meaning."""
    row = [0.0] * (len(plan) + 1)
    for step in path:
        row = lcs_row(row, step, plan)
    return row[-1]


def lcs_row(above: Sequence[float], step: str, plan: Sequence[str]) -> list[float]:
    """[len(plan) + 1] weights of a path that is one step longer than that of `above`, against each plan prefix."""
    row = [0.0]
    for i, other in enumerate(plan):
        row.append(max(above[i + 1], row[i], above[i] + alike(step, other)))
    return row


@dataclass(slots=True)
class _Match:
    """What is known of one node: its step, g, and for each plan the weights against its prefixes."""

    step: str
    cost: float
    rows: list[list[float]]


@dataclass(slots=True)
class PathCosts:
    """g and h of the nodes of one tree. What it holds derives from the tree and the memory."""

    tree: Tree
    memory: PlanMemory
    alpha: float = 0.5
    beta: float = 0.5
    nearest: int = 8
    plans: list[tuple[str, ...]] = field(init=False)
    _known: dict[int, _Match] = field(init=False)

    def __post_init__(self) -> None:
        self.plans = [plan.steps for plan in self.memory.near(self.tree.task, self.nearest)]
        self._known = {0: _Match("", 0.0, [[0.0] * (len(plan) + 1) for plan in self.plans])}

    def f(self, node: int) -> float:
        return self._match(node).cost + self.h(node)

    def g(self, node: int) -> float:
        return self._match(node).cost

    def h(self, node: int) -> float:
        if node == 0:
            return 1.0
        h1, h2 = self._position(node), self._progress(node)
        return float((1.0 - h1) ** self.beta * (1.0 - h2) ** (1.0 - self.beta))

    def _match(self, node: int) -> _Match:
        if node not in self._known:
            tree, parent = self.tree, self.tree.parent[node]
            above, action = self._match(parent), self.tree.action[node]
            step = step_of(tree.task, tree.exchanges(parent), action) if action is not None else ""
            rows = [lcs_row(row, step, plan) for row, plan in zip(above.rows, self.plans, strict=True)]
            g1 = max((row[-1] for row in rows), default=0.0) / tree.depth[node]
            cost = (1.0 - min(g1, 1.0)) ** self.alpha * (1.0 - self._frequency(node)) ** (1.0 - self.alpha)
            self._known[node] = _Match(step, above.cost + cost, rows)
        return self._known[node]

    def _frequency(self, node: int) -> float:
        """g2."""
        tree, parent = self.tree, self.tree.parent[node]
        return sum(tree.mult[i] for i in same_action(tree, node)) / max(tree.drawn[parent], 1)

    def _position(self, node: int) -> float:
        """h1, by equal steps if a plan has one, else by equal tools."""
        step = self._match(node).step
        for least in (1.0, 0.5):
            places = [
                max(i + 1 for i, other in enumerate(plan) if alike(step, other) >= least) / len(plan)
                for plan in self.plans
                if any(alike(step, other) >= least for other in plan)
            ]
            if places:
                return least * sum(places) / len(places)
        return 0.0

    def _progress(self, node: int) -> float:
        """h2: what lies behind the end of the match, in the plan that matches best, is still to come."""
        rows, done = self._match(node).rows, self.tree.depth[node]
        if not rows:
            return 0.0
        best = max(range(len(rows)), key=lambda p: (rows[p][-1], -len(rows[p])))
        row = rows[best]
        left = len(row) - 1 - row.index(row[-1])
        return done / (done + left)


def astar(
    draws: int = 2,
    root_draws: int = 4,
    memory: PlanMemory | str | Path | None = None,
    alpha: float = 0.5,
    beta: float = 0.5,
    nearest: int = 8,
    restore_price: float = 0.0,
    eager: bool | None = None,
) -> Rule:
    """A* with the costs above.

    memory         plans, or the file they were saved to; None is an empty one
    alpha, beta    weights of plans against frequencies, and of positions against lengths, in [0, 1]
    nearest        how many plans of similar goals count, 0 for all
    restore_price  of one step of replay, in units of f; leave it 0 where snapshots are cheap
    """
    if not (0 <= alpha <= 1 and 0 <= beta <= 1):
        raise TreewrightError(f"alpha = {alpha}, beta = {beta}; both lie in [0, 1]")
    if nearest < 0 or restore_price < 0:
        raise TreewrightError(f"nearest = {nearest}, restore_price = {restore_price}; both are at least 0")
    known = memory if isinstance(memory, PlanMemory) else PlanMemory.load(memory) if memory else PlanMemory()

    def frontier(tree: Tree) -> Frontier:
        costs = PathCosts(tree, known, alpha, beta, nearest)
        return ByPriority(tree, lambda node: -(costs.f(node.id) + restore_price * node.depth))

    def priority(node: Node) -> float:
        return -(PathCosts(node.tree, known, alpha, beta, nearest).f(node.id) + restore_price * node.depth)

    def choose(tree: Tree) -> int | None:
        """The end of the lowest f, then of the highest score."""
        costs = PathCosts(tree, known, alpha, beta, nearest)
        return min(ends(tree), key=lambda i: (round(costs.f(i), 9), -estimate(tree[i]), i), default=None)

    name = spell(
        "astar", draws=draws, root_draws=root_draws, memory=known.digest, alpha=alpha, beta=beta, nearest=nearest,
        restore_price=restore_price, eager=eager,
    )  # fmt: skip
    return Rule(
        name=name, priority=priority, draws=fan_out(root_draws, draws), eager=eager, frontier=frontier, choose=choose
    )
