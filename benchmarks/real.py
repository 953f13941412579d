"""`treewright bench real`: the whole line with a real pretrained model, `hf:smollm2`, in the sections of `SECTIONS`.

It takes hours on two cores; `--only valid|exact|memory|learning` measures a part and keeps the others' figures. Written
as `bench search` writes its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from treewright.agent.config import Config, load_config
from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.prompts import template_for
from treewright.agent.policies.worked import save_worked
from treewright.agent.runs.collect import UNLIMITED, World, open_worlds
from treewright.agent.runs.doctor import examined
from treewright.agent.runs.evaluate import Evaluation, evaluate, paired_gain
from treewright.agent.runs.imitation import episode_rows, oracle_episodes, worked_examples
from treewright.agent.runs.loop import Learner, make_trainer, model_folder, run_loop, tasks_for
from treewright.agent.runs.shared import shared_model
from treewright.benchmarks import search
from treewright.benchmarks.real_parts import FULL, QUICK, Figures, kept, measuring, share_interval, size_of, sized

__all__ = ["SECTIONS", "SPEC", "learning_figures", "main", "memory_figures", "valid_figures"]

SPEC = "hf:smollm2"
SECTIONS = (
    "treewright.benchmarks.real:valid_figures",
    "treewright.benchmarks.real_exact:exact_figures",
    "treewright.benchmarks.real:memory_figures",
    "treewright.benchmarks.real:learning_figures",
)
SUITES, TAUGHT = ("kg", "workbench", "stdlib"), ("kg", "workbench")


def main(
    quick: bool = False, json_path: str | None = None, plot_path: str | None = None, *,
    only: Sequence[str] | None = None, size: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measures and prints; see `treewright.benchmarks.search.main`.

    size  how much of each part, such as "tasks=4,trees=10", see `Size`
    """
    with measuring(sized(size, QUICK if quick else FULL), None if quick else Path("runs") / "real"):
        return search.main(quick, json_path, plot_path, SECTIONS, only=only)


def valid_figures(quick: bool, spec: str = SPEC) -> Figures:
    """Share of the draws that are actions of the world, untouched: as it is, with the grammar, with worked examples,
    with both. An interval takes each task for one observation, since the draws of a rollout are alike."""
    size = size_of(quick)
    names = SUITES[: size.suites]
    ways = ("plain", "grammar") if spec == "seedling" else ("plain", "grammar", "examples", "both")
    out, best = Figures({"valid/tasks": (float(size.tasks), "tasks")}), dict[str, float]()
    for name in names:
        for way in ways:
            of = {"part": "valid", "spec": spec, "suite": name, "way": way, "tasks": size.tasks}
            found = kept(of, partial(_valid, spec, name, way, size.tasks))
            out |= found
            if way != "plain":
                best[name] = max(best.get(name, 0.0), found[f"valid/{way}/{name}"][0])
    return {**out, "real_valid_share_min": (min(best.values()), "share of draws")}


def _valid(spec: str, name: str, way: str, tasks: int) -> Figures:
    """One suite, prompted in one way."""

    async def work(folder: Path) -> Figures:
        async with open_worlds([name]) as worlds:
            options: dict[str, Any] = {"grammar": True} if way in ("grammar", "both") else {}
            if way in ("examples", "both"):
                file = folder / "examples.json"
                save_worked(file, await worked_examples(worlds, 2, 12 if tasks < 4 else 40))
                options["template_options"] = {"examples": str(file)}
            policy = open_policy(spec, **options)
            try:
                (one,) = await examined(policy, worlds, tasks_for(worlds, "test", 0, tasks), UNLIMITED)
            finally:
                await policy.close()
        low, high = share_interval(one.share, tasks)
        return {
            f"valid/{way}/{name}": (one.share, "share of draws"),
            f"valid_low/{way}/{name}": (low, "share of draws"),
            f"valid_high/{way}/{name}": (high, "share of draws"),
            f"valid_draws/{way}/{name}": (float(one.draws), "draws"),
            f"solved/{way}/{name}": (one.solved, "share of tasks"),
        }

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(work(Path(folder)))


def memory_figures(quick: bool, spec: str = SPEC) -> Figures:
    """The largest resident memory of `treewright loop` on this model, one round, in a process of its own."""
    settings = [
        "loop.iterations=1",
        f"loop.tasks={2 if quick else 16}",
        "train.max_tokens=1024",
        "train.chunk_tokens=1024",
    ]
    if quick:
        settings += ["search.expansions=1", "search.root_draws=2"]
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-P", "-m", "treewright", "loop", "--name", "m", "--suites", "kg", "--policy", spec]
        for setting in settings:
            words += ["--set", setting]
        subprocess.run(words, cwd=folder, check=True, capture_output=True, env=dict(os.environ))
        last = json.loads((Path(folder) / "runs/m/metrics.jsonl").read_text().splitlines()[-1])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    return {
        "real_peak_gb": (peak, "GB"),
        "loop/seconds_a_round": (float(last["seconds"]), "s"),
        "loop/sampler_gap": (float(last["sampler_gap"] or 0.0), "nats"),
    }


def learning_figures(quick: bool, spec: str = SPEC) -> Figures:
    """Imitation of oracles, then training by trees with three seeds: success of the policy alone on held-out tasks."""
    demos, held_out, rounds, seeds = (6, 4, 1, (0,)) if quick else (100, 100, 6, (0, 1, 2))
    names = TAUGHT[:1] if quick else TAUGHT

    async def work(home: Path) -> Figures:
        async with open_worlds(names) as worlds:
            todo = tasks_for(worlds, "test", 0, held_out)
            begun = await _imitated(_config(home / "begun", spec), worlds, demos)
            before = await _alone(f"hf:{begun}", worlds, todo)
            out = {f"imitation/{name}": (100 * one.rate, "%") for name, one in before.items()}
            out["real_after_imitation_min"] = (100 * min(one.rate for one in before.values()), "%")
            gains: dict[str, list[tuple[Evaluation, Evaluation]]] = {name: [] for name in names}
            for seed in seeds:
                more = [f"seed={seed}", f"loop.iterations={rounds}", f"loop.tasks={2 if quick else 24}"]
                cfg = _config(home / f"seed-{seed}", f"hf:{begun}", *more)
                tokens = await _looped(cfg, worlds)
                out[f"trees/{seed}/sampled_tokens"] = (tokens, "tokens")
                after = await _alone(str(_newest(cfg)), worlds, todo)
                for name, one in after.items():
                    gains[name].append((before[name], one))
                    out[f"trees/{seed}/{name}"] = (100 * one.rate, "%")
            found = [
                paired_gain(_pooled([b for b, _ in pairs]), _pooled([a for _, a in pairs])) for pairs in gains.values()
            ]
            out["real_gain_points_min"] = (min(gain for gain, _, _ in found), "points")
            out["real_gain_low_min"] = (min(low for _, low, _ in found), "points")
            return out

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(work(Path(folder)))


def _config(home: Path, spec: str, *settings: str) -> Config:
    given = ["train.max_tokens=2048", "train.max_kl=0.01", f"folder={home}", *settings]
    return load_config(None, given, {"policy.spec": spec, "name": home.name})


async def _imitated(cfg: Config, worlds: Mapping[str, World], demos: int) -> Path:
    from treewright.training.recipes.imitate import imitation_rate, learn_rows

    learner = Learner(make_trainer(cfg, model_folder(cfg.policy.spec)), cfg.home / "checkpoints", 1, cfg.policy.spec)
    template = template_for(learner.trainer.tokenizer)
    episodes = await oracle_episodes(worlds, tasks_for(worlds, "train", 0, demos))
    rows = [episode_rows(episode, template) for episode in episodes]
    learn_rows(learner.trainer, rows, lr=imitation_rate(learner.trainer.model))
    return Path(learner.save({"recipe": "sft"}).path)


async def _looped(cfg: Config, worlds: Mapping[str, World]) -> float:
    """The sampled tokens of a loop."""
    learner = Learner(make_trainer(cfg, model_folder(cfg.policy.spec)), cfg.home / "checkpoints", 1, cfg.policy.spec)
    model = shared_model(cfg, learner.trainer)
    policy = open_policy(cfg.policy.spec, **({} if model is None else {"model": model}))
    try:
        await run_loop(cfg, worlds, policy, learner)
    finally:
        await policy.close()
    return sum(done.stats["sampled_tokens"] for done in learner.rounds)


def _newest(cfg: Config) -> str:
    return f"hf:{max((cfg.home / 'checkpoints').glob('step-*'))}"


async def _alone(spec: str, worlds: Mapping[str, World], tasks: Sequence[Any]) -> dict[str, Evaluation]:
    policy = open_policy(spec)
    try:
        return (await evaluate(tasks, worlds, policy))[0]
    finally:
        await policy.close()


def _pooled(found: Sequence[Evaluation]) -> Evaluation:
    """The mean success over seeds, task by task."""
    mean = np.mean([one.success for one in found], axis=0)
    return replace(found[0], success=tuple(map(float, mean)))
