"""How work grows with its input, by counts that are the same on every machine: no clock is read."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from typing import Any


def counted(work: Callable[[], object]) -> tuple[int, int]:
    """How many lines of Python and functions of C it runs, and how many bytes it holds at most, numpy's arrays too.

    Work over arrays that grows with the square shows in one of them: as a loop in a loop, or as pairs. What one
    function of numpy does by itself, without memory, is not seen.
    """
    steps = 0

    def line(_frame: Any, event: str, _arg: Any) -> Any:
        nonlocal steps
        steps += event == "line"
        return line

    def function(_frame: Any, event: str, _arg: Any) -> None:
        nonlocal steps
        steps += event == "c_call"

    before = sys.gettrace(), sys.getprofile()
    tracemalloc.start()
    sys.settrace(line)
    sys.setprofile(function)
    try:
        work()
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return steps, held
