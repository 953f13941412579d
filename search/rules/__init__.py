"""Rules: what to expand next and how many draws it gets, as pure functions of a node and its tree.

A rule never sees truth rewards (the tree keeps them sealed) and K is fixed before the draws are made, which the
unbiased estimator needs. `eager` executes all drafts at expansion; lazy executes a draft when it is popped.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable

from treewright.envs.errors import TreewrightError
from treewright.search.rules.acting import beam, cascade, depth_first_critic, uct, uniform_cost
from treewright.search.rules.astar import astar
from treewright.search.rules.base import Rule, frontier_of
from treewright.search.rules.ets import ets
from treewright.search.rules.growth import (
    best_first,
    breadth_first,
    chains,
    random_on_policy,
)

__all__ = [
    "RULES",
    "Rule",
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
    "options_of",
    "random_on_policy",
    "rule",
    "uct",
    "uniform_cost",
]

RULES: dict[str, Callable[..., Rule]] = {
    "best_first": best_first,
    "cascade": cascade,
    "astar": astar,
    "beam": beam,
    "uct": uct,
    "ets": ets,
    "depth_first_critic": depth_first_critic,
    "uniform_cost": uniform_cost,
    "random_on_policy": random_on_policy,
    "breadth_first": breadth_first,
    "chains": chains,
}


def known_rules() -> dict[str, Callable[..., Rule]]:
    """Every rule by name, the growth schedules of `treewright.search.rules.training` included."""
    from treewright.search.rules.training import GROWTH

    return {**RULES, **GROWTH}


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
