"""What a programming task is: a goal, a reference solution, public tests and hidden calls."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

__all__ = ["Problem", "equal", "expected"]


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """One function to write.

    head    name and parameters, 'median(numbers)';  goal  what it must give, in words
    source  a reference solution
    public  call → value, as Python literals; shown to whoever solves it
    hidden  calls whose values the reference gives; they decide
    """

    head: str
    goal: str
    source: str
    public: Mapping[str, str]
    hidden: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.head.partition("(")[0]

    @property
    def text(self) -> str:
        """The goal as a policy reads it."""
        tests = "\n".join(f"{call} == {value}" for call, value in self.public.items())
        return f"write the Python function {self.head}: {self.goal}\n{tests}"


@lru_cache(maxsize=512)
def expected(problem: Problem) -> tuple[str, ...]:
    """The values of the hidden calls, by the reference (our own code, so it runs here)."""
    space: dict[str, Any] = {}
    exec(problem.source, space)
    return tuple(repr(eval(call, dict(space))) for call in problem.hidden)


def equal(found: str, wanted: str) -> bool:
    """Do two reprs name equal values of equal types? Floats may differ by 1e-9, relative or absolute."""
    if found == wanted:
        return True
    try:
        return _equal(ast.literal_eval(found), ast.literal_eval(wanted))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return False


def _equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return bool(a == b)
