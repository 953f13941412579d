"""A* over plans after ToolChain* (arXiv 2310.13227), with the price of getting back.

    f(n) = g(n) + w·h(n), the lowest first
    g(n) = Σ over the path c + restore_price·depth(n)
    c    = (1 − s)·(1 − g1)^α (1 − g2)^(1 − α) + s·(−log e)
    h(n) = (1 − t)·(1 − h1)^β (1 − h2)^(1 − β) + t·(1 − e)

    g1  how far the path so far follows a remembered plan: the longest common subsequence with a beginning of the plan,
        as a share of the longer of the two; the best plan, the best beginning
    g2  how often the node's action was drawn among the draws of its parent
    h1  the mean relative position of the node's step in the plans that hold it, 0 if none does; steps that were passed
        over count as still to be done
    h2  the length so far over the length of the imagined whole: the path and what the best matching plan has besides
    e   the evaluator's estimate of the node, at least 1e-4; where it has none, memory alone counts
    s, t  `step_trust` and `trust`: what the evaluator counts beside the memory, in a step's cost and in what is left

Where e is the probability that a step is right, given those before it, −log e summed over a path is −log of the
probability that the whole path is: the cheapest path is the one most probably right, and a long path of sure steps
costs less than a short one with a doubtful step. A memory counts as far as it knows goals like this one: by default s
and t are 1 − ½·(how much the most similar remembered goal is alike), 1 without a memory.

Where the published method asks a language model for an imagined completion, the memory gives it here, at no cost; or
the evaluator `imagined:POLICY` does, as published: its estimate is h2. Steps match wholly (tool and where its arguments
came from) or by half (the tool alone). With an empty memory and no evaluator the order is that of uniform cost,
frequent actions first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Effect
from treewright.search.frontier import Frontier
from treewright.search.rules.base import Rule, estimate, fan_out, same_action, spell
from treewright.search.rules.by_cost import ByCost, ratio
from treewright.search.rules.choose import ends
from treewright.search.rules.plan_memory import PlanMemory, alike, step_of
from treewright.search.tree import Node, Tree
from treewright.search.types import NodeStatus

__all__ = ["PathCosts", "astar", "bound_of", "followed", "lcs", "lcs_row", "surprise", "told_bound"]

LEAST = 1e-4  # what an estimate is taken to be at least: no step costs more than 9.2
_OPEN = frozenset({NodeStatus.OPEN, NodeStatus.DRAFT})


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
    trust: float = 0.0
    step_trust: float = 0.0
    restore_price: float = 0.0
    plans: list[tuple[str, ...]] = field(init=False)
    _known: dict[int, _Match] = field(init=False)

    def __post_init__(self) -> None:
        self.plans = [plan.steps for plan in self.memory.near(self.tree.task, self.nearest)]
        self._known = {0: _Match("", 0.0, [[0.0] * (len(plan) + 1) for plan in self.plans])}

    def f(self, node: int) -> float:
        return self.g(node) + self.h(node)

    def g(self, node: int) -> float:
        return self._match(node).cost + self.restore_price * self.tree.depth[node]

    def h(self, node: int) -> float:
        if node == 0:
            return 1.0
        h1, h2 = self._position(node), self._progress(node)
        planned = float((1.0 - h1) ** self.beta * (1.0 - h2) ** (1.0 - self.beta))
        return _mixed(planned, 1.0 - self._estimate(node), self.trust)

    def _estimate(self, node: int) -> float:
        """e, NaN without an evaluator."""
        return min(max(self.tree.score[node], 0.0), 1.0)

    def _match(self, node: int) -> _Match:
        if node not in self._known:
            tree, parent = self.tree, self.tree.parent[node]
            above, action = self._match(parent), self.tree.action[node]
            step = step_of(tree.task, tree.exchanges(parent), action) if action is not None else ""
            rows = [lcs_row(row, step, plan) for row, plan in zip(above.rows, self.plans, strict=True)]
            g1 = max((followed(row, tree.depth[node]) for row in rows), default=0.0)
            planned = (1.0 - g1) ** self.alpha * (1.0 - self._frequency(node)) ** (1.0 - self.alpha)
            cost = _mixed(planned, surprise(self._estimate(node)), self.step_trust)
            self._known[node] = _Match(step, above.cost + cost, rows)
        return self._known[node]

    def _frequency(self, node: int) -> float:
        """g2."""
        tree, parent = self.tree, self.tree.parent[node]
        return sum(tree.mult[i] for i in same_action(tree, node)) / max(tree.drawn[parent], 1)

    def _position(self, node: int) -> float:
        """h1, by equal steps if a plan has one, else by equal tools."""
        match = self._match(node)
        for least in (1.0, 0.5):
            places = [
                min(max(found), row[-1]) / len(plan)
                for plan, row in zip(self.plans, match.rows, strict=True)
                if (found := [i for i, other in enumerate(plan, 1) if alike(match.step, other) >= least])
            ]
            if places:
                return least * sum(places) / len(places)
        return 0.0

    def _progress(self, node: int) -> float:
        """h2: what the plan that matches best has beside the match is still to come."""
        rows, done = self._match(node).rows, self.tree.depth[node]
        if not rows:
            return 0.0
        best = max(rows, key=lambda row: (row[-1], -len(row)))
        left = len(best) - 1 - best[-1]
        return done / (done + left)


def surprise(estimate: float) -> float:
    """−log of an estimate that is taken to be at least LEAST, in nats; NaN for NaN."""
    return estimate if math.isnan(estimate) else -math.log(max(estimate, LEAST))


def followed(row: Sequence[float], length: int) -> float:
    """g1 of one plan: the best of its beginnings, each match a share of the longer of beginning and path. [0, 1].

    row  [len(plan) + 1] weights of the path's match with each beginning;  length  of the path, at least 1
    """
    return min(max(weight / max(length, i) for i, weight in enumerate(row)), 1.0)


def _mixed(planned: float, estimated: float, trust: float) -> float:
    """The memory's number and the evaluator's, by trust; the memory's alone where the other is NaN."""
    return planned if math.isnan(estimated) else (1.0 - trust) * planned + trust * estimated


def astar(
    draws: int = 2,
    root_draws: int = 4,
    memory: PlanMemory | str | Path | None = None,
    alpha: float = 0.5,
    beta: float = 0.5,
    nearest: int = 8,
    restore_price: float = 0.0,
    eager: bool | None = None,
    trust: float | None = None,
    step_trust: float | None = None,
    weight: float | Sequence[float] = 1.0,
    same_states: bool = False,
) -> Rule:
    """A* with the costs above.

    memory         plans, or the file they were saved to; None is an empty one
    alpha, beta    weights of plans against frequencies, and of positions against lengths, in [0, 1]
    nearest        how many plans of similar goals count, 0 for all
    restore_price  of one step of replay, in units of f; leave it 0 where snapshots are cheap
    trust          in the evaluator's estimate as what is left, in [0, 1]; None: by how much the most similar goal in
                   the memory is alike, from 1 where nothing is to 0.5 where it is the same
    step_trust     in it as the worth of a step; None: as trust
    weight         of h: above 1 the search goes for an end sooner, which costs at most that many times the least that h
                   allows; several that fall, as [3, 2, 1], are taken one after the other, each once the last is proved
    same_states    nodes with equal fingerprints are one state: only the cheapest way there is gone on from, and a state
                   that was expanded is opened again where a cheaper way comes

    With search.stop=proved the search ends once the cheapest end is within the last weight of the least open f.
    """
    if not (0 <= alpha <= 1 and 0 <= beta <= 1):
        raise TreewrightError(f"alpha = {alpha}, beta = {beta}; both lie in [0, 1]")
    if nearest < 0 or restore_price < 0:
        raise TreewrightError(f"nearest = {nearest}, restore_price = {restore_price}; both are at least 0")
    known = memory if isinstance(memory, PlanMemory) else PlanMemory.load(memory) if memory else PlanMemory()
    left = trust if trust is not None or len(known) else 1.0
    step = step_trust if step_trust is not None else left
    if any(one is not None and not 0 <= one <= 1 for one in (left, step)):
        raise TreewrightError(f"trust = {left}, step_trust = {step}; both lie in [0, 1]")
    weights = _weights(weight)

    def costs_of(tree: Tree) -> PathCosts:
        usual = 1.0 - known.likeness(tree.task) / 2 if left is None or step is None else math.nan
        rest, steps = (usual if one is None else one for one in (left, step))
        return PathCosts(tree, known, alpha, beta, nearest, rest, steps, restore_price)

    def frontier(tree: Tree) -> Frontier:
        costs = costs_of(tree)
        return ByCost(tree, costs.g, costs.h, weights, (lambda i: _state(tree, i)) if same_states else None)

    def priority(node: Node) -> float:
        costs = costs_of(node.tree)
        return -(costs.g(node.id) + weights[0] * costs.h(node.id))

    def choose(tree: Tree) -> int | None:
        """The end of the lowest f, then of the highest score."""
        costs = costs_of(tree)
        return min(ends(tree), key=lambda i: (round(costs.f(i), 9), -estimate(tree[i]), i), default=None)

    name = spell(
        "astar", draws=draws, root_draws=root_draws, memory=known.digest, alpha=alpha, beta=beta, nearest=nearest,
        restore_price=restore_price, eager=eager, trust=left, step_trust=step, weight=list(weights),
        same_states=same_states,
    )  # fmt: skip
    return Rule(
        name=name,
        priority=priority,
        draws=fan_out(root_draws, draws),
        eager=eager,
        frontier=frontier,
        prunes="equal states reached at a higher cost were dropped" if same_states else None,
        choose=choose,
        tells=lambda tree: told_bound(tree, costs_of(tree)),
    )


def _weights(given: float | Sequence[float]) -> tuple[float, ...]:
    found = tuple(float(w) for w in given) if isinstance(given, Sequence) else (float(given),)
    if not found or any(not math.isfinite(w) or w < 1 for w in found) or list(found) != sorted(found, reverse=True):
        raise TreewrightError(f"weight = {given}; write a number from 1 on, or several that fall, as [3, 2, 1]")
    return found


def _state(tree: Tree, node: int) -> str | None:
    """The fingerprint of the state that a node stands for, None before it is known."""
    seen = tree.observation[node]
    return seen.fingerprint or None if seen is not None and tree.error[node] is None else None


def bound_of(tree: Tree, costs: PathCosts) -> tuple[float, float]:
    """(f of the chosen end, least f of what is open) once the search is over; infinite where there is none."""
    chosen = tree.chosen
    best = costs.f(chosen) if chosen is not None and chosen in set(ends(tree)) else math.inf
    open_ = [i for i in range(len(tree)) if tree.status[i] in _OPEN and tree.effect[i] is not Effect.IRREVERSIBLE]
    return best, min((costs.f(i) for i in open_), default=math.inf)


def told_bound(tree: Tree, costs: PathCosts) -> str:
    """One line on how good the chosen end is, by the rule's own costs."""
    best, least = bound_of(tree, costs)
    if math.isinf(best):
        return "A*: no end was found, so there is no bound"
    if best <= least:
        return f"A*: the chosen end costs f = {best:.3g}; nothing open costs less, so it is proved by these estimates"
    within = f"{ratio(best, least):.3g} times" if math.isfinite(ratio(best, least)) else "any number of times"
    return f"A*: the chosen end costs f = {best:.3g}, at most {within} the least; {least:.3g} is still open"
