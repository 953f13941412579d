"""A rule that a user wrote and named: what it raises, or gives wrongly, is one sentence with its file and line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from treewright.envs.doors import blamed
from treewright.envs.errors import TreewrightError
from treewright.search.rules.base import Rule

__all__ = ["guarded"]


def guarded(rule: Rule, name: str) -> Rule:
    """The same rule, whose functions raise nothing but TreewrightError. Results are as before."""

    def part(field: str, what: str, fits: Callable[[Any], bool]) -> Any:
        own = getattr(rule, field)
        if own is None:
            return None

        def asked(given: Any) -> Any:
            with blamed(f"rule {name!r}: {field}"):
                answer = own(given)
            if not fits(answer):
                raise TreewrightError(f"rule {name!r}: {field} gave {answer!r}; it must give {what}")
            return answer

        return asked

    return replace(
        rule,
        priority=part("priority", "a number, or None to give the node up", _may_be(_number)),
        draws=part("draws", "a whole number of at least 1", lambda value: _whole(value) and value >= 1),
        choose=part("choose", "the id of a node, or None", _may_be(_whole)),
        keep_prob=part("keep_prob", "a probability", lambda value: _number(value) and 0 <= value <= 1),
        stop=part("stop", "a reason as text, or None", _may_be(lambda value: isinstance(value, str))),
        again=part("again", "the id of a node, or None", _may_be(_whole)),
    )


def _number(value: Any) -> bool:
    try:
        return not isinstance(value, str) and float(value) == value
    except (TypeError, ValueError):
        return False


def _whole(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _may_be(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)
