"""For what may be missing in general and is there in a test."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def not_none(value: T | None) -> T:
    """The value; fails the test if it is None."""
    assert value is not None, "expected a value and found None"
    return value
