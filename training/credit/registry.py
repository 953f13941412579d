"""Estimators by name: `estimate("split_loo", arrays, tau=3.0)`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treewright.envs.doors import Door, blamed, nearest, options_of
from treewright.envs.errors import TreewrightError
from treewright.training.credit.arrays import Credit, InexactTree, TreeArrays
from treewright.training.credit.trees import arrays_of

__all__ = [
    "DOOR",
    "ESTIMATORS",
    "Estimator",
    "UnknownEstimator",
    "estimate",
    "estimator",
    "options_taken",
    "require_options",
    "weighs",
]

Estimator = Callable[..., Credit]
"""A pure function from TreeArrays and keyword options to Credit."""

ESTIMATORS: dict[str, Estimator] = {}


class UnknownEstimator(TreewrightError, LookupError):
    """No estimator, or no option of one, has this name; the message offers the nearest."""


def estimator(name: str) -> Callable[[Estimator], Estimator]:
    """Registers a function as an estimator. Raises ValueError when the name is taken."""

    def register(function: Estimator) -> Estimator:
        if name in ESTIMATORS:
            raise ValueError(f"an estimator called {name!r} is already registered; choose another name")
        ESTIMATORS[name] = function
        return function

    return register


DOOR = Door(kind="estimator", group="treewright.estimators", built_in=lambda: ESTIMATORS, error=UnknownEstimator)
"""Estimators by name: a built-in or registered one, `module:function(arrays, *, options) -> Credit`, an entry point."""


def estimate(name: str, arrays: TreeArrays | Mapping[str, NDArray[Any]], **options: Any) -> Credit:
    """The credit of every node by the named estimator. Raises UnknownEstimator with the nearest known name.

    arrays  TreeArrays, or what `store.arrays(tree_ids)` returns
    """
    require_options(name, options)
    whole = arrays if isinstance(arrays, TreeArrays) else arrays_of(arrays)
    if not weighs(name) and not options.get("allow_biased") and bool((whole.importance != 1).any()):
        raise InexactTree(
            f"{name}: {int((whole.importance != 1).sum())} nodes were drawn at other temperatures, and this estimator "
            "takes draws of the policy itself; use split_loo, or grow trees without search.temperature_by_depth"
        )
    if name in ESTIMATORS:
        return ESTIMATORS[name](whole, **options)
    with blamed(f"estimator {name!r}"):
        credit = DOOR.find(name)(whole, **options)
    if not isinstance(credit, Credit):
        raise UnknownEstimator(f"estimator {name!r} gave a {type(credit).__name__}, not a treewright Credit")
    for one in fields(Credit):
        shape = np.shape(getattr(credit, one.name))
        if shape[:1] != (len(whole),):
            raise TreewrightError(
                f"estimator {name!r} gave {one.name} of shape {list(shape)}; it must have one entry for each of the "
                f"{len(whole)} nodes"
            )
    return credit


def weighs(name: str) -> bool:
    """Whether an estimator takes draws that were not the policy's, by their `importance`: split_loo, and functions of
    one's own with an attribute `weighs = True`."""
    return bool(getattr(DOOR.find(name), "weighs", False))


def require_options(name: str, options: Iterable[str]) -> None:
    """Raises UnknownEstimator for an unknown estimator, or an option that it does not take, with the nearest known."""
    known = _options(DOOR.find(name))
    for option in options:
        if known is not None and option not in known:
            raise UnknownEstimator(f"estimator {name!r} has no option {option!r}; {nearest(option, known)}")


def options_taken(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `given` that the estimator takes. Raises UnknownEstimator for an unknown estimator."""
    known = _options(DOOR.find(name))
    return {key: value for key, value in given.items() if known is None or key in known}


def _options(function: Estimator) -> tuple[str, ...] | None:
    """The names of its options; None where it takes any."""
    known = options_of(function)
    return known[1:] if known is not None else None
