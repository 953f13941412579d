"""How work grows with its input, by counts that are the same on every machine: no clock is read."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from typing import Any


def counted(work: Callable[[], object]) -> tuple[int, int]:
    """How many functions it calls, Python's and C's, and how many bytes it holds at most, numpy's arrays among them.

    Work over arrays that grows with the square shows in one of them: as a loop over rows of rows, or as pairs.
    """
    calls = 0

    def seen(_frame: Any, event: str, _arg: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before, tracing = sys.getprofile(), tracemalloc.is_tracing()
    tracemalloc.start()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(before)
        peak = tracemalloc.get_traced_memory()[1] - held
        if not tracing:
            tracemalloc.stop()
    return calls, peak
