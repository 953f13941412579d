"""`treewright bench learning-suites`: chains against best-first on real suites, at equal policy tokens.

The comparison of `bench learning` with the seedling, through the engine and the trainer. Finished runs are kept in
runs/learning_suites.jsonl; a sweep that is stopped goes on from there. Any registered suite can be named.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from treewright.agent.config import Config, load_config
from treewright.agent.runs.collect import World, open_worlds
from treewright.agent.runs.demo import open_suites
from treewright.agent.runs.evaluate import evaluate
from treewright.agent.runs.loop import Learner, grow_for_training, make_trainer, model_folder, tasks_for
from treewright.benchmarks.learning.sweep import ratio_interval
from treewright.benchmarks.learning.train import Curve

__all__ = ["ARMS", "PLAN", "QUICK", "SUITES", "Plan", "main"]

SUITES = ("workbench", "stdlib", "market")
ARMS: Mapping[str, tuple[str, ...]] = {
    "chains": ("search.rule=chains", "search.root_draws=4", "search.expansions=1", "train.tau=0"),
    "best_first": ("search.rule=best_first", "search.root_draws=4", "search.draws=2", "search.expansions=4"),
}
"""Both close every open node. Chains are four episodes compared with each other; best-first has the default credit."""


@dataclass(frozen=True, slots=True)
class Plan:
    """tokens sampled in a run, about `batch` of them in an iteration; by suite where named.

    checks  how often success is measured after the start;  tasks  held-out ones it is measured on, one rollout each
    """

    tokens: Mapping[str, int]
    batch: Mapping[str, int]
    checks: int
    tasks: Mapping[str, int]
    seeds: tuple[int, ...]

    def of(self, table: Mapping[str, int], suite: str) -> int:
        return table.get(suite, table[""])


PLAN = Plan(
    tokens={"": 8_000, "market": 2_000},
    batch={"": 1_000, "market": 500},
    checks=4,
    tasks={"": 100, "market": 30},
    seeds=(1, 2, 3),
)
QUICK = Plan(tokens={"": 300}, batch={"": 150}, checks=1, tasks={"": 4}, seeds=(1,))


def _config(folder: str, arm: str, seed: int) -> Config:
    return load_config(None, [f"folder={folder}", f"name={arm}", f"seed={1000 * seed}", *ARMS[arm]])


async def _run(world: World, arm: str, seed: int, plan: Plan) -> Curve:
    """One run: batches of trees on shuffled training tasks until the tokens are spent; success of the policy alone."""
    from treewright.agent.policies.opening import open_policy

    suite = world.suite.name
    worlds, budget = {suite: world}, plan.of(plan.tokens, suite)
    held_out = world.suite.tasks("test", plan.of(plan.tasks, suite))
    pool = tasks_for(worlds, "train", 0, 400)
    random.Random(seed).shuffle(pool)
    policy = open_policy("seedling")
    points: list[tuple[int, float]] = []
    spent = used = steps = 0
    per_tree = 100.0
    with tempfile.TemporaryDirectory() as folder:
        config = _config(folder, arm, seed)
        learner = Learner(make_trainer(config, model_folder("seedling")), Path(folder) / "checkpoints", 1)
        try:
            while True:
                if spent >= len(points) * budget / plan.checks:
                    found, _ = await evaluate(held_out, worlds, policy, seed=seed, run=f"check {seed}")
                    points.append((spent, found[suite].rate))
                if spent >= budget:
                    break
                count = max(2, round(plan.of(plan.batch, suite) / per_tree))
                tasks = [pool[i % len(pool)] for i in range(used, used + count)]
                trees = await grow_for_training(config, tasks, worlds, policy, f"{arm}/{seed}/{steps}", steps)
                tokens = sum(t.spent.policy_tokens + t.spent.closing_tokens for t in trees)
                spent, used, steps = spent + tokens, used + count, steps + 1
                per_tree += 0.5 * (tokens / len(trees) - per_tree)
                exact = [t for t in trees if t.exact]
                _, saved = await asyncio.to_thread(learner.learn, exact, {"iteration": steps})
                policy.load_weights(saved.path)  # type: ignore[attr-defined]
        finally:
            await policy.close()
    x, y = zip(*points, strict=True)
    return Curve(x, y, steps, used)


def _key(suite: str, arm: str, seed: int, plan: Plan) -> list[Any]:
    sizes = [plan.of(t, suite) for t in (plan.tokens, plan.batch, plan.tasks)]
    return [suite, arm, seed, *sizes, plan.checks]


def _read(path: Path | None) -> dict[str, dict[str, Any]]:
    lines = path.read_text().splitlines() if path and path.exists() else []
    return {json.dumps(r["key"]): r for r in map(json.loads, lines)}


def _write(path: Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


async def _sweep(names: Sequence[str], plan: Plan, path: Path | None, console: Console) -> list[dict[str, Any]]:
    """All runs, whole seeds first; those on file are not run again."""
    done = _read(path)
    async with open_worlds(names) as worlds:
        for seed in plan.seeds:
            for suite in names:
                for arm in ARMS:
                    key = _key(suite, arm, seed, plan)
                    if json.dumps(key) in done:
                        continue
                    began = time.monotonic()
                    curve = await _run(worlds[suite], arm, seed, plan)
                    area = curve.area(plan.of(plan.tokens, suite))
                    record = {
                        "key": key, "suite": suite, "arm": arm, "seed": seed, "auc": area,
                        "tokens": curve.tokens, "success": curve.success, "trees": curve.trees,
                        "seconds": round(time.monotonic() - began, 1),
                    }  # fmt: skip
                    done[json.dumps(key)] = record
                    curve_text = " ".join(f"{100 * s:.0f}" for s in curve.success)
                    console.print(f"{suite} {arm} seed {seed}: success {curve_text} %  ({record['seconds']} s)")
                    if path:
                        _write(path, record)
    order = [_key(s, a, seed, plan) for seed in plan.seeds for s in names for a in ARMS]
    return [done[json.dumps(key)] for key in order]


def _figures(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    values: dict[str, float] = {}
    for suite in names:
        areas = {arm: [r["auc"] for r in records if (r["suite"], r["arm"]) == (suite, arm)] for arm in ARMS}
        for arm, runs in areas.items():
            mine = [r for r in records if (r["suite"], r["arm"]) == (suite, arm)]
            values[f"auc_{arm}_{suite}"] = float(np.mean(runs))
            values[f"start_{arm}_{suite}"] = float(np.mean([r["success"][0] for r in mine]))
            values[f"final_{arm}_{suite}"] = float(np.mean([r["success"][-1] for r in mine]))
        if min(areas["chains"]) > 0:
            ratio = ratio_interval(areas["best_first"], areas["chains"])
            values |= {f"auc_ratio_{suite}{e}": v for e, v in zip(("", "_low", "_high"), ratio, strict=True)}
    return {name: {"value": value, "unit": "1"} for name, value in values.items()}


def main(
    quick: bool = False,
    json_path: Path | str | None = None,
    plot_path: Path | str | None = None,
    *,
    suites: Sequence[str] | None = None,
    runs: Path | str = "runs/learning_suites.jsonl",
    plan: Plan | None = None,
) -> dict[str, Any]:
    """Runs what is not on file yet, prints a table, writes JSON and a plot where asked; returns {"figures", "quick"}.

    quick   one tiny run of each arm on stdlib, nothing kept: shows that it runs, measures nothing
    suites  any registered ones instead of workbench, stdlib and market
    """
    import torch

    console, plan = Console(emoji=False), plan or (QUICK if quick else PLAN)
    names = open_suites(console, suites or (("stdlib",) if quick else SUITES))
    torch.set_num_threads(1)
    records = asyncio.run(_sweep(names, plan, None if quick else Path(runs), console))
    found = _figures(records, names)
    table = Table("suite", "arm", "start", "area", "final", "area / chains", "95 %", title="held-out success")
    for suite in names:
        for arm in ARMS:
            row = [f"{found[f'{k}_{arm}_{suite}']['value']:.3f}" for k in ("start", "auc", "final")]
            ratio = [
                found.get(f"auc_ratio_{suite}{e}", {"value": float("nan")})["value"] for e in ("", "_low", "_high")
            ]
            more = [f"{ratio[0]:.2f}", f"{ratio[1]:.2f} … {ratio[2]:.2f}"] if arm == "best_first" else ["1", ""]
            table.add_row(suite, arm, *row, *more)
    console.print(table)
    if quick:
        console.print("quick: too few tokens and tasks to say anything about learning")
    result = {"figures": found, "quick": quick, "runs": list(records)}
    if json_path:
        Path(json_path).write_text(json.dumps(result, indent=1) + "\n")
    if plot_path:
        _plot(records, names, Path(plot_path), console)
    return result


def _plot(records: Sequence[Mapping[str, Any]], names: Sequence[str], path: Path, console: Console) -> None:
    try:
        make_figure = import_module("matplotlib.figure").Figure
    except ImportError:
        console.print("no plot: matplotlib is not installed; type: pip install 'treewright[plot]'")
        return
    figure = make_figure(figsize=(4.0 * len(names), 3.4), layout="constrained")
    for i, suite in enumerate(names):
        axes = figure.add_subplot(1, len(names), i + 1)
        for arm, colour in zip(ARMS, ("C0", "C2"), strict=True):
            for j, r in enumerate(r for r in records if (r["suite"], r["arm"]) == (suite, arm)):
                label = arm.replace("_", " ") if j == 0 else None
                axes.plot(np.array(r["tokens"]) / 1000, r["success"], color=colour, alpha=0.7, label=label)
        axes.set_title(suite)
        axes.set_xlabel("thousand policy tokens sampled")
        axes.set_ylabel("held-out success")
        axes.set_ylim(0, None)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path)
