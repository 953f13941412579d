"""The soak's slopes tell growth from noise, and a scene of a few seconds notices sessions that are never closed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from slopes import Sampler, below, slope_of

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


def test_rounds_of_mazes_leave_nothing_open() -> None:
    """In a process of its own: what other tests have left in this one opens and closes files, too."""
    done = subprocess.run(
        [sys.executable, "-P", str(Path(__file__).with_name("soak_held.py"))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rising = json.loads(done.stdout)
    assert {"files", "processes", "connections", "memory_mib"} <= set(rising)
    assert not [name for name, above in rising.items() if above and name != "latency_s"], done.stderr
