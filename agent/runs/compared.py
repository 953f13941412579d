"""Learning curves of runs over any axis of the meter, and how the areas below them compare.

The success of a round is that of the weights which drew its trees, so it stands at what the rounds before it cost. Runs
called NAME-1, NAME-2, … (or NAME_1, NAME-s1) are seeds of one arm; arms are paired by seed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from treewright.envs.doors import nearest
from treewright.envs.errors import TreewrightError
from treewright.search.meter import AXES
from treewright.training.track import FILE, read_metrics

__all__ = ["Arm", "Curve", "arms_of", "curve_of", "figures_of"]

SAMPLES = 10_000
SEEDED = re.compile(r"(.+?)[-_](?:s|seed)?(\d+)")


@dataclass(frozen=True, slots=True)
class Curve:
    """success[i] in [0, 1], the mean over suites, after spent[i] of the axis; spent[0] is 0."""

    run: str
    arm: str
    seed: str
    spent: tuple[float, ...]
    success: tuple[float, ...]

    def area(self, end: float) -> float:
        """Mean success over 0 … end, straight between points. `end` is at most the last point."""
        grid = np.unique([*(x for x in self.spent if x < end), end])
        values = np.interp(grid, self.spent, self.success)
        return float(np.trapezoid(values, grid) / end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One arm against the first one.

    runs    its curves;  area  mean of their areas;  final  mean of their last success
    ratio   of areas, over the paired seeds where there are two at least, else of the means
    low, high  the paired bootstrap's 95 % interval over seeds; None with fewer than two pairs
    pairs   seeds that both arms have
    """

    name: str
    runs: tuple[Curve, ...]
    area: float
    final: float
    ratio: float | None
    low: float | None
    high: float | None
    pairs: int


def curve_of(name: str, axis: str) -> Curve:
    """The curve of a run: a name, or the folder where its metrics.jsonl is.

    Raises TreewrightError for an unknown axis, a run without metrics, and where the axis was not measured.
    """
    if axis not in AXES:
        raise TreewrightError(f"no axis is called {axis!r}; {nearest(axis, AXES)}")
    places = [Path(name) / FILE, Path("runs") / name / FILE]
    rows = next((rows for place in places if (rows := read_metrics(place))), None)
    if rows is None:
        raise TreewrightError(f"{name!r} has no {FILE}: neither {places[0]} nor {places[1]}; type: treewright loop")
    total, spent, success = 0.0, [], []
    for row in rows:
        if shown := [v for v in row.get("success", {}).values() if v is not None]:
            spent.append(total)
            success.append(float(np.mean(shown)))
        total += _cost(row, axis, name)
    if len(spent) < 2 or spent[-1] <= 0:
        raise TreewrightError(
            f"{name!r} has {len(spent)} measured updates and {total:g} {axis}; a curve needs two updates that cost some"
        )
    whole = Path(name).name
    seeded = SEEDED.fullmatch(whole)
    arm, seed = (seeded[1], seeded[2]) if seeded else (whole, "")
    return Curve(name, arm, seed, tuple(spent), tuple(success))


def _cost(row: Mapping[str, Any], axis: str, name: str) -> float:
    found = row.get("seconds") if axis == "seconds" else row.get("meter", {}).get(axis)
    if found is None:
        known = sorted(k for k, v in row.get("meter", {}).items() if v is not None) or ["none"]
        raise TreewrightError(
            f"update {row.get('step')} of {name!r} does not say its {axis}; it says seconds and {', '.join(known)}"
        )
    return float(found)


def arms_of(curves: Sequence[Curve]) -> tuple[list[Arm], float]:
    """The arms in the order in which they are first named, and how far along the axis all runs come.

    Raises TreewrightError for two runs of one arm and seed.
    """
    end = min(curve.spent[-1] for curve in curves)
    groups: dict[str, dict[str, Curve]] = {}
    for curve in curves:
        other = groups.setdefault(curve.arm, {}).setdefault(curve.seed, curve)
        if other is not curve:
            raise TreewrightError(f"{other.run!r} and {curve.run!r} are both seed {curve.seed!r} of {curve.arm!r}")
    base = next(iter(groups.values()))
    return [_arm(name, mine, base, end) for name, mine in groups.items()], end


def _arm(name: str, mine: Mapping[str, Curve], base: Mapping[str, Curve], end: float) -> Arm:
    areas = {seed: curve.area(end) for seed, curve in mine.items()}
    others = {seed: curve.area(end) for seed, curve in base.items()}
    pairs = [seed for seed in mine if seed in base] if mine is not base else []
    low = high = ratio = None
    if mine is not base:
        seeds = (pairs, pairs) if len(pairs) > 1 else (list(mine), list(base))
        a, b = (np.array([of[s] for s in which]) for of, which in zip((areas, others), seeds, strict=True))
        ratio = float(a.mean() / b.mean()) if b.mean() > 0 else None
        if len(pairs) > 1 and (b > 0).any():
            draws = np.random.default_rng(0).integers(0, len(a), (SAMPLES, len(a)))
            below = b[draws].mean(1)
            found = a[draws].mean(1)[below > 0] / below[below > 0]
            low, high = (float(x) for x in np.percentile(found, [2.5, 97.5]))
    return Arm(
        name=name, runs=tuple(mine.values()), area=float(np.mean(list(areas.values()))),
        final=float(np.mean([c.success[-1] for c in mine.values()])), ratio=ratio, low=low, high=high, pairs=len(pairs),
    )  # fmt: skip


def figures_of(arms: Sequence[Arm], axis: str, end: float) -> dict[str, Any]:
    """Everything as JSON: curves, areas, ratios with their intervals; null where something is not known."""
    return {
        "axis": axis,
        "end": end,
        "base": arms[0].name,
        "arms": {
            arm.name: {
                "area": arm.area, "final": arm.final, "ratio": arm.ratio, "low": arm.low, "high": arm.high,
                "pairs": arm.pairs, "runs": {c.run: {axis: c.spent, "success": c.success} for c in arm.runs},
            }
            for arm in arms
        },
    }  # fmt: skip
