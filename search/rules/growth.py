"""Rules that grow trees for training: the order and the widths keep the unbiased estimator's promises.

All of them leave what they do not expand open, to be closed by one rollout each; more of them, with widths that change
from node to node, stand in `treewright.search.rules.training`.
"""

from __future__ import annotations

import math

from treewright.envs.errors import TreewrightError
from treewright.envs.types import seed_of
from treewright.search.rules.base import Rule, estimate, fan_out, spell
from treewright.search.rules.choose import choose_by_mass, choose_by_score
from treewright.search.tree import Node

__all__ = ["best_first", "breadth_first", "chains", "random_on_policy", "score_first"]

PICKS = {"mass": choose_by_mass, "score": choose_by_score}


def best_first(
    draws: int = 2, root_draws: int = 4, weighted: bool = True, eager: bool | None = None, pick: str = "mass"
) -> Rule:
    """Best first by w·√h: share of the root's mass times the root of the evaluator's estimate. The default.

    weighted  False goes by h alone, for acting
    pick      what is chosen at the end: "mass" pools equal answers by mass times score, which is a vote of the policy;
              "score" takes the end of the highest score, for evaluators that know more than the policy does

    √ because the gain of splitting a node grows with the standard deviation of what lies below it, not with its mean.
    The order WebOperator uses to act is the rule `cascade`.
    """
    if pick not in PICKS:
        raise TreewrightError(f"pick = {pick!r}; it is {' or '.join(map(repr, PICKS))}")

    def weight(node: Node) -> float:
        return node.mass * math.sqrt(estimate(node))

    name = spell("best_first", draws=draws, root_draws=root_draws, weighted=weighted, eager=eager, pick=pick)
    order = weight if weighted else estimate
    return Rule(name=name, priority=order, draws=fan_out(root_draws, draws), eager=eager, choose=PICKS[pick])


def score_first(draws: int = 2, root_draws: int = 4, eager: bool | None = None, pick: str = "mass") -> Rule:
    """Best first by the evaluator's estimate alone: what `run` and `eval` act by unless another rule is named."""
    if pick not in PICKS:
        raise TreewrightError(f"pick = {pick!r}; it is {' or '.join(map(repr, PICKS))}")
    name = spell("score_first", draws=draws, root_draws=root_draws, eager=eager, pick=pick)
    return Rule(name=name, priority=estimate, draws=fan_out(root_draws, draws), eager=eager, choose=PICKS[pick])


def random_on_policy(draws: int = 2, root_draws: int = 4, eager: bool | None = None) -> Rule:
    """Expands open nodes in an order that depends on nothing but the node's draw seed."""
    return Rule(
        name=spell("random_on_policy", draws=draws, root_draws=root_draws, eager=eager),
        priority=lambda n: seed_of(n.tree.seed[n.id], "order") / 2.0**63,
        draws=fan_out(root_draws, draws),
        eager=eager,
    )


def breadth_first(draws: int = 2, root_draws: int = 4, eager: bool | None = None) -> Rule:
    """Shallow nodes first."""
    name = spell("breadth_first", draws=draws, root_draws=root_draws, eager=eager)
    return Rule(name=name, priority=lambda n: -float(n.depth), draws=fan_out(root_draws, draws), eager=eager)


def chains(draws: int = 8, eager: bool | None = None) -> Rule:
    """Independent rollouts: K draws at the root, one everywhere below."""
    return Rule(
        name=spell("chains", draws=draws, eager=eager),
        priority=lambda n: -float(n.depth),
        draws=fan_out(draws, 1),
        eager=eager,
    )
