"""`treewright bench learning-loop`: the same success for less? Trees against chains on every axis of the meter.

The larger half of the second experiment, whose plan is this file and docs/learning2.md; no counted run of it was made.
It goes through the engine, the loop and the trainer with the packaged model. Runs are kept in runs/learning-loop: each
is a run of `treewright loop` with its metrics.jsonl, and one that was stopped goes on from its newest checkpoint.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from treewright.agent.config import Config, load_config
from treewright.agent.policies.opening import open_policy
from treewright.agent.runs.collect import World, collect, open_worlds
from treewright.agent.runs.compared import Arm, Curve, arms_of
from treewright.agent.runs.evaluate import evaluate
from treewright.agent.runs.figures import write_result
from treewright.agent.runs.loop import Learner, make_trainer, model_folder, resume_loop, run_loop, tasks_for
from treewright.agent.runs.rounds import untold
from treewright.agent.runs.setup import budget_of, evaluator_of, rule_of, settings_of
from treewright.benchmarks.learning.cells import Cell, whole_seeds
from treewright.envs.retrieval.kg import make_suite
from treewright.envs.types import Suite, Task
from treewright.search.meter import Meter
from treewright.search.store import TreeStore
from treewright.training.track import FILE, open_metrics, read_metrics

__all__ = ["ARMS", "AXES", "PLAN", "QUICK", "WORLDS", "Cell", "Plan", "bases", "cells", "figures", "main", "tuned"]

WORLDS: Mapping[str, Suite] = {
    "rare": make_suite(hops=(5, 5)),
    "noisy": make_suite(hops=(2, 4), reward_flip=0.15),
    "easy": make_suite(hops=(2, 2)),
}
CLEAN: Mapping[str, Suite] = {**WORLDS, "noisy": make_suite(hops=(2, 4))}
"""Success is measured without flips."""

GIVEN = ("search.evaluator=likelihood", "search.expansions=64")
BIASED = ("train.allow_biased=true",)
NOISE = ("search.rule=adaptive", 'search.options={"by": "noise", "cost": "flops", "steps": STEPS}')
SPLIT = ("search.rule=split", "search.root_draws=2", "search.draws=2")
ARMS: Mapping[str, tuple[str, ...]] = {
    "chains": ("search.rule=chains", "search.root_draws=8", "train.tau=0"),
    "chains_4": ("search.rule=chains", "search.root_draws=4", "train.tau=0"),
    "chains_16": ("search.rule=chains", "search.root_draws=16", "train.tau=0"),
    "late": ("search.rule=late_branch", 'search.options={"steps": STEPS}'),
    "split": SPLIT,
    "adaptive": NOISE,
    "curriculum": (*NOISE, "loop.curriculum.share=0.33", "loop.curriculum.sources=SOURCE"),
    "rows": (*SPLIT, "train.estimator=grpo", *BIASED),
    "tree_grpo": ("search.rule=reexpand", "search.root_draws=4", "search.expansions=32", "train.estimator=tree_grpo",
                  *BIASED),
}  # fmt: skip
"""`chains` with its group size tuned is the best of the three of chains on the tuning seeds."""
BASE = ("chains", "chains_4", "chains_16")
STEPS = {"rare": 6, "noisy": 4, "easy": 3}
"""Turns that an episode usually takes, which late branching asks for."""
AXES = ("sampled_tokens", "flops", "env_steps", "prompt_computed")


@dataclass(frozen=True, slots=True)
class Plan:
    """tokens sampled in a run, `tasks` of an iteration, `checks` of success on `held_out` tasks, one rollout each.

    source  tasks that the curriculum's source is searched for, with `search` expansions
    """

    worlds: tuple[str, ...] = tuple(WORLDS)
    arms: tuple[str, ...] = tuple(ARMS)
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    tuning: tuple[int, ...] = (101, 102, 103)
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    tokens: int = 30_000
    tasks: int = 12
    checks: int = 10
    held_out: int = 200
    source: int = 60
    search: int = 24


PLAN = Plan()
QUICK = Plan(("rare",), ("chains", "curriculum"), (1e-3,), (), (1,), 300, 2, 1, 4, 2, 4)


def cells(plan: Plan, seeds: Sequence[int], rates: Mapping[tuple[str, str], float] | None = None) -> list[Cell]:
    """Whole seeds first; every rate where `rates` names none."""
    return [Cell(*one) for one in whole_seeds(plan.worlds, plan.arms, plan.rates, seeds, rates)]


def _config(cell: Cell, home: Path, plan: Plan) -> Config:
    source = str(home / f"{cell.world}-source-{cell.seed}")
    own = [s.replace("SOURCE", source).replace("STEPS", str(STEPS[cell.world])) for s in ARMS[cell.arm]]
    return load_config(
        None, [f"folder={home / cell.name}", f"name={cell.name}", f"seed={1000 * cell.seed}", *GIVEN, *own,
               f"train.lr={cell.rate}", f"loop.tasks={plan.tasks}", "loop.checkpoints=1", 'worlds.suites=["kg"]']
    )  # fmt: skip


async def _source(cell: Cell, home: Path, plan: Plan, worlds: Mapping[str, World]) -> None:
    """Trees that a search with the first weights finds, for the curriculum to begin in. Its cost counts."""
    folder = home / f"{cell.world}-source-{cell.seed}"
    config = load_config(None, [f"folder={folder}", "name=source", f"seed={1000 * cell.seed + 7}",
                                f"search.expansions={plan.search}"])  # fmt: skip
    policy = open_policy("seedling")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TreeStore.open(config.store_at) as store:
            await collect(
                tasks_for(worlds, "train", 0, plan.source), worlds, policy, rule=rule_of(config.search), store=store,
                budget=budget_of(config.search), evaluator=evaluator_of(config.search, policy),
                settings=settings_of(config.search, run="source", seed=config.seed),
            )  # fmt: skip
    finally:
        await policy.close()


def _spent(config: Config) -> tuple[Meter, int]:
    """What the run has cost so far, and its rounds."""
    rows = read_metrics(config.home / FILE)
    return sum((Meter.of(row["meter"]) for row in rows), Meter()), len(rows)


async def run_cell(cell: Cell, home: Path, plan: Plan) -> list[dict[str, Any]]:
    """The run's points: success of the policy alone, and what it had cost by then. What is on file is not run again."""
    config, path = _config(cell, home, plan), home / cell.name / "points.json"
    points: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    if len(points) > plan.checks:
        return points
    seeded = {"kg": replace(WORLDS[cell.world], tasks=_shuffled(WORLDS[cell.world], cell.seed))}
    async with open_worlds(list(seeded.values())) as worlds, open_worlds([CLEAN[cell.world]]) as clean:
        if "SOURCE" in "".join(ARMS[cell.arm]):
            await _source(cell, home, plan, worlds)
        learner = Learner(make_trainer(config, model_folder("seedling")), config.home / "checkpoints", 1)
        policy = open_policy("seedling")
        try:
            with TreeStore.open(config.store_at) as store, open_metrics(config.home, cell.name) as metrics:
                while True:
                    first = await resume_loop(config, learner, policy)
                    lost = untold(learner.folder, learner.trainer.versions)
                    if lost is not None and not metrics.holds(lost.step):
                        metrics.log(lost)
                    meter, rounds = _spent(config)
                    if meter.sampled_tokens >= len(points) * plan.tokens / plan.checks:
                        held_out = CLEAN[cell.world].tasks("test", plan.held_out)
                        found, _ = await evaluate(held_out, clean, policy, seed=cell.seed, run=f"check {cell.seed}")
                        points.append({"success": found["kg"].rate, "meter": meter.as_dict()})
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_text(json.dumps(points))
                        if len(points) > plan.checks:
                            return points
                    left = len(points) * plan.tokens / plan.checks - meter.sampled_tokens
                    many = math.ceil(left / max(1.0, meter.sampled_tokens / rounds)) if rounds else 1
                    loop = config.loop.model_copy(update={"iterations": first + min(max(many, 1), 8)})
                    await run_loop(
                        config.model_copy(update={"loop": loop}), worlds, policy, learner, store, first,
                        on_round=lambda done: metrics.log(done.update(learner.trainer.steps)),
                    )  # fmt: skip
        finally:
            await policy.close()


def _shuffled(suite: Suite, seed: int) -> Any:
    """The suite's training tasks from another place for each seed; held-out ones are the same for all."""

    def tasks(split: str, count: int) -> list[Task]:
        begin = 500 * (seed % 50) if split == "train" else 0
        return list(suite.tasks(split, begin + count)[begin:])

    return tasks


def _curves(results: Mapping[Cell, list[dict[str, Any]]], axis: str) -> list[Curve]:
    return [
        Curve(cell.name, cell.arm, str(cell.seed), tuple(float(p["meter"][axis]) for p in points),
              tuple(float(p["success"]) for p in points))
        for cell, points in results.items()
    ]  # fmt: skip


def tuned(results: Mapping[Cell, list[dict[str, Any]]]) -> dict[tuple[str, str], float]:
    """By (world, arm) the rate of the largest mean area over sampled tokens; of equal ones the smallest."""
    areas: dict[tuple[str, str], dict[float, list[float]]] = {}
    for cell, curve in zip(results, _curves(results, "sampled_tokens"), strict=True):
        areas.setdefault((cell.world, cell.arm), {}).setdefault(cell.rate, []).append(curve.area(curve.spent[-1]))
    return {key: min(by, key=lambda rate: (-sum(by[rate]) / len(by[rate]), rate)) for key, by in areas.items()}


def bases(tuning: Mapping[Cell, list[dict[str, Any]]], rates: Mapping[tuple[str, str], float]) -> dict[str, str]:
    """By world the arm of chains, of those in BASE, with the largest mean area at its rate on the tuning seeds."""
    areas: dict[str, dict[str, list[float]]] = {}
    for cell, curve in zip(tuning, _curves(tuning, "sampled_tokens"), strict=True):
        if cell.arm in BASE and rates[cell.world, cell.arm] == cell.rate:
            areas.setdefault(cell.world, {}).setdefault(cell.arm, []).append(curve.area(curve.spent[-1]))
    return {world: max(by, key=lambda arm: sum(by[arm]) / len(by[arm])) for world, by in areas.items()}


def figures(
    results: Mapping[Cell, list[dict[str, Any]]], base: Mapping[str, str] | None = None
) -> dict[str, dict[str, dict[str, Arm]]]:
    """{world: {axis: {arm: its areas against the base}}}, with the paired bootstrap over seeds.

    base  by world; else chains
    """
    out: dict[str, dict[str, dict[str, Arm]]] = {}
    for world in dict.fromkeys(cell.world for cell in results):
        first = (base or {}).get(world, BASE[0])
        order = sorted((cell for cell in results if cell.world == world), key=lambda cell: cell.arm != first)
        mine = {cell: results[cell] for cell in order}
        out[world] = {axis: {a.name: a for a in arms_of(_curves(mine, axis))[0]} for axis in AXES}
    return out


def main(
    quick: bool = False, json_path: str | None = None, plot_path: str | None = None, *,
    home: str | Path | None = None, plan: Plan | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Runs what is not on file yet, prints ratios to the base on every axis, returns what the JSON holds.

    quick  tiny runs of two arms: shows that it runs, measures nothing
    """
    import tempfile

    plan, console = plan or (QUICK if quick else PLAN), Console(emoji=False)
    with tempfile.TemporaryDirectory() as nowhere:
        at = Path(home) if home is not None else Path(nowhere) if quick else Path("runs/learning-loop")

        def run(which: Sequence[Cell]) -> dict[Cell, list[dict[str, Any]]]:
            out = {}
            for i, cell in enumerate(which, 1):
                console.print(f"{i} of {len(which)}: {cell.name}", highlight=False)
                out[cell] = asyncio.run(run_cell(cell, at, plan))
            return out

        tuning = run(cells(plan, plan.tuning))
        rates = tuned(tuning) if tuning else {(w, a): plan.rates[0] for w in plan.worlds for a in plan.arms}
        results = run(cells(plan, plan.seeds, rates))
    base = bases(tuning, rates)
    found = figures(results, base)
    table = Table("world", "arm", *AXES, title="area / base (95 %)" + (" (quick: measures nothing)" if quick else ""))
    for world, axes in found.items():
        for arm in axes[AXES[0]]:
            table.add_row(world, arm, *(_shown(axes[axis][arm]) for axis in AXES))
    console.print(table)
    result = {
        "quick": quick,
        "rates": {f"{world} {arm}": rate for (world, arm), rate in rates.items()},
        "base": base,
        "ratios": {w: {x: {a: [arm.ratio, arm.low, arm.high] for a, arm in arms.items()} for x, arms in axes.items()}
                   for w, axes in found.items()},
        "runs": {cell.name: points for cell, points in {**tuning, **results}.items()},
    }  # fmt: skip
    if json_path is not None:
        write_result(Path(json_path), result)
    return result


def _shown(arm: Arm) -> str:
    if arm.ratio is None:
        return "–"
    return f"{arm.ratio:.2f}" + ("" if arm.low is None else f" ({arm.low:.2f} … {arm.high:.2f})")
