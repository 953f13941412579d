"""`treewright bench learning2`: the same success for less? Trees against chains on several axes of cost.

The plan of the second experiment is this file and docs/learning2.md, both committed before the first run that counts.
Finished runs are kept in runs/learning2.jsonl; a sweep that is stopped goes on from there, world after world. What is
not finished is left out of the figures, whole seeds at a time, and `seeds` says how many there are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from treewright.agent.runs.compared import Arm, Curve, arms_of
from treewright.agent.runs.figures import write_result
from treewright.benchmarks.learning.cells import Cell
from treewright.benchmarks.learning.policy import TinyPolicy
from treewright.benchmarks.learning.train import Setting, starting_point
from treewright.benchmarks.learning.trials import ARMS, LONG, SHORT, TrialSizes, run
from treewright.benchmarks.learning.world import World

__all__ = [
    "AXES",
    "NAMED",
    "PLAN",
    "QUICK",
    "Cell",
    "Plan",
    "Planned",
    "against",
    "figures",
    "main",
    "markdown",
    "named",
    "results",
    "tuned",
    "write_page",
]

AXES = ("sampled_tokens", f"flops_{SHORT}", f"flops_{LONG}", "env_steps", "seconds")
NAMED = (
    "hard_auc_ratio", "hard_auc_ratio_low", "hard_final_ratio", "noisy_auc_ratio", "easy_auc_ratio",
    "long_context_compute_ratio", "adaptive_worst_ratio", "demo_time_vs_before",
)  # fmt: skip
CHAINS = ("chains", "chains_4", "chains_16")
FIXED = ("late", "split")
EVERYWHERE = (*CHAINS, *FIXED, "adaptive", "rows", "tree_grpo")
Points = list[dict[str, float]]


@dataclass(frozen=True, slots=True)
class Planned:
    """A world and the arms that run in it."""

    setting: Setting
    sizes: TrialSizes
    arms: tuple[str, ...] = EVERYWHERE


@dataclass(frozen=True, slots=True)
class Plan:
    """Every arm with every rate on the tuning seeds; then at its best rate on the paired seeds, of CHAINS the best one.

    worlds  in the order in which they are run
    """

    worlds: Mapping[str, Planned]
    rates: tuple[float, ...] = (7e-4, 1.4e-3)
    tuning: tuple[int, ...] = (101, 102, 103)
    seeds: tuple[int, ...] = tuple(range(1, 11))


PLAN = Plan({
    "rare": Planned(
        Setting(knows=0.45, fewest=5, most=5, words=8), TrialSizes(40_000, 1_000, 4, 128, 100),
        (*EVERYWHERE, "adaptive_flops", "curriculum"),
    ),
    "noisy": Planned(Setting(knows=0.5, flips=0.15), TrialSizes(24_000, 1_000, 4, 128, 100)),
    "easy": Planned(Setting(knows=0.75), TrialSizes(12_000, 1_000, 4, 128, 100)),
})  # fmt: skip
QUICK = Plan(
    {"rare": Planned(PLAN.worlds["rare"].setting, TrialSizes(900, 400, 1, 16, 4), ("chains", "curriculum"))},
    (1e-3,), (), (1, 2),
)  # fmt: skip


class Runs:
    """Runs by cell, those on file and those that are run now; a last line that was cut short is run again.

    stop  asked before each run that is not on file: true to leave it out
    """

    def __init__(self, plan: Plan, path: Path | None, stop: Callable[[], bool] = lambda: False) -> None:
        self.plan, self.path, self.stop = plan, path, stop
        self.known: dict[Cell, Points] = {}
        self._start: tuple[tuple[str, int], tuple[World, TinyPolicy]] | None = None
        for line in path.read_text().splitlines() if path is not None and path.exists() else ():
            try:
                told = json.loads(line)
            except json.JSONDecodeError:
                continue
            if told["planned"] == self._planned(told["cell"]["world"]):
                self.known[Cell(**told["cell"])] = told["points"]

    def _planned(self, world: str) -> str:
        """What a world is, so that runs of another plan are not taken for this one's."""
        found = self.plan.worlds.get(world)
        return "" if found is None else repr((found.setting, found.sizes))

    def take(self, cell: Cell) -> Points | None:
        """The run's points; None where it is left out."""
        if cell not in self.known:
            if self.stop():
                return None
            planned = self.plan.worlds[cell.world]
            key = (cell.world, cell.seed)
            if self._start is None or self._start[0] != key:
                self._start = key, starting_point(planned.setting, cell.seed, planned.sizes.warm)
            points = run(ARMS[cell.arm], planned.setting, cell.rate, cell.seed, planned.sizes, self._start[1])
            self.known[cell] = points
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                told = {"cell": {n: getattr(cell, n) for n in ("world", "arm", "rate", "seed")},
                        "planned": self._planned(cell.world), "points": points}  # fmt: skip
                whole = not self.path.exists() or self.path.read_bytes()[-1:] in (b"", b"\n")
                with self.path.open("a") as file:
                    file.write(("" if whole else "\n") + json.dumps(told) + "\n")
        return self.known[cell]


def _curve(cell: Cell, points: Points, axis: str) -> Curve:
    spent = tuple(float(p[axis]) for p in points)
    return Curve(f"{cell.world} {cell.arm} {cell.rate:g} {cell.seed}", cell.arm, str(cell.seed), spent,
                 tuple(float(p["success"]) for p in points))  # fmt: skip


def _area(cell: Cell, points: Points) -> float:
    curve = _curve(cell, points, "sampled_tokens")
    return curve.area(curve.spent[-1])


def tuned(tuning: Mapping[Cell, Points]) -> tuple[dict[str, float], str]:
    """(by arm the rate of the largest mean area over sampled tokens, of equal ones the least; the best of CHAINS)."""
    areas: dict[str, dict[float, list[float]]] = {}
    for cell, points in tuning.items():
        areas.setdefault(cell.arm, {}).setdefault(cell.rate, []).append(_area(cell, points))
    rates = {arm: min(by, key=lambda rate: (-float(np.mean(by[rate])), rate)) for arm, by in areas.items()}
    chains = [arm for arm in CHAINS if arm in rates]
    return rates, max(chains, key=lambda arm: float(np.mean(areas[arm][rates[arm]])))


def against(results: Mapping[Cell, Points], base: str, arm: str, axis: str) -> Arm:
    """An arm against the base over an axis, up to where all runs of the two come, on the seeds that both have."""
    mine = [(cell, points) for cell, points in results.items() if cell.arm == arm]
    seeds = {cell.seed for cell, _ in mine}
    paired = base if arm != base else None
    first = [(cell, points) for cell, points in results.items() if cell.arm == paired and cell.seed in seeds]
    return arms_of([_curve(cell, points, axis) for cell, points in (*first, *mine)])[0][-1]


def named(found: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures that were promised, by name, from what `figures` gives; None: no run of it is there."""

    def at(world: str, arm: str, axis: str, what: str = "ratio") -> float | None:
        cell = found.get(world, {}).get("arms", {}).get(arm, {})
        value = cell.get("final_ratio") if what == "final_ratio" else cell.get(axis, {}).get(what)
        return None if value is None else float(value)

    worst = []
    for told in found.values():
        areas = {arm: x["sampled_tokens"]["area"] for arm, x in told["arms"].items()}
        best = max((areas[arm] for arm in (told["base"], *FIXED) if arm in areas), default=0.0)
        if "adaptive" in areas and best > 0:
            worst.append(areas["adaptive"] / best)
    tokens = "sampled_tokens"
    return {
        "hard_auc_ratio": at("rare", "curriculum", tokens),
        "hard_auc_ratio_low": at("rare", "curriculum", tokens, "low"),
        "hard_final_ratio": at("rare", "curriculum", tokens, "final_ratio"),
        "noisy_auc_ratio": at("noisy", "late", tokens),
        "easy_auc_ratio": at("easy", "adaptive", tokens),
        "long_context_compute_ratio": at("rare", "adaptive_flops", f"flops_{LONG}"),
        "adaptive_worst_ratio": min(worst) if worst else None,
        "demo_time_vs_before": None,
    }


def figures(world: str, results: Mapping[Cell, Points], base: str, rates: Mapping[str, float]) -> dict[str, Any]:
    """What came out in a world: seeds, base, and for each arm its areas, ratios to the base and intervals by axis."""
    arms: dict[str, Any] = {}
    last = {c: points[-1]["success"] for c, points in results.items()}

    def final(arm: str) -> float:
        return float(np.mean([value for cell, value in last.items() if cell.arm == arm]))

    for arm in dict.fromkeys(cell.arm for cell in results):
        mine = [points for cell, points in results.items() if cell.arm == arm]
        told: dict[str, Any] = {"rate": rates[arm], "start": float(np.mean([p[0]["success"] for p in mine])),
                                "final": final(arm)}  # fmt: skip
        told["final_ratio"] = told["final"] / final(base) if arm != base and final(base) > 0 else None
        for axis in AXES:
            one = against(results, base, arm, axis)
            told[axis] = {"area": one.area, "spent": float(np.mean([p[-1][axis] for p in mine])),
                          "ratio": one.ratio, "low": one.low, "high": one.high}  # fmt: skip
        if arm != base:
            told["unshared"] = _unshared(results, base, arm)
        arms[arm] = told
    return {"world": world, "seeds": len({cell.seed for cell in results}), "base": base, "arms": arms}


def _unshared(results: Mapping[Cell, Points], base: str, arm: str) -> dict[str, float | None]:
    """By compute with long prompts, against chains no two of which share anything: a cache within each, rows."""
    alone = {c: [{**x, f"flops_{LONG}": x[f"alone_{LONG}"]} for x in p] for c, p in results.items() if c.arm == base}
    one = against({**results, **alone}, base, arm, f"flops_{LONG}")
    return {"ratio": one.ratio, "low": one.low, "high": one.high}


def _world(
    name: str, plan: Plan, runs: Runs, say: Callable[[str], None]
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """(figures of a world, None as long as its tuning is not finished or no seed is; its runs for the JSON)."""
    planned = plan.worlds[name]
    cells = [Cell(name, arm, rate, seed) for seed in plan.tuning for arm in planned.arms for rate in plan.rates]
    tuning: dict[Cell, Points] = {}
    for i, cell in enumerate(cells, 1):
        if (points := runs.take(cell)) is not None:
            say(f"{name}: tuning {i} of {len(cells)}")
            tuning[cell] = points
    kept: dict[str, Any] = {
        "tuning": {f"{c.arm} {c.rate:g} {c.seed}": round(_area(c, p), 5) for c, p in tuning.items()}
    }
    if len(tuning) < len(cells):
        return None, kept
    rates, base = tuned(tuning) if tuning else (dict.fromkeys(planned.arms, plan.rates[0]), CHAINS[0])
    arms = [base, *(arm for arm in planned.arms if arm not in CHAINS)]
    results: dict[Cell, Points] = {}
    for seed in plan.seeds:
        found = {cell: runs.take(cell) for cell in (Cell(name, arm, rates[arm], seed) for arm in arms)}
        whole = {cell: [{k: float(f"{v:.6g}") for k, v in p.items()} for p in points]
                 for cell, points in found.items() if points is not None}  # fmt: skip
        if len(whole) == len(arms):
            results |= whole
            say(f"{name}: seed {seed}")
    kept["runs"] = {f"{c.arm} {c.seed}": points for c, points in results.items()}
    return (figures(name, results, base, rates) if results else None), kept


def main(
    quick: bool = False, json_path: str | None = None, plot_path: str | None = None, *,
    runs: str | Path = "runs/learning2.jsonl", plan: Plan | None = None, stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Runs what is not on file yet, prints a table, returns what the JSON holds.

    quick  tiny runs of two arms, nothing kept: shows that it runs, measures nothing
    stop   asked before each run: true to make figures of what is there
    """
    plan, console = plan or (QUICK if quick else PLAN), Console(emoji=False)
    path = None if quick else Path(runs)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small products; more threads only wait for each other
    found: dict[str, Any] = {}
    kept: dict[str, Any] = {}
    try:
        have = Runs(plan, path, stop or (lambda: False))
        for name in plan.worlds:
            told, kept[name] = _world(name, plan, have, lambda line: console.print(line, highlight=False))
            if told is not None:
                found[name] = told
    finally:
        torch.set_num_threads(before)
    _print(console, found, quick)
    values = named(found)
    result = {
        "quick": quick,
        "figures": {name: {"value": value, "unit": "1"} for name, value in values.items()},
        "why_null": {"demo_time_vs_before": "not measured here: it compares two builds of the demo in one run"},
        "seeds": {name: found[name]["seeds"] if name in found else 0 for name in plan.worlds},
        "worlds": found,
        "runs": kept,
    }
    if json_path is not None:
        write_result(Path(json_path), result)
    if plot_path is not None:
        _plot(kept, found, Path(plot_path), console)
    return result


def markdown(found: Mapping[str, Any]) -> str:
    """The tables of docs/learning2.md out of the JSON's `worlds`."""
    lines = ["| world | arm | rate | start | final | tokens | compute 3 : 1 | compute 30 : 1 | env steps | seconds |",
             "|---|---|---:|---:|---:|---|---|---|---|---|"]  # fmt: skip
    for world, told in found.items():
        for arm, x in told["arms"].items():
            cells = [world, f"`{arm}`", f"{x['rate']:g}", f"{x['start']:.3f}", f"{x['final']:.3f}"]
            lines.append(f"| {' | '.join([*cells, *(_shown(x[axis]) for axis in AXES)])} |")
    return "\n".join(lines)


def results(told: Mapping[str, Any]) -> str:
    """What docs/learning2.md says below "Results", out of the JSON."""
    goals = {"hard_auc_ratio": 1.5, "hard_auc_ratio_low": 1.0, "hard_final_ratio": 2.0, "noisy_auc_ratio": 1.3,
             "easy_auc_ratio": 0.97, "long_context_compute_ratio": 2.0, "adaptive_worst_ratio": 0.97}  # fmt: skip
    lines = ["Made by `treewright bench learning2`; [figures](learning2.json) with every run's points.", ""]
    if not told["worlds"]:
        lines += ["**Nothing is shown yet**: no paired seed of any world is finished.", ""]
    for world, seeds in told["seeds"].items():
        tuning = len(told["runs"][world]["tuning"])
        of = f"{world}: {seeds} seeds"
        lines.append(f"- {of}, base `{told['worlds'][world]['base']}`" if seeds else f"- {of}, {tuning} tuning runs")
    lines += ["", "| figure | value | goal | |", "|---|---:|---:|---|"]
    for name, figure in told["figures"].items():
        value, goal = figure["value"], goals.get(name)
        verdict = "" if value is None or goal is None else "reached" if value >= goal else "**missed**"
        shown = "not measured" if value is None else f"{value:.2f}"
        lines.append(f"| `{name}` | {shown} | {'' if goal is None else f'{goal:g}'} | {verdict} |")
    if not told["worlds"]:
        return "\n".join(lines)
    lines += ["", "![success against tokens and against compute](learning2.svg)", ""]
    lines += ["Areas over those of the base, with intervals; *start* and *final* are success.", ""]
    lines += [markdown(told["worlds"]), ""]
    lines += ["Compute with long prompts against chains that share nothing (*unshared*):", ""]
    for world, found in told["worlds"].items():
        lines += [f"- {world}, `{arm}`: {_shown(x['unshared'])}" for arm, x in found["arms"].items() if "unshared" in x]
    return "\n".join(lines)


def write_page(json_path: str | Path, page: str | Path) -> None:
    """Puts `results` into the page, in place of what stands between the headings Results and Through …"""
    text = Path(page).read_text()
    head, rest = text.split("## Results\n", 1)
    after = rest[rest.index("\n## Through") :]
    told = json.loads(Path(json_path).read_text())
    Path(page).write_text(f"{head}## Results\n\n{results(told)}\n{after}")


def _shown(x: Mapping[str, Any]) -> str:
    if x["ratio"] is None:
        return "1"
    return f"{x['ratio']:.2f}" + ("" if x["low"] is None else f" ({x['low']:.2f} … {x['high']:.2f})")


def _print(console: Console, found: Mapping[str, Any], quick: bool) -> None:
    title = "area of success / that of chains (95 %)" + (" (quick: measures nothing)" if quick else "")
    table = Table("world", "seeds", "arm", "final", *AXES, title=title)
    for world, told in found.items():
        for arm, x in told["arms"].items():
            table.add_row(world, str(told["seeds"]), arm, f"{x['final']:.3f}", *(_shown(x[axis]) for axis in AXES))
    console.print(table)


def _plot(kept: Mapping[str, Any], found: Mapping[str, Any], path: Path, console: Console) -> None:
    try:
        make_figure = import_module("matplotlib.figure").Figure
    except ImportError:
        console.print("no plot: matplotlib is not installed; type: pip install 'treewright[plot]'")
        return
    shown: Sequence[str] = ("sampled_tokens", f"flops_{LONG}")
    figure = make_figure(figsize=(4.2 * max(1, len(found)), 6.6), layout="constrained")
    for column, (world, told) in enumerate(found.items()):
        for row, axis in enumerate(shown):
            axes = figure.add_subplot(len(shown), len(found), row * len(found) + column + 1)
            for arm in told["arms"]:
                runs = [p for name, p in kept[world]["runs"].items() if name.rsplit(" ", 1)[0] == arm]
                x = np.linspace(0, min(p[-1][axis] for p in runs), 41)
                curves = [np.interp(x, [q[axis] for q in p], [q["success"] for q in p]) for p in runs]
                axes.plot(x, np.mean(curves, 0), label=arm.replace("_", " "))
            axes.set_title(f"{world}, {told['seeds']} seeds")
            axes.set_xlabel(axis.replace("_", " "))
            axes.set_ylabel("success")
            axes.set_ylim(0, None)
            axes.grid(alpha=0.3)
    if found:
        axes.legend(fontsize="x-small")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
