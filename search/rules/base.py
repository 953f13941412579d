"""What a rule is, and the parts that rules share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass

from treewright.envs.errors import TreewrightError
from treewright.search.frontier import ByPriority, Frontier
from treewright.search.rules.choose import choose_by_mass
from treewright.search.tree import Node, Tree

__all__ = ["Rule", "estimate", "fan_out", "frontier_of", "pooled", "same_action", "spell"]


@dataclass(frozen=True, slots=True)
class Rule:
    """name      with all options, so that a resume with others is noticed
    priority  higher is popped first, None gives the node up; a pure function of a node and its tree
    draws     K of a node, fixed before its first draw
    eager     None lets the engine choose: eager where fork or state restore is declared, lazy with replay only
    frontier  makes another order than that of static priorities: layers, walks down the tree
    prunes    why a tree is inexact once the rule has given nodes up; None for rules that give up nothing
    keep_prob  probability with which a new open node is kept, by a coin of its seed that is recorded; None: all are
    stop      why an open node shall not be gone on from, or None; makes the tree inexact
    again     once nothing waits, an expanded node to draw from again, or None; makes the tree inexact
    foresees  drafts of a live world are asked for their effects when they are drawn, not only when they are popped
    choose    the leaf to go for once the search is over; it sees no reward either
    tells     one line on what the search proved or tried, of a finished tree; `treewright run` prints it
    """

    name: str
    priority: Callable[[Node], float | None]
    draws: Callable[[Node], int]
    _: KW_ONLY
    eager: bool | None = None
    frontier: Callable[[Tree], Frontier] | None = None
    prunes: str | None = None
    choose: Callable[[Tree], int | None] = choose_by_mass
    keep_prob: Callable[[Node], float] | None = None
    stop: Callable[[Node], str | None] | None = None
    again: Callable[[Tree], int | None] | None = None
    foresees: bool = False
    tells: Callable[[Tree], str] | None = None


def frontier_of(rule: Rule, tree: Tree) -> Frontier:
    """The rule's frontier for one tree."""
    return rule.frontier(tree) if rule.frontier is not None else ByPriority(tree, rule.priority)


def estimate(node: Node) -> float:
    """h: the evaluator's estimate of success, 1 without one."""
    score = node.tree.score[node.id]
    return 1.0 if math.isnan(score) else score


def fan_out(root: int, inner: int) -> Callable[[Node], int]:
    """K: `root` at the root, `inner` below. Raises TreewrightError for numbers below 1."""
    if root < 1 or inner < 1:
        raise TreewrightError(f"draws must be >= 1, got root_draws={root}, draws={inner}")
    return lambda node: root if node.depth == 0 else inner


def same_action(tree: Tree, node: int) -> Sequence[int]:
    """The siblings that do what `node` does, itself included, in order of creation; invalid output is like nothing."""
    parent, action = tree.parent[node], tree.action[node]
    if parent < 0 or action is None:
        return [node]
    return [i for i in tree.children[parent] if i == node or tree.action[i] == action]


def pooled(node: Node) -> float:
    """Estimates of equal actions added up, each as often as it was drawn, over all draws of the parent; in [0, 1]."""
    tree, parent = node.tree, node.tree.parent[node.id]
    if parent < 0:
        return estimate(node)
    drawn = max(tree.drawn[parent], 1)
    return sum(tree.mult[i] * estimate(Node(tree, i)) for i in same_action(tree, node.id)) / drawn


def spell(name: str, **options: object) -> str:
    """The name of a rule with its options: `name(option=value, …)`."""
    return f"{name}({', '.join(f'{key}={value}' for key, value in options.items())})"
