"""Memory that nobody uses any more and that the C library keeps all the same."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

__all__ = ["give_back"]


@cache
def _trim() -> Any:
    """glibc's malloc_trim(3); None where the C library has none."""
    try:
        found = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    found.argtypes = [ctypes.c_size_t]
    return found


def give_back() -> None:
    """Hands free pages of the heap back to the system (glibc; elsewhere nothing happens). Takes milliseconds.

    An update frees tensors of many sizes between nodes of trees that stay a while: the heap is then full of holes, and
    without this it grows by half a megabyte an update for as long as a loop runs. So does a round of draws: what a
    sampler's keys and values took stays in the heaps of its threads, two of eight gigabytes with a model of 135 million
    parameters, and the trainer would come on top of it.
    """
    if (trim := _trim()) is not None:
        trim(0)
