"""Rules: what to expand next and how many draws it gets, as pure functions of a node and its tree.

A rule never sees truth rewards (the tree keeps them sealed) and K is fixed before the draws are made, which the
unbiased estimator needs. `eager` executes all drafts at expansion; lazy executes a draft when it is popped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from treewright.envs.doors import Door, call
from treewright.envs.errors import TreewrightError
from treewright.search.rules.ab_mcts import ab_mcts
from treewright.search.rules.acting import beam, cascade, depth_first_critic, uct, uniform_cost
from treewright.search.rules.astar import astar
from treewright.search.rules.base import Rule, frontier_of
from treewright.search.rules.ets import ets
from treewright.search.rules.growth import (
    best_first,
    breadth_first,
    chains,
    random_on_policy,
    score_first,
)
from treewright.search.rules.guarded import guarded

__all__ = [
    "DOOR",
    "RULES",
    "Rule",
    "ab_mcts",
    "astar",
    "beam",
    "best_first",
    "breadth_first",
    "cascade",
    "chains",
    "depth_first_critic",
    "ets",
    "frontier_of",
    "known_rules",
    "random_on_policy",
    "rule",
    "rule_with",
    "score_first",
    "uct",
    "uniform_cost",
]

RULES: dict[str, Callable[..., Rule]] = {
    "best_first": best_first,
    "score_first": score_first,
    "cascade": cascade,
    "astar": astar,
    "beam": beam,
    "uct": uct,
    "ab_mcts": ab_mcts,
    "ets": ets,
    "depth_first_critic": depth_first_critic,
    "uniform_cost": uniform_cost,
    "random_on_policy": random_on_policy,
    "breadth_first": breadth_first,
    "chains": chains,
}


def known_rules() -> dict[str, Callable[..., Rule]]:
    """Every built-in rule by name, the growth schedules of `treewright.search.rules.training` included."""
    from treewright.search.rules.segmented import WITHIN
    from treewright.search.rules.training import GROWTH

    return {**RULES, **GROWTH, **WITHIN}


DOOR = Door(kind="rule", group="treewright.rules", built_in=known_rules)
"""Rules by name: a built-in one, `module:function` that returns a `Rule`, or an entry point."""


def rule(name: str, **options: object) -> Rule:
    """The rule of that name. Raises TreewrightError with the nearest known name, of the rule or of an option."""
    return rule_with(name, options)


def rule_with(name: str, options: Mapping[str, object], **given: Any) -> Rule:
    """The rule of that name with `options`, and with those of `given` that it takes. Raises as `rule` does."""
    found = DOOR.find(name)
    if not isinstance(found, Rule):
        found = call(found, options, f"rule {name!r}", **given)
    elif options:
        raise TreewrightError(f"rule {name!r} is a finished Rule and takes no options; name a function that makes one")
    if not isinstance(found, Rule):
        raise TreewrightError(f"rule {name!r} gave a {type(found).__name__}, not a treewright.search.Rule")
    return found if name in known_rules() else guarded(found, name)
