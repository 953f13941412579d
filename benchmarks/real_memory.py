"""The largest resident memory of `treewright loop` on a real model, sampler, trainer and checkpoints in one process.

Two rounds, since the optimizer's moments are there from the first update on: what the second round draws comes on top
of them. The weights are those of the section `learning`, whose trees end; those of the untouched model ramble.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from treewright.agent.runs.demo_real import STEP
from treewright.benchmarks.real_learning import SPEC, begun_model, begun_of, learning_home
from treewright.benchmarks.real_parts import Figures, kept, size_of
from treewright.envs.errors import TreewrightError

__all__ = ["memory_figures"]

ROUNDS = 2
PACKS = ("train.max_tokens=512", "train.chunk_tokens=256")
"""So few activations at once, for a peak of 4 GB."""
EVERY = ("train.entropy_coef=0.001",)
"""So that every draw is trained on, also where all trees of a round fail."""


def memory_figures(quick: bool, spec: str = SPEC) -> Figures:
    """Of a process of its own, on the first suite."""
    size = size_of(quick)
    home = learning_home(spec, size)
    settings = [f"loop.iterations={ROUNDS}", f"loop.tasks={size.loop}", *STEP, *PACKS, *EVERY]
    with tempfile.TemporaryDirectory() as folder:
        begun = asyncio.run(begun_model(home or Path(folder), spec, size))
        of = {"part": "memory", **begun_of(spec, size), "settings": settings}
        return kept(of, partial(_peak, f"hf:{begun.resolve()}", size.taught[0], settings))


def _peak(spec: str, suite: str, settings: Sequence[str]) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-P", "-m", "treewright", "loop", "--name", "m", "--suites", suite]
        words += ["--policy", spec, *(word for setting in settings for word in ("--set", setting))]
        done = subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        told = done.stderr.read() if done.stderr is not None else b""
        _, status, usage = os.wait4(done.pid, 0)  # of this process alone: RUSAGE_CHILDREN would hold the others' peak
        if status:
            raise TreewrightError(f"{' '.join(words)} failed: {told.decode()[-400:]}; type it to see why")
        rounds = [json.loads(line) for line in (Path(folder) / "runs/m/metrics.jsonl").read_text().splitlines()]
    return {
        "real_peak_gb": (usage.ru_maxrss * 1024 / 1e9, "GB"),
        "loop/rounds": (float(len(rounds)), "rounds"),
        "loop/trees": (float(sum(each["trees"] for each in rounds)), "trees"),
        "loop/tokens": (float(sum(each["tokens"] for each in rounds)), "distinct tokens"),
        "loop/seconds_a_round": (float(sum(each["seconds"] for each in rounds)) / len(rounds), "s"),
        "loop/sampler_gap": (max(float(each.get("sampler_gap") or 0.0) for each in rounds), "nats"),
    }
