"""Rules: what to expand next and how many draws it gets, as pure functions of a node and its tree.

A rule never sees truth rewards (the tree keeps them sealed) and K is fixed before the draws are made, which the
unbiased estimator needs. `eager` executes all drafts at expansion; lazy executes a draft when it is popped.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

from treewright.envs.errors import TreewrightError
from treewright.envs.types import seed_of
from treewright.search.tree import Node, Tree

__all__ = [
    "RULES",
    "Rule",
    "best_first",
    "breadth_first",
    "chains",
    "known_rules",
    "options_of",
    "random_on_policy",
    "rule",
]


@dataclass(frozen=True, slots=True)
class Rule:
    """name      with all options, so that a resume with others is noticed
    priority  higher is popped first; draws  K of a node, fixed before its first draw;
    eager  None lets the engine choose: eager where fork or state restore is declared, lazy with replay only.
    keep   probability with which a new open node is kept; the coin comes from its seed and is recorded. None: all are
    stop   why an open node shall not be gone on from, or None; makes the tree inexact
    again  once nothing is left to expand, an expanded node to draw from again, or None; makes the tree inexact
    """

    name: str
    priority: Callable[[Node], float]
    draws: Callable[[Node], int]
    eager: bool | None = None
    keep: Callable[[Node], float] | None = None
    stop: Callable[[Node], str | None] | None = None
    again: Callable[[Tree], int | None] | None = None


def _h(node: Node) -> float:
    return 1.0 if math.isnan(node.score) else node.score


def _fan(root: int, inner: int) -> Callable[[Node], int]:
    if root < 1 or inner < 1:
        raise TreewrightError(f"draws must be >= 1, got root_draws={root}, draws={inner}")
    return lambda node: root if node.depth == 0 else inner


def best_first(draws: int = 2, root_draws: int = 4, weighted: bool = True, eager: bool | None = None) -> Rule:
    """Best first by w·√h: share of the root's mass times the root of the evaluator's estimate.

    With `weighted=False` by h alone, for acting. √ because the gain of splitting a node grows with the standard
    deviation of what lies below it, not with its mean.
    """
    name = f"best_first(draws={draws}, root_draws={root_draws}, weighted={weighted}, eager={eager})"
    if weighted:
        return Rule(name, lambda n: n.mass * math.sqrt(_h(n)), _fan(root_draws, draws), eager)
    return Rule(name, _h, _fan(root_draws, draws), eager)


def random_on_policy(draws: int = 2, root_draws: int = 4, eager: bool | None = None) -> Rule:
    """Expands open nodes in an order that depends on nothing but the node's draw seed."""
    return Rule(
        f"random_on_policy(draws={draws}, root_draws={root_draws}, eager={eager})",
        lambda n: seed_of(n.tree.seed[n.id], "order") / 2.0**63,
        _fan(root_draws, draws),
        eager,
    )


def breadth_first(draws: int = 2, root_draws: int = 4, eager: bool | None = None) -> Rule:
    """Shallow nodes first: uniform-cost search with unit costs."""
    name = f"breadth_first(draws={draws}, root_draws={root_draws}, eager={eager})"
    return Rule(name, lambda n: -float(n.depth), _fan(root_draws, draws), eager)


def chains(draws: int = 8, eager: bool | None = None) -> Rule:
    """Independent rollouts: K draws at the root, one everywhere below."""
    return Rule(f"chains(draws={draws}, eager={eager})", lambda n: -float(n.depth), _fan(draws, 1), eager)


RULES: dict[str, Callable[..., Rule]] = {
    "best_first": best_first,
    "random_on_policy": random_on_policy,
    "breadth_first": breadth_first,
    "chains": chains,
}


def known_rules() -> dict[str, Callable[..., Rule]]:
    """Every rule by name, the growth schedules of `treewright.search.growth` included."""
    from treewright.search.growth import GROWTH

    return {**GROWTH, **RULES}


def options_of(name: str) -> tuple[str, ...]:
    """The names of a rule's options. Raises TreewrightError with the nearest known rule."""
    found = known_rules()
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        raise TreewrightError(f"no rule named {name!r}; {f'did you mean {near[0]!r}?' if near else ', '.join(found)}")
    return tuple(inspect.signature(found[name]).parameters)


def rule(name: str, **options: object) -> Rule:
    """The rule of that name. Raises TreewrightError with the nearest known name, of the rule or of an option."""
    known = options_of(name)
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise TreewrightError(f"rule {name!r} has no option {option!r}; {hint}")
    return known_rules()[name](**options)
