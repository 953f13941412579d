"""The soak's slopes tell growth from noise, and a scene of a few seconds notices sessions that are never closed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slopes import Sampler, below, slope_of

from treewright.envs import suite
from treewright.envs.maze import Maze

from . import soak

TIMES = list(range(60))


@pytest.mark.parametrize("measure", ["memory_mib", "latency_s"])
def test_growth_is_seen_and_noise_is_not(measure: str) -> None:
    noise = 100 + np.random.default_rng(0).normal(0, 1, 60)
    assert not slope_of(TIMES, noise.tolist(), measure).above_noise
    assert slope_of(TIMES, (noise + np.linspace(0, 20, 60)).tolist(), measure).above_noise
    assert not slope_of(TIMES, (noise - np.linspace(0, 20, 60)).tolist(), measure).above_noise
    warm = np.where(np.arange(60) < 12, 50.0, 0.0)  # what is filled at first counts for nothing
    assert not slope_of(TIMES, (noise - warm).tolist(), measure).above_noise


def test_the_interval_holds_the_true_rise_and_counts_are_whole() -> None:
    rng, inside = np.random.default_rng(1), 0
    for _ in range(200):
        found = slope_of(TIMES, (np.linspace(0, 5, 60) + rng.normal(0, 1, 60)).tolist(), "memory_mib")
        inside += found.low <= 5 * 47 / 59 <= found.high
    assert inside >= 190, "99 % intervals"
    assert not slope_of(TIMES, [7.0] * 60, "files").above_noise
    assert slope_of(TIMES, [7 + i / 20 for i in range(60)], "files").above_noise
    with pytest.raises(ValueError, match="too few"):
        slope_of(TIMES[:20], [1.0] * 20, "files")


def test_a_sampler_sees_files_connections_and_children() -> None:
    sampler = Sampler()
    sampler(0.1)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reading, 1)
        os._exit(0)
    sampler(0.1)
    assert child in below(os.getpid())
    os.write(writing, b"x")
    os.waitpid(child, 0)
    for end in (reading, writing):
        os.close(end)
    sampler(0.1)
    files, processes = sampler.values["files"], sampler.values["processes"]
    assert files[1] > files[0] and processes[1] == processes[0] + 1 and processes[2] == processes[0]


class Held(Maze):
    """A maze that holds a file until it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.file = os.open(os.devnull, os.O_RDONLY)

    async def close(self) -> None:
        os.close(self.file)
        await super().close()


async def test_rounds_of_mazes_leave_nothing_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def opened() -> Held:
        return Held()

    found = replace(suite("maze"), open=opened)
    tasks = soak.many(found, 4)
    sampler = Sampler()

    async def work(number: int) -> Any:
        await soak.grow(found, tasks, 4, f"r{number}", expansions=1)

    await soak.rounds(work, 0.0, sampler)
    slopes = sampler.slopes(patience=20.0)
    assert not [name for name, slope in slopes.items() if name != "latency_s" and slope.above_noise], slopes
