"""What faults that outlast every retry do to the gradient: trees that met one are left out, and the rest is the sample.

A fault that a retry mends leaves the same tree. One that stays makes its tree inexact, and training leaves it out. If
every step may fail alike, long episodes are lost more often than short ones, so what is left leans to short ones. Here
that is measured on the enumerable world, whose gradient is known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from treewright.agent.runs.figures import write_result
from treewright.training.check.mdp import BiasReport, Grown, measure, small_mdp
from treewright.training.check.mdp_growth import grow
from treewright.training.credit import Credit, split_loo

__all__ = ["SHARES", "after_faults", "main"]

SHARES = (0.0, 0.02, 0.1, 0.3)


def after_faults(grown: Grown, share: float, seed: int = 0) -> tuple[float, BiasReport]:
    """(share of trees lost, the bias of what is left), where each step fails for good with this probability."""
    a, rng = grown.arrays, np.random.default_rng(seed)
    failed = (rng.random(len(a)) < share) & (a.parent >= 0)
    whole = np.bincount(a.tree, weights=failed, minlength=grown.trees) == 0
    left = int(whole.sum())
    coef = np.where(whole[a.tree], split_loo(a).coef * (grown.trees / max(left, 1)), 0.0)
    nothing = np.full(len(a), np.nan)
    return 1.0 - left / grown.trees, measure(
        small_mdp(), grown, Credit(value=nothing, coef=coef, weight=nothing, ess=nothing)
    )


def main(
    quick: bool = False, json_path: Path | str | None = None, plot_path: Path | str | None = None
) -> dict[str, Any]:
    """A table by schedule and share of failing steps; returns and writes {"figures", "quick", …}."""
    trees = 8_000 if quick else 64_000
    figures: dict[str, dict[str, Any]] = {}
    print(f"{trees} trees of SPLIT-LOO; trees with a fault that stays are left out\n")
    print("| schedule | steps that fail | trees lost | relative bias | bias / noise |\n|---|---:|---:|---:|---:|")
    for schedule in ("chains", "best_first"):
        grown = grow(schedule, trees, 3)
        for share in SHARES:
            lost, report = after_faults(grown, share)
            print(f"| {schedule} | {share:.0%} | {lost:.0%} | {report.relative_bias:.3f} | {report.over_noise:.1f} |")
            for name, value in (
                ("lost", lost), ("bias", report.relative_bias), ("shift_over_noise", report.over_noise),
            ):  # fmt: skip
                figures[f"fault_gradient_{name}_{schedule}_{round(share * 100)}"] = {"value": value, "unit": "1"}
    result = {"figures": figures, "quick": quick, "trees": trees}
    if json_path:
        write_result(Path(json_path), result)
    return result
