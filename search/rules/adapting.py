"""Which schedule a tree is grown by, where several take turns: chosen by the tree's seed, before its first draw.

The chances are told from outside, as entries "SUITE by ARM" among the rates that a rule is given; they may depend on
earlier trees alone. Every arm fixes K before the draws of a node, and the choice depends on nothing that a tree draws,
so trees stay exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from treewright.envs.types import seed_of
from treewright.search.rules import schedules
from treewright.search.rules.base import estimate
from treewright.search.tree import Node, Tree

__all__ = ["ARMS", "Adapting", "arm_of", "chance_of"]

ARMS = ("chains", "late_branch", "split", "best_first")


def chance_of(suite: str, arm: str) -> str:
    """The name, among rates, of the chance that a tree of `suite` is grown by `arm`."""
    return f"{suite} by {arm}"


def arm_of(tree: Tree, rates: Mapping[str, float]) -> str:
    """The arm of a tree: one of ARMS with the chances in `rates`, all alike where they say nothing of its suite."""
    chances = [max(0.0, rates.get(chance_of(tree.task.suite, arm), 0.0)) for arm in ARMS]
    if not any(chances):
        chances = [1.0] * len(ARMS)
    u = seed_of(tree.header.seed, "arm") / 2.0**63 * math.fsum(chances)
    for arm, chance in zip(ARMS, chances, strict=True):
        u -= chance
        if u < 0:
            return arm
    return max(zip(chances, ARMS, strict=True))[1]


class Adapting:
    """Priority and draws of a node by the arm of its tree.

    draws, root_draws  of a branching node, and of the root;  threshold  of split
    steps   of late_branch: how many turns an episode usually takes; None: the task's horizon
    expand  pops of best_first that branch; later ones are single draws
    """

    def __init__(
        self, rates: Mapping[str, float], draws: int, root_draws: int, threshold: float, steps: int | None, expand: int
    ) -> None:
        self.rates, self.draws, self.root_draws = rates, draws, root_draws
        self.threshold, self.steps, self.expand = threshold, steps, expand

    def priority(self, node: Node) -> float:
        """By w·√h for best_first, shallow nodes first for the others."""
        if arm_of(node.tree, self.rates) == "best_first":
            return node.mass * math.sqrt(estimate(node))
        return -float(node.depth)

    def width(self, node: Node) -> int:
        """K of a node."""
        if node.depth == 0:
            return self.root_draws
        arm = arm_of(node.tree, self.rates)
        if arm == "late_branch":
            widths = schedules.late_branch(self.steps or max(node.tree.task.horizon, 1), first=1, last=self.draws)
            return widths[min(node.depth, len(widths) - 1)]
        if arm == "split":
            return int(schedules.split(estimate(node), self.draws, threshold=self.threshold))
        return self.draws if arm == "best_first" and len(node.tree.pops) < self.expand else 1
