"""The counts by which tests tell work that grows with the square of its input."""

from __future__ import annotations

import numpy as np
from growth import counted


def loop_in_loop(count: int) -> None:
    rows = range(count)
    for a in rows:
        for b in rows:
            a ^= b


def pairs(count: int) -> None:
    rows = np.arange(count)
    np.equal(rows[:, None], rows)


def passes(count: int) -> None:
    for each in [0] * count:
        each += 1
    np.arange(count)[::-1].cumsum()


def test_squares_are_seen_and_passes_are_not() -> None:
    few, many = counted(lambda: loop_in_loop(30)), counted(lambda: loop_in_loop(300))
    assert many[0] > 50 * few[0]
    few, many = counted(lambda: pairs(1000)), counted(lambda: pairs(10_000))
    assert many[1] > 50 * few[1]
    few, many = counted(lambda: passes(1000)), counted(lambda: passes(10_000))
    assert many[0] < 12 * few[0] and many[1] < 12 * few[1]
