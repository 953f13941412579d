"""`treewright bench learning`: does credit from trees learn faster than chains, at equal sampled policy tokens?

The plan of the experiment is in this file and was committed, with docs/learning.md, before the first run counted.
Finished runs are kept in runs/learning.jsonl; a sweep that is stopped goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from treewright.benchmarks.learning.sweep import Cell, Record, ratio_interval, run_cells, tuned
from treewright.benchmarks.learning.train import Setting, Sizes

__all__ = [
    "FULL",
    "QUICK",
    "SECOND",
    "Experiment",
    "check_cells",
    "check_figures",
    "figures",
    "main",
    "main_cells",
    "markdown",
    "tuning_cells",
]

BASE = "chains"


@dataclass(frozen=True, slots=True)
class Experiment:
    """What is run.

    extra       arms of single settings, reported but not part of the hypotheses
    every_rate  settings in which chains are run at every learning rate on the main seeds too: was the rate tuned well?
    same_rate   settings in which every arm is run at the rate `common` on the main seeds too
    then        a second round at the common rate; its figures begin with second_, those of both rounds' runs at that
                rate with both_
    """

    settings: Mapping[str, tuple[Setting, Sizes]]
    arms: tuple[str, ...]
    extra: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]  # none: every arm has the first of the rates
    rates: tuple[float, ...]
    every_rate: tuple[str, ...] = ()
    same_rate: tuple[str, ...] = ()
    common: float = 1e-3
    then: Experiment | None = None

    def pairs(self) -> list[tuple[str, str]]:
        """(setting, arm) of all that is run."""
        return [(s, a) for s in self.settings for a in (*self.arms, *self.extra.get(s, ()))]


SETTINGS = {
    "hard": (Setting(knows=0.2), Sizes(tokens=80_000)),
    "noisy": (Setting(knows=0.5, flips=0.15), Sizes(tokens=60_000)),
    "easy": (Setting(knows=0.75), Sizes(tokens=30_000)),
}
FIVE = ("chains", "late", "split", "split_rows", "adaptive")
SECOND = Experiment(
    settings={name: SETTINGS[name] for name in ("hard", "noisy")},
    arms=FIVE,
    extra={},
    seeds=(6, 7, 8, 9, 10),
    tuning_seeds=(),
    rates=(1e-3,),
)
"""Fresh seeds, one learning rate for all arms; planned after the first results and before its own runs."""
FULL = Experiment(
    settings=SETTINGS,
    arms=FIVE,
    extra={"hard": ("best_first",)},
    seeds=(1, 2, 3, 4, 5),
    tuning_seeds=(101,),
    rates=(5e-4, 1e-3, 2e-3),
    every_rate=("hard", "noisy"),
    same_rate=("hard", "noisy"),
    then=SECOND,
)
QUICK = Experiment(
    settings={"easy": (Setting(knows=0.75), Sizes(tokens=4_000, checks=4, tasks=128, warm=80))},
    arms=("chains", "late", "split", "split_rows", "adaptive"),
    extra={},
    seeds=(1, 2),
    tuning_seeds=(101,),
    rates=(1e-3,),
)


def tuning_cells(plan: Experiment) -> list[Cell]:
    """Every arm with every learning rate on the tuning seeds, with half of the tokens."""
    half = {
        name: (setting, replace(sizes, tokens=sizes.tokens // 2)) for name, (setting, sizes) in plan.settings.items()
    }
    return [
        Cell(name, arm, lr, seed, *half[name])
        for name in plan.settings
        for seed in plan.tuning_seeds
        for s, arm in plan.pairs()
        if s == name
        for lr in plan.rates
    ]


def main_cells(plan: Experiment, rates: Mapping[tuple[str, str], float]) -> list[Cell]:
    """Every arm on every seed at its own learning rate; whole seeds first, so that a stopped sweep is balanced."""
    return [
        Cell(name, arm, rates[name, arm], seed, *plan.settings[name])
        for seed in plan.seeds
        for name in plan.settings
        for s, arm in plan.pairs()
        if s == name
    ]


def check_cells(plan: Experiment) -> list[Cell]:
    """The check of the tuning, on the main seeds: see Experiment.every_rate and same_rate."""
    cells = [
        Cell(name, arm, lr, seed, *plan.settings[name])
        for seed in plan.seeds
        for name, arm in plan.pairs()
        for lr in plan.rates
        if (name in plan.same_rate and lr == plan.common) or (name in plan.every_rate and arm == BASE)
    ]
    return cells


def check_figures(plan: Experiment, records: Sequence[Record], checks: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Areas at given rates and two stricter comparisons with chains than the planned one.

    auc_ARM_SETTING_lr_RATE
    auc_ratio_same_rate_ARM_SETTING  both at the common rate
    auc_ratio_best_rate_ARM_SETTING  the arm as tuned, chains at the rate best on these very seeds: favours chains
    """

    def area(name: str, arm: str, lr: float) -> list[float]:
        return [r.area for r in checks if (r.cell.name, r.cell.arm, r.cell.lr) == (name, arm, lr)]

    out = {
        f"auc_{c.arm}_{c.name}_lr_{c.lr:g}": float(np.mean(area(c.name, c.arm, c.lr))) for c in (r.cell for r in checks)
    }
    for name, arm in plan.pairs():
        pairs = {}
        if name in plan.same_rate:
            pairs["same_rate"] = area(name, arm, plan.common), area(name, BASE, plan.common)
        if name in plan.every_rate:
            best = max((area(name, BASE, lr) for lr in plan.rates), key=lambda runs: float(np.mean(runs)))
            pairs["best_rate"] = [r.area for r in records if (r.cell.name, r.cell.arm) == (name, arm)], best
        for word, (mine, base) in pairs.items():
            if arm != BASE and min(base) > 0:
                ends = zip(("", "_low", "_high"), ratio_interval(mine, base), strict=True)
                out |= {f"auc_ratio_{word}_{arm}_{name}{end}": value for end, value in ends}
    return {key: {"value": value, "unit": "1"} for key, value in out.items()}


def figures(plan: Experiment, records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Areas, final success, and the ratio of areas to those of chains with its interval.

    auc_ratio_SETTING (and _low, _high) is that of `split`; of another arm auc_ratio_ARM_SETTING. No ratio to nothing.
    """
    out: dict[str, dict[str, Any]] = {}
    by_pair = {pair: [r for r in records if (r.cell.name, r.cell.arm) == pair] for pair in plan.pairs()}
    for (name, arm), runs in by_pair.items():
        end = plan.settings[name][1].tokens
        final = [float(np.interp(end, r.curve.tokens, r.curve.success)) for r in runs]
        values = {
            "auc": float(np.mean([r.area for r in runs])),
            "auc_sd": float(np.std([r.area for r in runs], ddof=1)),
            "final": float(np.mean(final)),
            "warm_start": float(np.mean([r.curve.success[0] for r in runs])),
            "lr": runs[0].cell.lr,
        }
        out |= {f"{key}_{arm}_{name}": {"value": value, "unit": "1"} for key, value in values.items()}
        base = [r.area for r in by_pair[name, BASE]]
        if arm != BASE and min(base) > 0:
            stem = f"auc_ratio_{name}" if arm == "split" else f"auc_ratio_{arm}_{name}"
            ratios = ratio_interval([r.area for r in runs], base)
            for end_, value in zip(("", "_low", "_high"), ratios, strict=True):
                out[stem + end_] = {"value": value, "unit": "1"}
    return out


def markdown(plan: Experiment, found: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of docs/learning.md out of a run's figures."""
    lines = [
        "| setting | arm | learning rate | start | area | final | area / chains (95 %) |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for name, arm in plan.pairs():
        row = [f"{found[f'{key}_{arm}_{name}']['value']:.3f}" for key in ("warm_start", "auc", "final")]
        cells = [name, f"`{arm}`", f"{found[f'lr_{arm}_{name}']['value']:g}", *row, _ratio(found, name, arm)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(found: Mapping[str, Mapping[str, Any]], name: str, arm: str) -> str:
    stem = f"auc_ratio_{name}" if arm == "split" else f"auc_ratio_{arm}_{name}"
    if stem not in found:
        return "1" if arm == BASE else "–"
    ratio, low, high = (found[stem + end]["value"] for end in ("", "_low", "_high"))
    return f"{ratio:.2f} ({low:.2f} … {high:.2f})"


def main(
    quick: bool = False,
    json_path: Path | str | None = None,
    plot_path: Path | str | None = None,
    *,
    runs: Path | str = "runs/learning.jsonl",
    plan: Experiment | None = None,
) -> dict[str, Any]:
    """Runs what is not on file yet, prints a table, writes JSON and a plot where asked; returns {"figures", "quick"}.

    quick      tiny runs of two seeds in one setting, nothing kept: shows that it runs, measures nothing
    plot_path  curves of success against tokens; needs matplotlib, without it a message says so
    """
    console, plan = Console(emoji=False), plan or (QUICK if quick else FULL)
    path = None if quick else Path(runs)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the runs are sums of small products; more threads only wait for each other
    try:
        tuning = _run(tuning_cells(plan), path, console, "learning rates")
        rates = tuned(tuning) if plan.tuning_seeds else _one_rate(plan)
        records = _run(main_cells(plan, rates), path, console, "runs")
        checks = _run(check_cells(plan), path, console, "check of the rates")
        later = _run(main_cells(plan.then, _one_rate(plan.then)), path, console, "second round") if plan.then else []
    finally:
        torch.set_num_threads(before)
    found = figures(plan, records) | check_figures(plan, records, checks)
    _print(console, plan, found, quick)
    if plan.then:
        second = figures(plan.then, later)
        _print(console, plan.then, second, quick)
        found |= {f"second_{key}": value for key, value in second.items()}
        alike = [r for r in checks if r.cell.lr == plan.common and (r.cell.name, r.cell.arm) in plan.then.pairs()]
        found |= {f"both_{key}": value for key, value in figures(plan.then, [*alike, *later]).items()}
    result = {
        "figures": found,
        "quick": quick,
        "seconds": round(sum(r.seconds for r in [*tuning, *records, *checks, *later]), 1),
        "tuning": [_row(r) for r in tuning],
        "checks": [_row(r) for r in checks],
        "second": [_row(r) | {"tokens": r.curve.tokens, "success": r.curve.success} for r in later],
        "runs": [_row(r) | {"tokens": r.curve.tokens, "success": r.curve.success} for r in records],
    }
    if json_path:
        Path(json_path).write_text(json.dumps(result, indent=1) + "\n")
    if plot_path:
        _plot(plan, records, Path(plot_path), console)
    return result


def _one_rate(plan: Experiment) -> dict[tuple[str, str], float]:
    return dict.fromkeys(plan.pairs(), plan.rates[0])


def _run(cells: Sequence[Cell], path: Path | None, console: Console, what: str) -> list[Record]:
    if not cells:
        return []
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=len(cells))
        return run_cells(cells, path, lambda record: bar.advance(task))


def _row(record: Record) -> dict[str, Any]:
    cell = record.cell
    kept = {"setting": cell.name, "arm": cell.arm, "lr": cell.lr, "seed": cell.seed, "auc": round(record.area, 5)}
    return kept | {"steps": record.curve.steps, "trees": record.curve.trees, "seconds": record.seconds}


def _print(console: Console, plan: Experiment, found: Mapping[str, Mapping[str, Any]], quick: bool) -> None:
    title = "success against sampled policy tokens" + (" (quick: measures nothing)" if quick else "")
    table = Table("setting", "arm", "lr", "warm start", "area", "final", "area / chains (95 %)", title=title)
    for name, arm in plan.pairs():
        row = [f"{found[f'{key}_{arm}_{name}']['value']:.3f}" for key in ("warm_start", "auc", "final")]
        table.add_row(name, arm, f"{found[f'lr_{arm}_{name}']['value']:g}", *row, _ratio(found, name, arm))
    console.print(table)


def _plot(plan: Experiment, records: Sequence[Record], path: Path, console: Console) -> None:
    try:
        make_figure = import_module("matplotlib.figure").Figure
    except ImportError:
        console.print("no plot: matplotlib is not installed; type: pip install 'treewright[plot]'")
        return
    figure = make_figure(figsize=(4.2 * len(plan.settings), 3.6), layout="constrained")
    for i, (name, (_, sizes)) in enumerate(plan.settings.items()):
        axes, x = figure.add_subplot(1, len(plan.settings), i + 1), np.linspace(0, sizes.tokens, 61)
        for s, arm in plan.pairs():
            if s != name:
                continue
            runs = [r.curve for r in records if (r.cell.name, r.cell.arm) == (name, arm)]
            curves = np.array([np.interp(x, c.tokens, c.success) for c in runs])
            (line,) = axes.plot(x / 1000, curves.mean(0), label=arm.replace("_", " "))
            axes.fill_between(x / 1000, curves.min(0), curves.max(0), color=line.get_color(), alpha=0.12, linewidth=0)
        axes.set_title(name)
        axes.set_xlabel("thousand policy tokens sampled")
        axes.set_ylabel("success")
        axes.set_ylim(0, None)
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
