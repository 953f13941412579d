"""The demo with a real model: it imitates oracles first, since a model that never saw these worlds solves next to
nothing in them; then the demo goes on as it does with the packaged one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from treewright.agent.config import Config
from treewright.agent.policies.prompts import prompt_options, template_for
from treewright.agent.runs.collect import open_worlds
from treewright.agent.runs.demo import DemoPlan, open_suites, progress_bar, run_demo
from treewright.agent.runs.evaluate import Evaluation
from treewright.agent.runs.imitation import alone, episode_rows, oracle_episodes
from treewright.agent.runs.loop import Learner, make_trainer, model_folder
from treewright.agent.runs.setup import left_out, tasks_for
from treewright.envs.errors import TreewrightError
from treewright.envs.fetched import KNOWN

__all__ = ["REAL", "REAL_QUICK", "STEP", "TREES", "RealPlan", "fetched_spec", "real_demo_config", "run_real_demo"]


@dataclass(frozen=True, slots=True)
class RealPlan:
    """Demonstrations of each suite, held-out tasks of the untouched model, the plan of what follows, and settings."""

    demos: int
    untouched: int
    then: DemoPlan
    settings: tuple[str, ...]


TREES = ("search.root_draws=12", "search.draws=4", "search.expansions=6")
"""Large groups: what a model says that imitated is mostly the same, which a tree holds once."""
STEP = ("train.lr=2e-5", "train.minibatches=1", "train.max_kl=0.002")
"""One step a round, from all of its trees, as far as the bound lets it: two steps of up to .01 nats a round made trees
of four rounds worse, not better."""
REAL = RealPlan(
    demos=260, untouched=8,
    then=DemoPlan(alone={"kg": 100, "stdlib": 100}, searched={"kg": 20, "stdlib": 20}, expansions=6),
    settings=("loop.iterations=8", "loop.tasks=12", *TREES, *STEP),
)  # fmt: skip
REAL_QUICK = RealPlan(
    demos=8, untouched=4,
    then=DemoPlan(alone={"kg": 4, "stdlib": 4}, searched={"kg": 2, "stdlib": 2}, expansions=2),
    settings=("loop.iterations=1", "loop.tasks=2"),
)  # fmt: skip


def fetched_spec(model: str, say: Any) -> str:
    """The policy that `--model` names: a known model, fetched where it is not here yet, a folder, or a name that
    transformers knows. Raises TreewrightError for a known one that is no policy."""
    from treewright.agent.policies.fetch import fetch

    if model in KNOWN and not Path(model).is_dir():
        if KNOWN[model].kind != "policy":
            raise TreewrightError(f"{model} is {KNOWN[model].what}, which cannot act; type --model smollm2")
        fetch(model, say=say)
    return f"hf:{model}"


def real_demo_config(home: Path, spec: str, settings: Sequence[str] = ()) -> Config:
    """The configuration of the demo with a real model: two suites, and small packs for little memory.

    Raises TreewrightError where the model lies in `home`, which a demo empties.
    """
    from treewright.agent.config import load_config

    if Path(spec.partition(":")[2]).resolve().is_relative_to(home.resolve()):
        raise TreewrightError(f"{spec} lies in {home}, which the demo empties; give it another --folder")
    packs = ("train.max_tokens=512", "train.chunk_tokens=512")
    given = [f"folder={home}", "name=demo", 'worlds.suites=["kg","stdlib"]', *packs, *settings]
    return load_config(None, given, {"policy.spec": spec})


async def run_real_demo(config: Config, plan: RealPlan = REAL, console: Console | None = None) -> dict[str, Any]:
    """Imitation into config.home/begun, then `run_demo` from there; the figures of both."""
    console = console or Console(emoji=False, markup=False)
    untouched, begun, skip = await _begun(config, plan, console)
    policy = config.policy.model_copy(update={"spec": f"hf:{begun}"})
    loop = config.loop.model_copy(update={"skip_tasks": skip | config.loop.skip_tasks})
    usual = max(plan.then.alone.values())
    then = replace(plan.then, alone={name: plan.then.alone.get(name, usual) for name in untouched})
    known = {f"{name}.policy_untouched": (100 * one.rate, "%") for name, one in untouched.items()}
    return await run_demo(config.model_copy(update={"policy": policy, "loop": loop}), then, console, known)


async def _begun(
    config: Config, plan: RealPlan, console: Console
) -> tuple[dict[str, Evaluation], Path, dict[str, int]]:
    """Success of the untouched model, the folder of the weights that imitated the oracles, and loop.skip_tasks."""
    from treewright.training.recipes.imitate import imitation_rate, learn_rows

    trainer = make_trainer(config, model_folder(config.policy.spec))
    learner = Learner(trainer, config.home / "begun", 1, config.policy.spec)
    given = prompt_options(config.policy.options)
    more = given.pop("template_options", None) or {}
    template = template_for(trainer.tokenizer, **given, **more)
    async with open_worlds(open_suites(console, config.worlds.suites)) as worlds:
        todo = tasks_for(worlds, "test", 0, plan.untouched)
        untouched = await alone(trainer, config.policy.options, worlds, todo, config.seed)
        for name, one in untouched.items():
            share = f"{100 * one.rate:.0f} % of {len(one.tasks)}"
            console.print(f"{name}: the untouched model solves {share} held-out tasks")
        episodes = await oracle_episodes(worlds, tasks_for(worlds, "train", 0, plan.demos), config.seed)
        skip = left_out(worlds, plan.demos)
    rows = [episode_rows(episode, template) for episode in episodes]
    with progress_bar(console, "imitate oracles", -(-len(rows) // 8)) as advance:
        learn_rows(trainer, rows, lr=imitation_rate(trainer.model), seed=config.seed, on_step=lambda *_: advance())
    return untouched, Path(learner.save({"recipe": "sft", "demos": plan.demos}).path), skip
