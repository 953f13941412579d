"""The loop by one process and by two ranks with two collectors, over PostgreSQL: does it learn the same?

The same seeds, tasks and settings; see test_ranks_loop.py for the same at toy size.
As a script: python ranks_learning.py SEEDS [JSON], beside a throw-away PostgreSQL; `make learn-ranks`.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ranks_loop import alone, curves, sweep

ROUNDS, TASKS, HELD_OUT = 6, 12, 100
SIZES = (f"loop.iterations={ROUNDS}", f"loop.tasks={TASKS}", 'policy.options={"batch_requests": false}')
SHARED = ("loop.collectors=0", "loop.lease=10")
CLOSE = 1e-3  # losses that differ by less are those of the same trees, summed in another order


def held_out(folder: Path) -> float:
    """Success of the run's newest weights on tasks that no round had; the policy alone."""
    told = folder / "eval.json"
    alone(folder, [], ("eval", "--suites", "kg", "--tasks", str(HELD_OUT), "--json", str(told)))
    return float(json.loads(told.read_text())["suites"]["kg"]["success"])


def agreeing(one: Mapping[int, float], other: Mapping[int, float]) -> int:
    """How many of the first rounds have the same loss."""
    for count, (a, b) in enumerate(zip(one.values(), other.values(), strict=True)):
        if not math.isclose(a, b, rel_tol=CLOSE):
            return count
    return len(one)


def grown(arm: str, folder: Path, sets: Sequence[str], new_url: Callable[[], str]) -> None:
    """Runs one arm's loop to its end."""
    if arm == "two":
        sweep(folder, new_url(), 0, settings=(*sets, *SHARED), seconds=7200)
    else:
        alone(folder, sets if arm == "one" else (*sets, "loop.behind=1"))


def compare(home: Path, new_url: Callable[[], str], seeds: Sequence[int]) -> dict[str, Any]:
    """Figures by name, and what each run did.

    Arms: one process; one process that is a step behind, as a loop with collectors is; two ranks, two collectors.
    """
    began = time.monotonic()
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        for arm in ("one", "behind", "two"):
            folder = home / f"{arm}-{seed}"
            folder.mkdir()
            start = time.monotonic()
            grown(arm, folder, (f"seed={seed}", *SIZES), new_url)
            done = {"arm": arm, "seed": seed, **curves(folder), "seconds": round(time.monotonic() - start, 1)}
            runs.append({**done, "held_out": held_out(folder)})
            print(json.dumps(runs[-1]), flush=True)
    return {"figures": figures(runs), "runs": runs, "seconds": round(time.monotonic() - began, 1)}


def figures(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the seeds; how far apart two arms are, and how far they may be by chance (two standard errors)."""
    by: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        by.setdefault(run["arm"], []).append(run)
    seeds = len(by["two"])
    after = {arm: statistics.mean(run["held_out"] for run in some) for arm, some in by.items()}
    first = {arm: statistics.mean(_ends(run)[0] for run in some) for arm, some in by.items()}
    last = {arm: statistics.mean(_ends(run)[1] for run in some) for arm, some in by.items()}
    chance = 2 * math.sqrt(sum(after[arm] * (1 - after[arm]) / (seeds * HELD_OUT) for arm in ("two", "one")))
    same = [agreeing(a["losses"], b["losses"]) for a, b in zip(by["two"], by["behind"], strict=True)]
    found: dict[str, tuple[float, str]] = {
        "seeds": (seeds, "1"), "rounds": (ROUNDS, "1"), "tasks": (TASKS, "1"),
        "two_minus_one": (after["two"] - after["one"], "share"),
        "two_minus_one_by_chance": (chance, "share"),
        "rounds_of_equal_loss_min": (min(same), "1"), "rounds_of_equal_loss_max": (max(same), "1"),
    }  # fmt: skip
    for arm in by:
        found |= {
            f"{arm}_first_rounds": (first[arm], "share"), f"{arm}_last_rounds": (last[arm], "share"),
            f"{arm}_held_out": (after[arm], "share"),
        }  # fmt: skip
    return {name: {"value": float(value), "unit": unit} for name, (value, unit) in found.items()}


def _ends(run: Mapping[str, Any]) -> tuple[float, float]:
    """Mean success in the first and in the last quarter of the rounds."""
    every = list(run["successes"].values())
    part = max(1, len(every) // 4)
    return statistics.mean(every[:part]), statistics.mean(every[-part:])


if __name__ == "__main__":
    from databases import cluster

    from treewright.agent.runs.figures import write_result

    with cluster() as fresh, tempfile.TemporaryDirectory(prefix="ranks-") as place:
        told = compare(Path(place), fresh, range(1, int(sys.argv[1]) + 1))
    print(json.dumps(told["figures"], indent=1))
    if len(sys.argv) > 2:
        write_result(Path(sys.argv[2]), told)
