"""Rules for acting: the published orders of expansion, each as one function."""

from __future__ import annotations

from collections.abc import Sequence

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Effect
from treewright.search.frontier import ByDescent, ByLayer, Delayed
from treewright.search.rules.base import Rule, estimate, fan_out, pooled, same_action, spell
from treewright.search.rules.by_cost import ByCost
from treewright.search.rules.choose import choose_by_score
from treewright.search.tree import Node, Tree
from treewright.search.types import NodeStatus

__all__ = ["STOPS", "beam", "cascade", "depth_first_critic", "uct", "uniform_cost"]

STOPS = ("answer", "done", "stop")  # tools that end an episode in the built-in suites
DROPPED = "{} gave nodes up without a recorded keep probability"


def uniform_cost(draws: int = 2, root_draws: int = 4, irreversible: float = 1.0, eager: bool | None = None) -> Rule:
    """Cheapest path first: every action costs 1, an irreversible one `irreversible`. The baseline without a heuristic.

    Dijkstra (1959). With the default costs it is breadth first.
    """
    if irreversible < 0:
        raise TreewrightError(f"irreversible = {irreversible}; a cost is at least 0")

    def cost(tree: Tree, node: int) -> float:
        return sum(irreversible if tree.effect[i] is Effect.IRREVERSIBLE else 1.0 for i in tree.path(node)[1:])

    name = spell("uniform_cost", draws=draws, root_draws=root_draws, irreversible=irreversible, eager=eager)
    return Rule(
        name=name,
        priority=lambda node: -cost(node.tree, node.id),
        draws=fan_out(root_draws, draws),
        eager=eager,
        frontier=lambda tree: ByCost(tree, lambda i: cost(tree, i), lambda i: 0.0),
        choose=choose_by_score,
    )


def cascade(
    draws: int = 2,
    root_draws: int = 4,
    stops: Sequence[str] = STOPS,
    enough: int = 2,
    patience: int = 16,
    eager: bool | None = None,
) -> Rule:
    """WebOperator's best first as one priority (arXiv 2512.12692).

    1. Actions that are safe or can be undone come before invalid output, and that before irreversible ones: in a live
       world the effect is judged as soon as a draft is there.
    2. Within these, higher estimates first. Equal actions of siblings are one: their estimates are added up, the
       first of them stands for all, the others are given up.
    3. Drafts that would end the episode (`stops`) are put off until `enough` ends are known, waiting ones included,
       or `patience` expansions were made.

    The third matters to lazy rules: eager ones have executed every draft already.
    """
    known = frozenset(stops)

    def priority(node: Node) -> float | None:
        if same_action(node.tree, node.id)[0] != node.id:
            return None
        if node.tree.effect[node.id] is Effect.IRREVERSIBLE:
            return pooled(node) - 2.0
        return pooled(node) - (1.0 if node.error is not None else 0.0)

    def ends(node: Node) -> bool:
        return node.action is not None and node.status is NodeStatus.DRAFT and node.action.name in known

    def release(tree: Tree, aside: int) -> bool:
        return len(tree.pops) >= patience or aside + tree.status.count(NodeStatus.TERMINAL) >= enough

    name = spell(
        "cascade",
        draws=draws,
        root_draws=root_draws,
        stops=sorted(known),
        enough=enough,
        patience=patience,
        eager=eager,
    )
    return Rule(
        name=name,
        priority=priority,
        draws=fan_out(root_draws, draws),
        eager=eager,
        frontier=lambda tree: Delayed(tree, priority, ends, release),
        prunes="equal actions of siblings were merged",
        choose=choose_by_score,
        foresees=True,
    )


def beam(width: int = 4, draws: int = 2, root_draws: int = 4, prune: bool = True, eager: bool | None = None) -> Rule:
    """The `width` nodes of the highest estimate at every depth; ended episodes take no place.

    With `prune=False` the others stay open, to be closed for training; else they are pruned and the tree is inexact.
    """
    if width < 1:
        raise TreewrightError(f"width = {width}; a beam keeps at least 1 node")

    def keep(tree: Tree, candidates: Sequence[int]) -> list[int]:
        return sorted(candidates, key=lambda i: (-estimate(Node(tree, i)), i))[:width]

    name = spell("beam", width=width, draws=draws, root_draws=root_draws, prune=prune, eager=eager)
    return Rule(
        name=name,
        priority=estimate,
        draws=fan_out(root_draws, draws),
        eager=eager,
        frontier=lambda tree: ByLayer(tree, keep),
        prunes=DROPPED.format("beam") if prune else None,
        choose=choose_by_score,
    )


def uct(
    draws: int = 2,
    root_draws: int = 4,
    exploration: float = 0.7,
    virtual_loss: float = 1.0,
    eager: bool | None = None,
) -> Rule:
    """Upper confidence bounds on trees, with the evaluator's estimates as what a visit is worth (LATS, 2310.04406).

    child = argmax Q/n + exploration·√(ln N / n), where n and N also count `virtual_loss` for every pop under way
    below, at value 0. The virtual loss is part of the rule, so the tree depends on the width, never on the sessions.
    Without an evaluator every visit is worth 1.
    """
    if exploration < 0 or virtual_loss < 0:
        raise TreewrightError(f"exploration = {exploration}, virtual_loss = {virtual_loss}; both are at least 0")
    name = spell(
        "uct", draws=draws, root_draws=root_draws, exploration=exploration, virtual_loss=virtual_loss, eager=eager
    )
    return Rule(
        name=name, priority=estimate, draws=fan_out(root_draws, draws), eager=eager,
        frontier=lambda tree: ByDescent(tree, estimate, exploration, virtual_loss), choose=choose_by_score,
    )  # fmt: skip


def depth_first_critic(
    draws: int = 2, root_draws: int = 4, slack: float = 0.0, prune: bool = True, eager: bool | None = None
) -> Rule:
    """Depth first, the best sibling first; a child worse than its parent by more than `slack` is given up.

    CodeTree's order (arXiv 2411.04329): the critic's estimate decides to go on, to try a sibling, or to go back. With
    `prune=False` what it gives up is put last instead, and stays open.
    """

    def priority(node: Node) -> float | None:
        parent = node.parent
        worse = parent is not None and parent.depth > 0 and estimate(node) < estimate(parent) - slack
        if worse and prune:
            return None
        deepest_first = node.depth + 0.5 * min(max(estimate(node), 0.0), 1.0)
        return deepest_first - (node.tree.task.horizon + 1.0 if worse else 0.0)

    name = spell("depth_first_critic", draws=draws, root_draws=root_draws, slack=slack, prune=prune, eager=eager)
    reason = DROPPED.format("depth_first_critic") if prune else None
    return Rule(
        name=name,
        priority=priority,
        draws=fan_out(root_draws, draws),
        eager=eager,
        prunes=reason,
        choose=choose_by_score,
    )
