"""`treewright bench variance --name RUN`: how noisy a run's gradient is, for what it costs, before it is trained.

Trees are grown on the run's own tasks with its newest weights, the same tasks by each schedule, and the gradient of
each tree is taken with the real model: g = Σ coef ∇log π. One tree is one independent sample, since its root baseline
is a constant. What is compared is tr Cov(g) × cost of a tree: an optimizer step of a given budget averages budget/cost
trees, so its noise is that product over the budget. Schedules whose credit is unbiased have the same mean gradient, and
their products can be compared as they are. A biased estimator has another one; its product is shown at the length that
the reference's gradients have on the same trees, which says nothing of its direction. Noise over signal divides by the
squared length of the mean gradient, which few trees seldom show.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from treewright.agent.config import Config, SearchSection, load_config
from treewright.agent.policies.propose import open_proposer
from treewright.agent.runs.collect import World, collect, open_worlds, suites_of
from treewright.agent.runs.figures import write_result
from treewright.agent.runs.loop import make_trainer, model_folder
from treewright.agent.runs.setup import budget_of, evaluator_of, rule_of, settings_of, tasks_for
from treewright.agent.runs.stores import find_store
from treewright.envs.errors import TreewrightError
from treewright.search.meter import Meter, measured
from treewright.search.store import TreeStore
from treewright.search.tree import Tree
from treewright.search.types import Budget
from treewright.training.credit import Credit, estimate, options_taken
from treewright.training.credit.trees import tree_arrays
from treewright.training.flops import spent_on, work_of_model
from treewright.training.manifest import latest
from treewright.training.model import tree_logprobs
from treewright.training.pack import pack_trees
from treewright.training.packed import PackedBatch

__all__ = ["Cell", "Sample", "compared", "main", "moments"]

Floats = NDArray[np.float64]
RESAMPLES = 2000
LARGEST = 1 << 17  # weights up to which gradients are compared whole; above it by sketches
SKETCH = 1 << 15
SMALL = 1 << 22  # weights up to which several threads would only wait for each other
ESTIMATORS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "split_loo": ("split_loo", {}),
    "split_loo, tau 0": ("split_loo", {"tau": 0.0}),
    "split_fitted": ("split_fitted", {}),
    "split_fitted, no score": ("split_fitted", {"values": ""}),
    "rloo": ("rloo", {}),
    "grpo": ("grpo", {}),
    "tree_grpo": ("tree_grpo", {}),
    "treerl": ("treerl", {}),
}
QUICK = ("split_loo", "split_loo, tau 0", "split_fitted", "grpo")
SCHEDULES = ("chains", "late_branch", "split", "best_first", "stored")
COSTS = ("sampled_tokens", "prompt_computed", "trained_packed", "env_steps", "flops")


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """Trees of one schedule: ids of their tasks [n], gradients [n, d] by estimator, costs [n] by axis, root values."""

    tasks: tuple[str, ...]
    gradients: Mapping[str, Floats]
    costs: Mapping[str, Floats]
    values: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One schedule with one estimator; intervals are the bootstrap's 95 % over tasks.

    variance  tr Cov of a tree's gradient;  length  of its gradients against the reference's on the same trees
    signal    |E g|², unbiased, so it may be below 0
    ratio     by axis: variance × cost over that of the base, with (low, high); at equal length where `biased`
    noise     by axis: variance × cost / signal, what it costs until signal equals noise; None where that is not known
    """

    schedule: str
    estimator: str
    biased: bool
    trees: int
    variance: float
    length: float
    signal: float
    cost: Mapping[str, float]
    ratio: Mapping[str, tuple[float, float, float]]
    noise: Mapping[str, tuple[float | None, float | None, float | None]]


def moments(gradients: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """(tr Cov, |E g|²) of each resample: unbiased U-statistics over pairs of different trees.

    gradients  [n, d];  counts  [B, n] how often each tree is in a resample
    """
    gram = gradients @ gradients.T
    square = np.diag(gram)
    apart = (square[:, None] + square[None, :]) / 2 - gram
    np.fill_diagonal(apart, 0.0)
    together = gram - np.diag(square)
    pairs = counts.sum(1) ** 2 - (counts**2).sum(1)
    spread, signal = (np.asarray(((counts @ m) * counts).sum(1) / pairs, np.float64) for m in (apart, together))
    return spread, signal


def _counts(n: int, seed: int) -> Floats:
    """[1 + RESAMPLES, n]: every tree once, then resamples of at least two different ones."""
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(float)
    return np.concatenate([np.ones((1, n)), drawn[(drawn > 0).sum(1) > 1]])


def _interval(values: Floats) -> tuple[float, float, float]:
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return float(values[0]), float(low), float(high)


def _known(values: Floats) -> tuple[float | None, float | None, float | None]:
    """The same where some are infinite: those are not known."""
    first, low, high = _interval(np.where(np.isfinite(values), values, 1e300))
    return tuple(x if x < 1e299 else None for x in (first, low, high))  # type: ignore[return-value]


def compared(samples: Mapping[str, Sample], reference: str = "split_loo") -> list[Cell]:
    """Every schedule and estimator against the first schedule with `reference`.

    Schedules that were grown on the tasks of the first one are resampled together with it.
    """
    base = next(iter(samples.values()))
    drawn = _counts(len(base.tasks), 0)
    at_base, _ = moments(base.gradients[reference], drawn)
    out = []
    for schedule, sample in samples.items():
        paired = sample.tasks == base.tasks
        counts = drawn if paired else _counts(len(sample.tasks), 1)
        rows = min(len(counts), len(drawn))
        with_reference = sample.gradients[reference]
        for name, gradients in sample.gradients.items():
            biased = not name.startswith("split_")
            total = float((with_reference**2).sum())
            length = float((gradients * with_reference).sum()) / total if total else float("nan")
            variance, signal = moments(gradients, counts)
            ratio, noise, cost = {}, {}, {}
            for axis, spent in sample.costs.items():
                each = counts @ spent / counts.sum(1)
                product, own = variance * each, at_base * (drawn @ base.costs[axis] / drawn.sum(1))
                scale = length**2 if biased else 1.0
                with np.errstate(divide="ignore", invalid="ignore"):
                    ratio[axis] = _interval((product[:rows] / own[:rows]) / scale)
                    noise[axis] = _known(np.where(signal > 0, product / signal, np.inf))
                cost[axis] = float(spent.mean())
            out.append(
                Cell(
                    schedule=schedule, estimator=name, biased=biased, trees=len(sample.tasks), length=length,
                    variance=float(variance[0]), signal=float(signal[0]), cost=cost, ratio=ratio, noise=noise,
                )
            )  # fmt: skip
    return out


# -- trees and their gradients ----------------------------------------------------------------------------------------


def _section(config: Config, schedule: str, turns: int) -> tuple[SearchSection, Budget]:
    """How a schedule grows its trees: to their ends by its own rule; `best_first` within the run's budget."""
    own = {"late_branch": {"steps": turns}}.get(schedule, {})
    section = config.search.model_copy(update={"rule": schedule, "options": own})
    if schedule == "best_first":
        return section, budget_of(section)
    return section, replace(budget_of(section), expansions=1 if schedule == "chains" else None)


async def _grown(
    config: Config, schedules: Sequence[str], worlds: Mapping[str, World], policy: Any, count: int
) -> dict[str, list[Tree]]:
    tasks, turns = tasks_for(worlds, "train", 0, max(1, count // len(worlds))), 4
    tasks = list({(t.suite, t.id): t for t in tasks}.values())
    out = {}
    for schedule in schedules:
        section, budget = _section(config, schedule, turns)
        trees = await collect(
            tasks, worlds, policy, rule=rule_of(section), budget=budget, evaluator=evaluator_of(section, policy),
            settings=settings_of(section, run=f"variance/{schedule}", seed=config.seed), concurrency=section.trees,
        )  # fmt: skip
        out[schedule] = [tree for tree in trees if not tree.lost]
        if schedule == "chains":
            turns = max(1, round(float(np.median([t.turns(leaf) for t in trees for leaf in t.leaves()] or [4]))))
    return out


def _stored(config: Config, versions: Sequence[str], count: int) -> list[Tree]:
    """The newest finished, exact trees of the run that its present weights drew."""
    try:
        place = find_store(config.store_at)
    except TreewrightError:
        return []
    with TreeStore.open(place, read_only=True) as store:
        rows = [r for r in store.trees(split="train", status="done") if r.exact and r.policy_version in versions]
        return [store.load(row.tree_id) for row in rows[-count:]]


def _gradients(
    trainer: Any, sketch: Sketch, tree: Tree, credits: Mapping[str, Credit]
) -> tuple[dict[str, Floats], dict[str, float]]:
    """The gradient of one tree by each estimator, from one forward pass, and what an update on it costs."""
    arrays, most = tree_arrays([tree]), trainer.settings.max_tokens
    weights = [p for p in trainer.model.parameters() if p.requires_grad]
    paid: list[PackedBatch] = []
    logps: list[torch.Tensor] = []
    out: dict[str, Floats] = {}
    for label, credit in credits.items():
        packs = pack_trees([tree], arrays, credit, most, every=True)
        if not logps:
            paid = pack_trees([tree], arrays, credit, most)  # nothing for a tree that teaches nothing
            logps = [_logp(trainer, pack) for pack in packs]
        terms = [(torch.from_numpy(p.coef).to(logp) * logp).sum() for p, logp in zip(packs, logps, strict=True)]
        if any(np.any(pack.coef) for pack in packs):
            wanted = torch.stack(terms).sum()
            parts = torch.autograd.grad(wanted, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
            out[label] = sketch.of(parts)
        else:
            out[label] = np.zeros(SKETCH if not sketch.whole else sum(w.numel() for w in weights))
    cost = spent_on(trainer.model, paid, 1, reference=False) | {"tokens": float(sum(map(len, paid)))}
    return out, cost


def _logp(trainer: Any, pack: PackedBatch) -> torch.Tensor:
    ids, plan, rows, targets = trainer._inputs(pack)
    return tree_logprobs(trainer.model, ids, plan, rows, targets, trainer.logit_rows)[0]


class Sketch:
    """Gradients of `size` numbers as SKETCH sums of them with random signs (hashed features, arXiv 0902.2206), whose
    products are those of the gradients up to 1/√SKETCH of their lengths; those of up to LARGEST numbers as they are."""

    def __init__(self, size: int) -> None:
        random = torch.Generator().manual_seed(0)
        self.whole = size <= LARGEST
        if not self.whole:
            self._place = torch.randint(SKETCH, (size,), generator=random)
            self._sign = torch.randint(2, (size,), generator=random).float() * 2 - 1

    def of(self, parts: Sequence[torch.Tensor]) -> Floats:
        """Float64 [SKETCH], or [size]."""
        flat = torch.cat([part.detach().flatten().cpu().float() for part in parts])
        if not self.whole:
            flat = torch.zeros(SKETCH).index_add_(0, self._place, flat * self._sign)
        return flat.numpy().astype(np.float64)


def _credits(label: str, trees: Sequence[Tree], baselines: Mapping[str, float]) -> dict[str, Credit]:
    """By tree id. Each tree is credited by itself; what `split_fitted` fits, it fits on other trees of the suite."""
    name, options = ESTIMATORS[label]
    out: dict[str, Credit] = {}
    for suite in dict.fromkeys(tree.task.suite for tree in trees):
        mine = [tree for tree in trees if tree.task.suite == suite]
        arrays, told = tree_arrays(mine), {"root_baseline": baselines.get(suite, 0.0), "allow_biased": True}
        arrays = arrays.with_(group=arrays.tree)
        for batch in [mine] if name == "split_fitted" else [[tree] for tree in mine]:
            some = arrays if name == "split_fitted" else tree_arrays(batch)
            credit = estimate(name, some, **options_taken(name, told), **options)
            for i, tree in enumerate(batch):
                here = some.tree == i
                parts = {x: getattr(credit, x)[here] for x in ("value", "coef", "weight", "ess")}
                out[tree.tree_id] = Credit(**parts)
    return out


def _sample(trainer: Any, trees: Sequence[Tree], estimators: Sequence[str], baselines: Mapping[str, float]) -> Sample:
    gradients: dict[str, list[Floats]] = {name: [] for name in estimators}
    credits = {name: _credits(name, trees, baselines) for name in estimators}
    costs, work = [], work_of_model(trainer.model)
    sketch = Sketch(sum(p.numel() for p in trainer.model.parameters() if p.requires_grad))
    for tree in trees:
        found, training = _gradients(trainer, sketch, tree, {name: credits[name][tree.tree_id] for name in estimators})
        for name in estimators:
            gradients[name].append(found[name])
        costs.append((measured(tree, work) + Meter.trained(training)).as_dict())
    axes = [axis for axis in COSTS if all(cost[axis] is not None for cost in costs)]
    return Sample(
        tuple(f"{t.task.suite}/{t.task.id}" for t in trees),
        {name: np.stack(found) for name, found in gradients.items()},
        {axis: np.asarray([cost[axis] for cost in costs], float) for axis in axes},
        np.asarray([_value(tree) for tree in trees]),
    )


def _value(tree: Tree) -> float:
    return float(estimate("split_loo", tree_arrays([tree]), allow_biased=True).value[0])


async def _samples(config: Config, quick: bool, count: int, console: Console) -> tuple[dict[str, Sample], str]:
    saved = latest(config.home / "checkpoints")
    source: Any = model_folder(config.policy.spec) if saved is None else saved.path
    trainer = make_trainer(config, source)
    policy = open_proposer(config.policy.model_copy(update={"spec": f"hf:{source}"}))
    try:
        async with open_worlds(suites_of(config), config.worlds.sessions or None, config.worlds.deadline) as worlds:
            grown = await _grown(config, SCHEDULES[:-1], worlds, policy, count)
    finally:
        await policy.close()
    stored = _stored(config, [trainer.version(), *trainer.versions, *trainer.aliases], count)
    if len(stored) > 2:
        grown["stored"] = stored
    shared = set.intersection(*({(t.task.suite, t.task.id) for t in grown[s]} for s in SCHEDULES[:-1]))
    for schedule in SCHEDULES[:-1]:
        grown[schedule] = [t for t in grown[schedule] if (t.task.suite, t.task.id) in shared]
    if len(shared) < 3:
        raise TreewrightError(f"only {len(shared)} tasks have a tree of every schedule; at least 3 are needed")
    values: dict[str, list[float]] = {}
    for tree in (t for schedule in SCHEDULES[:-1] for t in grown[schedule]):
        values.setdefault(tree.task.suite, []).append(_value(tree))
    baselines = {suite: float(np.nanmean(found)) for suite, found in values.items()}
    samples, estimators, threads = {}, QUICK if quick else tuple(ESTIMATORS), torch.get_num_threads()
    if sum(p.numel() for p in trainer.model.parameters()) <= SMALL:
        torch.set_num_threads(1)
    try:
        for schedule, trees in grown.items():
            console.print(f"{schedule}: {len(trees)} trees, gradients by {len(estimators)} estimators")
            samples[schedule] = _sample(trainer, trees, estimators, baselines)
    finally:
        torch.set_num_threads(threads)
    return samples, str(source)


def _config(name: str | None) -> Config:
    """The settings that a run was begun with; without a name the packaged model on `kg`."""
    if name is None:
        return load_config(None, ['worlds.suites=["kg"]', "name=variance"])
    config = load_config(None, (), {"name": name}, remember=True)
    if not config.home.exists():
        raise TreewrightError(f"there is no run {name!r}, {config.home} is missing; type: treewright collect -n {name}")
    return config


def _table(cells: Sequence[Cell]) -> Table:
    axes = [axis for axis in ("sampled_tokens", "flops") if all(axis in cell.ratio for cell in cells)]
    shown = {"sampled_tokens": "× tokens", "flops": "× FLOP"}
    table = Table("schedule", "estimator", "tokens", *(f"noise {shown[a]}" for a in axes), "noise/signal, tokens")
    for cell in cells:
        ratios = [f"{r:.2f} ({low:.2f} … {high:.2f})" if r == r else "no gradient" for r, low, high in
                  (cell.ratio[a] for a in axes)]  # fmt: skip
        first, low, high = cell.noise["sampled_tokens"]
        most = "?" if high is None else f"{high:.2g}"
        until = "unknown" if first is None else f"{first:.2g} ({low or 0:.2g} … {most})"
        table.add_row(
            cell.schedule, cell.estimator + "*" * cell.biased, f"{cell.cost['sampled_tokens']:.0f}", *ratios, until
        )
    return table


def main(
    quick: bool = False, json_path: str | None = None, plot_path: str | None = None, name: str | None = None,
    tasks: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Prints the table and returns the figures.

    name   a run: its worlds, its newest weights and its stored trees; None: the packaged model on kg
    tasks  of all suites together; 12 with `quick`, else 48
    """
    began, console = time.monotonic(), Console()
    if plot_path is not None:
        raise TreewrightError("bench variance draws nothing; leave --plot out")
    config = _config(name)
    samples, source = asyncio.run(_samples(config, quick, tasks or (12 if quick else 48), console))
    cells = compared(samples)
    console.print(_table(cells))
    base = cells[0]
    console.print(
        f"noise of a budget over that of {base.schedule} with {base.estimator}, below 1 is better. * biased: at the "
        "base's length, whatever its direction. Unknown: these trees do not show where the gradient points"
    )
    result = {
        "quick": quick, "weights": source, "seconds": round(time.monotonic() - began, 1),
        "success": {schedule: float(np.nanmean(sample.values)) for schedule, sample in samples.items()},
        "cells": [
            {"schedule": c.schedule, "estimator": c.estimator, "biased": c.biased, "trees": c.trees,
             "variance": c.variance, "length": c.length, "signal": c.signal, "cost": dict(c.cost),
             "ratio": {a: list(v) for a, v in c.ratio.items()}, "noise": {a: list(v) for a, v in c.noise.items()}}
            for c in cells
        ],
    }  # fmt: skip
    result = dict(json.loads(json.dumps(result)))
    if json_path is not None:
        write_result(Path(json_path), result)
    return result
