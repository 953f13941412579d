"""The browser's cost beside the build before 0.2.0, in turns; eight sessions beside one; what the demo gained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from treewright.benchmarks.pair import BEFORE, ROOT, checkout, ratio_of
from treewright.envs.errors import TreewrightError

__all__ = ["demo_gain", "paired_costs", "turn"]

SCRIPT = Path(__file__).with_name("web_work.py")
LIMIT = 900.0  # seconds that one turn may take


def turn(build: Path, work: str, size: int) -> dict[str, Any]:
    """Cost and digest of one run in a build. Raises TreewrightError with its last words."""
    own = {"PYTHONPATH": str(build / "pkg"), "PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1"}
    with tempfile.TemporaryDirectory(prefix="treewright-web-") as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-P", str(SCRIPT), work, str(size)], cwd=folder, env={**os.environ, **own},
                capture_output=True, text=True, timeout=LIMIT, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise TreewrightError(
                f"{work} took more than {LIMIT:.0f} s in {build}; measure on an idle machine"
            ) from None
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-4:]) or "no message"
        raise TreewrightError(f"{work} failed in {build}:\n{last}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    if not found["build"].startswith(f"{build}/"):
        raise TreewrightError(f"{work} ran in {found['build']} instead of {build}: is there a pkg/treewright in it?")
    return found


def paired_costs(work: str, size: int, rounds: int, old: str = BEFORE, new: str = str(ROOT)) -> dict[str, Any]:
    """Costs of both builds, A B A B, with `ratio` = after / before, its interval `low` … `high`, and `unequal`.

    What they find may differ, since older builds saw less of a page; `unequal` says how many turns did.
    """
    costs: tuple[list[float], list[float]] = ([], [])
    digests: list[str] = []
    with checkout(old) as first, checkout(new) as second:
        for _ in range(rounds):
            for build, taken in zip((first, second), costs, strict=True):
                found = turn(build, work, size)
                taken.append(found["cost"])
                digests.append(found["digest"])
    ratio, low, high = ratio_of(*costs)
    return {
        "old": old, "before": costs[0], "after": costs[1], "ratio": ratio, "low": low, "high": high, "rounds": rounds,
        "unequal": sum(one != digests[0] for one in digests),
    }  # fmt: skip


def demo_gain(path: Path = ROOT / "docs" / "demo.json") -> dict[str, tuple[float, str]]:
    """What training by trees gained on `market` in the published demo, held-out tasks, the policy alone."""
    try:
        shown = json.loads(path.read_text())["figures"]
        return {
            f"market_gain_{name}": (float(shown[f"market.policy_gain_{name}"]["value"]), "points")
            for name in ("points", "low", "high")
        }
    except (OSError, ValueError, KeyError) as error:
        raise TreewrightError(
            f"{path} does not hold the demo's figures of market ({error!r}); type: treewright demo"
        ) from error
