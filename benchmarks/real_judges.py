"""Judges with a real model that imitated oracles: a single rollout, best-first, A* and a beam at equal sampled tokens,
led by the policy's likelihood, by a checklist that the untouched model answers, and by a reward model on its own trunk.

What judges write and read is beside that budget, and counted. The weights are those of the section `learning`.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from treewright.agent.judges.judge import open_evaluator
from treewright.agent.policies.opening import open_policy
from treewright.agent.runs.collect import UNLIMITED, World, open_worlds
from treewright.agent.runs.evaluate import acting_rule, evaluate
from treewright.agent.runs.loop import grow_for_training, make_trainer, tasks_for
from treewright.benchmarks.real_learning import SPEC, begun_of, begun_with, imitated, learning_home
from treewright.benchmarks.real_parts import Figures, Size, kept, size_of
from treewright.search.engine import Settings
from treewright.search.rules import rule
from treewright.search.types import Budget

__all__ = ["judges_figures"]

RULES = ("best_first", "astar", "beam")
JUDGES = ("likelihood", "checklist", "prm")
PER_TASK = 600  # sampled tokens of a tree at most, ten times those of a rollout; draws under way count in full


def judges_figures(quick: bool, spec: str = SPEC) -> Figures:
    """Success on held-out tasks of the first suite; `judged` tasks each."""
    size = size_of(quick)
    home = learning_home(spec, size)
    with tempfile.TemporaryDirectory() as folder:
        begun, prm = asyncio.run(_models(home or Path(folder), spec, size))
        named = {"likelihood": "likelihood", "checklist": f"checklist:{spec}", "prm": f"prm:{prm}"}
        out: Figures = {"judges/tasks": (float(size.judged), "tasks")}
        for way, judge in [("alone", "none"), *((way, judge) for judge in JUDGES for way in RULES)]:
            of = {"part": "judges", **begun_of(spec, size), "tasks": size.judged, "way": way, "judge": judge,
                  "tokens": PER_TASK}  # fmt: skip
            out |= kept(of, partial(_searched, begun, way, judge, named.get(judge, "none"), size))
    return out


async def _models(home: Path, spec: str, size: Size) -> tuple[Path, Path]:
    """The folders of the weights that imitated, and of their reward model."""
    async with open_worlds(size.taught) as worlds:
        begun = await imitated(begun_with(home / "begun", spec, size), worlds, size)
        one = {size.taught[0]: worlds[size.taught[0]]}
        return begun, await _reward_model(home / f"prm-{size.trees_a_round}", begun, one, size)


def _searched(begun: Path, way: str, judge: str, opened: str, size: Size) -> Figures:
    async def work() -> Figures:
        policy = open_policy(f"hf:{begun}")
        evaluator, chosen, budget = None, None, Budget(expansions=0)
        if way != "alone":
            evaluator, budget = open_evaluator(opened, policy), Budget(policy_tokens=PER_TASK)
            chosen = acting_rule(evaluator) if way == "best_first" else rule(way, draws=2, root_draws=4)
        try:
            async with open_worlds(size.taught[:1]) as worlds:
                found, trees = await evaluate(
                    tasks_for(worlds, "test", 0, size.judged), worlds, policy, rule=chosen, evaluator=evaluator,
                    budget=budget, settings=Settings(run="judges", seed=0, max_tokens=UNLIMITED),
                )  # fmt: skip
        finally:
            await policy.close()
        (one,) = found.values()
        spent = sum(tree.spent.judge_tokens for tree in trees) / len(trees)
        label = f"judges/{way}" if way == "alone" else f"judges/{way}/{judge}"
        return {
            label: (100 * one.rate, "%"),
            f"{label}/sampled": (one.tokens / len(trees), "tokens a task"),
            f"{label}/judged": (spent, "judge's tokens a task"),
        }

    return asyncio.run(work())


async def _reward_model(folder: Path, begun: Path, worlds: Mapping[str, World], size: Size) -> Path:
    """A reward model that starts from the policy's weights, trained on its trees of training tasks."""
    from treewright.training.recipes.prm import Prm, train_prm

    if (folder / "prm.json").exists():
        return folder
    cfg = begun_with(folder.with_name(f"{folder.name}-trees"), f"hf:{begun}", size)
    policy = open_policy(f"hf:{begun}")
    try:
        tasks = tasks_for(worlds, "train", 9, size.trees_a_round)
        trees: list[Any] = await grow_for_training(cfg, tasks, worlds, policy, "prm", 0)
    finally:
        await policy.close()
    trainer = make_trainer(cfg, str(begun))
    model = Prm(trainer.model, trainer.tokenizer)
    train_prm(model, [tree for tree in trees if tree.exact], epochs=2, lr=trainer.lr, max_tokens=1024, seed=0)
    return model.save(folder, {"trees": len(trees)})
