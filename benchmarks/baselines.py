"""`treewright bench baselines`: what fitted baselines take from the noise of the gradient, in the enumerated world.

Trees of each schedule are credited by split_loo with τ = 3, with τ = 0, and by split_fitted without a score, with that
of a noisy judge, of one that knows every value, and of one that is wrong: 3 − 5 times the noisy one. Told is the
variance over that of split_loo with τ = 3, and the bias in standard errors, which is about 1 for an unbiased estimator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from treewright.agent.runs.figures import write_result
from treewright.training.check.mdp import Array, measure, small_mdp
from treewright.training.check.mdp_growth import grow
from treewright.training.credit import estimate

__all__ = ["SCHEDULES", "WAYS", "main", "markdown"]

SCHEDULES = ("chains", "fixed_2", "late", "split_liked", "best_first")
WORLD = small_mdp()
NOBODY = np.full(len(WORLD.judge), np.nan)
WAYS: Mapping[str, tuple[Array, str, Mapping[str, Any]]] = {
    "split_loo, τ = 3": (NOBODY, "split_loo", {}),
    "split_loo, τ = 0": (NOBODY, "split_loo", {"tau": 0.0}),
    "split_fitted, no score": (NOBODY, "split_fitted", {}),
    "split_fitted, noisy judge": (WORLD.judge, "split_fitted", {}),
    "split_fitted, true values": (WORLD.values()[0], "split_fitted", {}),
    "split_fitted, judge turned round": (3 - 5 * WORLD.judge, "split_fitted", {}),
}
"""By label: the score of each state, the estimator, its options."""


def main(
    quick: bool = False, json_path: str | None = None, plot_path: str | None = None, *, trees: int | None = None
) -> dict[str, Any]:
    """Measures; returns what the JSON holds. `quick` takes fewer trees."""
    count = trees or (800 if quick else 16_000)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for schedule in SCHEDULES:
        grown = grow(schedule, count, 11, WORLD)
        for label, (score, name, options) in WAYS.items():
            seen = np.where(grown.state >= 0, score[grown.state], np.nan)
            report = measure(WORLD, grown, estimate(name, replace(grown.arrays, more={"score": seen}), **dict(options)))
            base = found.get(schedule, {}).get("split_loo, τ = 3", {}).get("variance", report.variance_per_token)
            found.setdefault(schedule, {})[label] = {
                "variance": report.variance_per_token, "ratio": report.variance_per_token / base,
                "over_noise": report.over_noise,
            }  # fmt: skip
    table = Table("baseline", *SCHEDULES, title="variance / that of split_loo" + (" (quick)" if quick else ""))
    for line in markdown(found).splitlines()[2:]:
        table.add_row(*(cell.strip() for cell in line.strip("|").split("|")))
    Console(emoji=False).print(table)
    result = {
        "quick": quick, "trees": count, "schedules": found,
        "figures": {"fitted_variance_best_first": {
            "value": found["best_first"]["split_fitted, noisy judge"]["ratio"], "unit": "1"}},
    }  # fmt: skip
    if json_path is not None:
        write_result(Path(json_path), result)
    return result


def markdown(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The table of docs/credit.md out of the JSON's `schedules`."""
    lines = ["| baseline | " + " | ".join(s.replace("_", " ") for s in found) + " |", "|---|" + "---:|" * len(found)]
    for label in WAYS:
        cells = [f"{told[label]['ratio']:.2f} ({told[label]['over_noise']:.1f})" for told in found.values()]
        lines.append("| " + " | ".join([label, *cells]) + " |")
    return "\n".join(lines)
