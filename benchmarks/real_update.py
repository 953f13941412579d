"""What one update of a real model does to its success: a step along the sign of the gradient, as Adam's first is,
made as long as a bound on the divergence lets it be, beside what the gradient promises.

The gradient is that of the default loss and credit on trees of training tasks; success is that of the policy alone on
held-out tasks, before and after. Gradients of other training tasks say how much of a step is about all tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from treewright.agent.config import Config
from treewright.agent.policies.opening import open_policy
from treewright.agent.runs.collect import World, open_worlds
from treewright.agent.runs.evaluate import Evaluation, evaluate
from treewright.agent.runs.loop import grow_for_training, make_trainer, tasks_for
from treewright.agent.runs.shared import shared_model
from treewright.benchmarks.real_exact import packed_gradient
from treewright.benchmarks.real_learning import SPEC, begun_model, begun_with, from_begun
from treewright.benchmarks.real_parts import Figures, Size, size_of
from treewright.envs.types import Task
from treewright.search.tree import Tree
from treewright.training.credit import estimate
from treewright.training.credit.trees import tree_arrays
from treewright.training.pack import PackedBatch, pack_trees
from treewright.training.region import divergence
from treewright.training.step import Trainer, TrainSettings

__all__ = ["BOUNDS", "dot", "gradient_of", "grown_by", "logprobs_of", "packs_of", "update_figures", "within"]

BOUNDS = (1e-3, 1e-2)  # nats per token
CLOSE = (0.7, 1.4)  # of a bound
TasksOf = Callable[[Mapping[str, World]], Sequence[Task]]


def update_figures(quick: bool, spec: str = SPEC) -> Figures:
    """On the first suite, from the weights of the section `learning`."""
    size = size_of(quick)
    of = {"part": "update", "trees": size.trees_a_round, "held_out": size.held_out}
    return from_begun(of, spec, size, _measured)


def _measured(home: Path, spec: str, size: Size) -> Figures:
    begun = asyncio.run(begun_model(home, spec, size))
    cfg = begun_with(home / "update", f"hf:{begun}", size)
    first = make_trainer(cfg, str(begun))
    model = shared_model(cfg, first)
    options: dict[str, Any] = {} if model is None else {"model": model}
    name = size.taught[0]
    grown = [
        asyncio.run(grown_by(cfg, str(begun), options, [name], partial(_trained_on, index, size.trees_a_round), index))
        for index in (20, 21)
    ]
    trainer = Trainer(first.model, TrainSettings(max_tokens=size.pack, minibatches=1, grad_clip=1e9, max_kl=0.0))
    packs = [packs_of(trees, size.pack) for trees in grown]
    own, other = gradient_of(trainer, packs[0]), gradient_of(trainer, packs[1])
    alike = dot(own, other) / (dot(own, own) * dot(other, other)) ** 0.5
    del other
    weights = list(trainer.model.parameters())
    start = [p.detach().clone() for p in weights]
    before = logprobs_of(trainer, packs[0])

    def moved(share: float) -> float:
        """Steps to so much of the sign; the divergence from before, on the tokens that the gradient is of."""
        with torch.no_grad():
            for p, old, g in zip(weights, start, own, strict=True):
                p.copy_(old - share * torch.sign(g))
        return divergence(before, logprobs_of(trainer, packs[0]))

    base = asyncio.run(_alone(str(begun), options, name, size.held_out))
    out: Figures = {
        "update/gradients_alike": (alike, "cosine of the gradients of other tasks"),
        "update/before": (100 * base.rate, "%"),
        "update/trees": (float(len(grown[0])), "trees"),
    }
    promised = sum(float(g.abs().double().sum()) for g in own)
    for bound in BOUNDS:
        share, found = within(moved, bound)
        after = asyncio.run(_alone(str(begun), options, name, size.held_out))
        difference = np.subtract(after.success, base.success)
        out |= {
            f"update/{bound:g}/divergence": (found, "nats per token"),
            f"update/{bound:g}/promised": (100 * share * promised, "points"),
            f"update/{bound:g}/gained": (100 * float(difference.mean()), "points"),
            f"update/{bound:g}/error": (
                100 * float(difference.std() / len(difference) ** 0.5),
                "points, standard error",
            ),
        }
    return out


def within(moved: Callable[[float], float], bound: float) -> tuple[float, float]:
    """A step whose divergence is close to the bound, and its divergence, which is quadratic in a short one."""
    share = 1e-6
    for _ in range(6):
        found = moved(share)
        if CLOSE[0] <= found / bound <= CLOSE[1]:
            break
        share *= min(30.0, (bound / max(found, 1e-12)) ** 0.5)
    return share, found


def _trained_on(index: int, count: int, worlds: Mapping[str, World]) -> list[Task]:
    return tasks_for(worlds, "train", index, count)


async def grown_by(
    cfg: Config, begun: str, options: Mapping[str, Any], suites: Sequence[str], tasks_of: TasksOf, index: int = 0
) -> list[Tree]:
    """Trees of the tasks that `tasks_of` gives of these suites, by the policy in `begun` with such options."""
    policy = open_policy(f"hf:{begun}", **options)
    try:
        async with open_worlds(suites) as worlds:
            return await grow_for_training(cfg, tasks_of(worlds), worlds, policy, cfg.name, index)
    finally:
        await policy.close()


async def _alone(begun: str, options: dict[str, Any], name: str, count: int) -> Evaluation:
    """The trainer's model as it is now: one sampled rollout for each held-out task, the same seeds each time."""
    policy = open_policy(f"hf:{begun}", **options)
    try:
        async with open_worlds([name]) as worlds:
            found, _ = await evaluate(tasks_for(worlds, "test", 0, count), worlds, policy, seed=1)
            return found[name]
    finally:
        await policy.close()


def packs_of(trees: Sequence[Tree], size: int) -> list[PackedBatch]:
    arrays = tree_arrays(trees)
    return pack_trees(trees, arrays, estimate("split_loo", arrays), size)


def gradient_of(trainer: Trainer, packs: Sequence[PackedBatch]) -> list[Tensor]:
    found = packed_gradient(trainer, packs)
    trainer.forget_moments()
    trainer.optimizer.zero_grad(set_to_none=True)
    return found


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return float(sum((x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)))


@torch.no_grad()
def logprobs_of(trainer: Trainer, packs: Sequence[PackedBatch]) -> Tensor:
    return torch.cat([trainer.logprobs(pack)[0] for pack in packs])
