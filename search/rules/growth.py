"""Rules that grow trees for training: the order and the widths keep the unbiased estimator's promises.

All of them leave what they do not expand open, to be closed by one rollout each; see `treewright.search.schedules`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from treewright.envs.errors import TreewrightError
from treewright.envs.types import seed_of
from treewright.search.rules.base import Rule, estimate, fan_out, spell
from treewright.search.schedules import late_branch as late_widths
from treewright.search.tree import Node

__all__ = ["best_first", "breadth_first", "chains", "fan", "late_branch", "random_on_policy", "split"]


def best_first(draws: int = 2, root_draws: int = 4, weighted: bool = True, eager: bool | None = None) -> Rule:
    """Best first by w·√h: share of the root's mass times the root of the evaluator's estimate. The default.

    With `weighted=False` by h alone, for acting. √ because the gain of splitting a node grows with the standard
    deviation of what lies below it, not with its mean. The order WebOperator uses to act is the rule `cascade`.
    """
    name = spell("best_first", draws=draws, root_draws=root_draws, weighted=weighted, eager=eager)
    if weighted:
        return Rule(name, lambda n: n.mass * math.sqrt(estimate(n)), fan_out(root_draws, draws), eager)
    return Rule(name, estimate, fan_out(root_draws, draws), eager)


def random_on_policy(draws: int = 2, root_draws: int = 4, eager: bool | None = None) -> Rule:
    """Expands open nodes in an order that depends on nothing but the node's draw seed."""
    return Rule(
        spell("random_on_policy", draws=draws, root_draws=root_draws, eager=eager),
        lambda n: seed_of(n.tree.seed[n.id], "order") / 2.0**63,
        fan_out(root_draws, draws),
        eager,
    )


def breadth_first(draws: int = 2, root_draws: int = 4, eager: bool | None = None) -> Rule:
    """Shallow nodes first."""
    name = spell("breadth_first", draws=draws, root_draws=root_draws, eager=eager)
    return Rule(name, lambda n: -float(n.depth), fan_out(root_draws, draws), eager)


def chains(draws: int = 8, eager: bool | None = None) -> Rule:
    """Independent rollouts: K draws at the root, one everywhere below."""
    return Rule(spell("chains", draws=draws, eager=eager), lambda n: -float(n.depth), fan_out(draws, 1), eager)


def fan(widths: Sequence[int] = (4, 1, 2), eager: bool | None = None) -> Rule:
    """K by depth: `widths[d]` draws at depth d, the last width below that; shallow nodes first."""
    widths = tuple(widths)
    if not widths or min(widths) < 1:
        raise TreewrightError(f"widths must be at least 1 at every depth, they are {list(widths)}")
    name = spell("fan", widths=list(widths), eager=eager)
    return Rule(name, lambda n: -float(n.depth), lambda n: widths[min(n.depth, len(widths) - 1)], eager)


def late_branch(first: int = 4, last: int = 2, eager: bool | None = None) -> Rule:
    """Several draws at the root, one on the way, several at the last step that the task's horizon allows."""
    fan_out(first, last)

    def draws(node: Node) -> int:
        widths = late_widths(max(node.tree.task.horizon, 1), first=first, last=last)
        return widths[min(node.depth, len(widths) - 1)]

    name = spell("late_branch", first=first, last=last, eager=eager)
    return Rule(name, lambda n: -float(n.depth), draws, eager)


def split(k: int = 4, threshold: float = 0.5, root_draws: int = 4, eager: bool | None = None) -> Rule:
    """K draws at nodes that the evaluator gives at least `threshold`, one at the others; shallow nodes first."""
    fan_out(root_draws, k)

    def draws(node: Node) -> int:
        if node.depth == 0:
            return root_draws
        return k if estimate(node) >= threshold else 1

    name = spell("split", k=k, threshold=threshold, root_draws=root_draws, eager=eager)
    return Rule(name, lambda n: -float(n.depth), draws, eager)
