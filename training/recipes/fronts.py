"""Fronts of stored paths: how much of one is given, in turns or in tokens. No torch here."""

from __future__ import annotations

import math

from treewright.envs.errors import TreewrightError
from treewright.search.rooted import Start, start_at
from treewright.search.segments import parts_of
from treewright.search.tree import Tree
from treewright.search.types import Origin

__all__ = ["UNITS", "front", "front_at", "next_share", "share_at", "units_of"]

UNITS = ("turn", "token")


def share_at(update: int, updates: int, first: float, last: float) -> float:
    """The share kept at `update` of `updates`, from first to last along a half cosine (Prefix-RFT: .95 to .05)."""
    done = update / max(updates - 1, 1)
    return last + (first - last) * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0))) / 2


def next_share(share: float, success: float, *, target: float = 0.5, step: float = 0.1) -> float:
    """The share of the next update of a curriculum from long fronts to short ones: shorter by `step` where this one's
    continuations succeeded at least as often as `target`, longer where not; within [0, 1).

    The difficulty knob of PrefixRL is the length of the front; that measured success turns it is ours.
    """
    return min(0.95, max(0.0, share - step if success >= target else share + step))


def _kept(units: int, share: float) -> int:
    """Whole units, rounded; never all of them."""
    return min(max(units - 1, 0), round(share * units))


def front(
    tree: Tree, leaf: int, share: float, *, unit: str = "turn", least: int = 0, origin: Origin = Origin.STORED
) -> Start | None:
    """The front of a path that keeps `share` of its turns, or of its response tokens; None where there is none.

    least  units that it has at least. Raises TreewrightError for an unknown unit.
    """
    units = units_of(tree, leaf, unit)
    kept = max(least, _kept(units, share))
    return front_at(tree, leaf, kept, unit=unit, origin=origin) if kept < units else None


def units_of(tree: Tree, leaf: int, unit: str = "turn") -> int:
    """How many turns, or response tokens, a path has. Raises TreewrightError for an unknown unit."""
    if unit not in UNITS:
        raise TreewrightError(f"unit = {unit!r}; it is {' or '.join(UNITS)}")
    ends, sizes = _turns(tree, leaf)
    return len(ends) if unit == "turn" else sum(sizes)


def front_at(tree: Tree, leaf: int, kept: int, *, unit: str = "turn", origin: Origin = Origin.STORED) -> Start:
    """The front of a path that keeps its first `kept` units, 0 … all but one. Raises TreewrightError for more."""
    ends, sizes = _turns(tree, leaf)
    if not 0 <= kept < units_of(tree, leaf, unit):
        raise TreewrightError(f"a path of {units_of(tree, leaf, unit)} {unit}s has no front of {kept}")
    if unit == "turn":
        return start_at(tree, ends[kept - 1] if kept else 0, origin)
    before = 0
    for end, size in zip(ends, sizes, strict=True):
        if kept < size:
            return start_at(tree, end, origin, tokens=kept) if kept else start_at(tree, before, origin)
        before, kept = end, kept - size
    raise AssertionError("a front is shorter than its path")


def _turns(tree: Tree, leaf: int) -> tuple[list[int], list[int]]:
    """The last node of each turn of a path, and its tokens."""
    ends = [i for i in tree.path(leaf)[1:] if not tree.in_turn(i)]
    return ends, [sum(len(tree.ids[i]) for i in parts_of(tree, end)) for end in ends]
