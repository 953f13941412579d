"""Rules that grow trees for training: the order and the widths keep the unbiased estimator's promises.

All of them leave what they do not expand open, to be closed by one rollout each; more of them, with widths that change
from node to node, stand in `treewright.search.growth`.
"""

from __future__ import annotations

import math

from treewright.envs.types import seed_of
from treewright.search.rules.base import Rule, estimate, fan_out, spell

__all__ = ["best_first", "breadth_first", "chains", "random_on_policy"]


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
