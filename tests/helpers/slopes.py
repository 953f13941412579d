"""Whether something grows: samples of a process and its children over time, and the slope of each with its interval.

The samples after the first fifth are cut into ten blocks of equal length, each block becomes its mean, and a line is
fitted to the ten by least squares: neighbouring samples are not independent, means of long blocks nearly are. The
interval is the 99 % one of Student's t with 8 degrees of freedom. A slope stands above its noise if the whole interval
lies above 0 and the line rises over the run by more than the resolution of what is measured (`FLOORS`): one process or
connection, the pages that an allocator takes at a time, a twentieth of a latency.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["FLOORS", "Sampler", "Slope", "slope_of"]

BLOCKS, T_99 = 10, 3.3554  # blocks; Student's t, two-sided 99 %, 8 degrees of freedom
WARM = 0.2
PAGE = os.sysconf("SC_PAGE_SIZE")
FLOORS = {
    "memory_mib": (4.0, 0.02), "files": (1.0, 0.0), "processes": (1.0, 0.0), "connections": (1.0, 0.0),
    "latency_s": (0.0, 0.05),
}  # fmt: skip
"""By measure: what it must rise by to be seen, absolutely and as a share of its mean; the larger one counts."""


@dataclass(frozen=True, slots=True)
class Slope:
    """Of one measure: its mean, rise over the whole run with its 99 % interval, and the rise that would be seen."""

    mean: float
    rise: float
    low: float
    high: float
    floor: float

    @property
    def above_noise(self) -> bool:
        return self.low > 0 and self.rise > self.floor


def slope_of(times: Sequence[float], values: Sequence[float], measure: str, patience: float = 1.0) -> Slope:
    """`patience` multiplies the rise that would be seen, except of what is counted.

    Raises ValueError for fewer samples than two in each block.
    """
    first = math.ceil(len(values) * WARM)
    if len(values) - first < 2 * BLOCKS:
        raise ValueError(
            f"{len(values)} samples of {measure} are too few; {math.ceil(2 * BLOCKS / (1 - WARM))} are needed"
        )
    x = np.array([block.mean() for block in np.array_split(np.asarray(times[first:], float), BLOCKS)])
    y = np.array([block.mean() for block in np.array_split(np.asarray(values[first:], float), BLOCKS)])
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    left = y - y.mean() - slope * centred
    error = math.sqrt(float(left @ left) / (BLOCKS - 2) / float(centred @ centred))
    span, mean = float(times[-1] - times[first]), float(y.mean())
    absolute, share = FLOORS[measure]
    more = patience if share else 1.0
    return Slope(
        mean,
        slope * span,
        (slope - T_99 * error) * span,
        (slope + T_99 * error) * span,
        more * max(absolute, share * abs(mean)),
    )


class Sampler:
    """Memory, open files, processes and connections of a process and everything below it, and a latency if given."""

    def __init__(self, pid: int | None = None) -> None:
        self.pid = pid or os.getpid()
        self.began = time.monotonic()
        self.times: list[float] = []
        self.values: dict[str, list[float]] = {name: [] for name in FLOORS}

    def __call__(self, latency: float | None = None) -> None:
        pids = below(self.pid)
        memory = files = connections = 0
        for pid in pids:
            with contextlib.suppress(OSError, ValueError, IndexError):
                memory += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
            with contextlib.suppress(OSError):
                for name in os.listdir(f"/proc/{pid}/fd"):
                    files += 1
                    with contextlib.suppress(OSError):
                        connections += os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
        self.times.append(time.monotonic() - self.began)
        now = {"memory_mib": memory / 2**20, "files": files, "processes": len(pids), "connections": connections}
        for name, value in now.items():
            self.values[name].append(value)
        if latency is not None:
            self.values["latency_s"].append(latency)

    def slopes(self, patience: float = 1.0) -> dict[str, Slope]:
        """By measure; a latency that was not given with every sample is spread over the time of all."""
        out = {}
        for name, values in self.values.items():
            if values:
                times = (
                    self.times
                    if len(values) == len(self.times)
                    else np.linspace(0, self.times[-1], len(values)).tolist()
                )
                out[name] = slope_of(times, values, name, patience)
        return out


def below(pid: int) -> set[int]:
    """The process and its descendants, zombies included: one that nobody waits for is a leak, too."""
    above = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            above[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found, more = {pid}, {pid}
    while more:
        more = {one for one, up in above.items() if up in more} - found
        found |= more
    return found
