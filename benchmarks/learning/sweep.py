"""Many runs, each written down when it ends, so that a sweep that is stopped goes on; and what is made of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from treewright.benchmarks.learning.arms import ARMS
from treewright.benchmarks.learning.train import Curve, Setting, Sizes, learn, starting_point
from treewright.benchmarks.learning.world import Array

__all__ = ["Cell", "Record", "ratio_interval", "read", "run_cells", "tuned"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One run. `name` says what the setting and sizes are called, the rest what they are."""

    name: str
    arm: str
    lr: float
    seed: int
    setting: Setting
    sizes: Sizes

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True, slots=True)
class Record:
    cell: Cell
    curve: Curve
    seconds: float

    @property
    def area(self) -> float:
        return self.curve.area(self.cell.sizes.tokens)


def read(path: Path) -> dict[str, Record]:
    """The runs on file by their cell's key; a last line that was cut short is left out."""
    out: dict[str, Record] = {}
    if not path.exists():
        return out
    for line in path.read_text().splitlines():
        try:
            raw = json.loads(line)
        except json.JSONDecodeError:
            continue
        cell = raw["cell"]
        cell |= {"setting": Setting(**cell["setting"]), "sizes": Sizes(**cell["sizes"])}
        curve = raw["curve"]
        curve |= {"tokens": tuple(curve["tokens"]), "success": tuple(curve["success"])}
        record = Record(Cell(**cell), Curve(**curve), raw["seconds"])
        out[record.cell.key] = record
    return out


def _ends_well(path: Path) -> bool:
    text = path.read_bytes()
    return not text or text.endswith(b"\n")


def run_cells(
    cells: Iterable[Cell], path: Path | None = None, on_run: Callable[[Record], None] | None = None
) -> list[Record]:
    """Runs what is not on file yet, in the order given, and returns the records of all cells in that order.

    Neighbouring cells of one setting and seed share their warm start.
    """
    done = read(path) if path else {}
    last, start, out = None, None, []
    for cell in cells:
        if cell.key not in done:
            begins = (cell.setting, cell.seed, cell.sizes.warm)
            if begins != last:
                last, start = begins, starting_point(*begins)
            began = time.monotonic()
            curve = learn(ARMS[cell.arm], cell.setting, cell.lr, cell.seed, cell.sizes, start=start)
            record = Record(cell, curve, round(time.monotonic() - began, 2))
            done[cell.key] = record
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a") as file:
                    file.write(("" if _ends_well(path) else "\n") + json.dumps(asdict(record)) + "\n")
        out.append(done[cell.key])
        if on_run:
            on_run(done[cell.key])
    return out


def tuned(records: Iterable[Record]) -> dict[tuple[str, str], float]:
    """By (setting, arm) the learning rate of the largest mean area; of equal ones the smallest."""
    areas: dict[tuple[str, str], dict[float, list[float]]] = {}
    for r in records:
        areas.setdefault((r.cell.name, r.cell.arm), {}).setdefault(r.cell.lr, []).append(r.area)
    return {key: min(by_rate, key=lambda lr: (-float(np.mean(by_rate[lr])), lr)) for key, by_rate in areas.items()}


def ratio_interval(
    arm: Sequence[float] | Array, base: Sequence[float] | Array, samples: int = 10_000
) -> tuple[float, float, float]:
    """(mean(arm)/mean(base), low, high): the paired bootstrap's 95 % percentile interval over seeds."""
    a, b = np.asarray(arm, dtype=float), np.asarray(base, dtype=float)
    if a.shape != b.shape or not a.size:
        raise ValueError(f"paired values are needed, at least one pair; got shapes {a.shape} and {b.shape}")
    draws = np.random.default_rng(0).integers(0, len(a), (samples, len(a)))
    low, high = np.percentile(a[draws].mean(1) / b[draws].mean(1), [2.5, 97.5])
    return float(a.mean() / b.mean()), float(low), float(high)
