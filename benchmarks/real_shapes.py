"""What one step promises on tasks that it was not made of: by the shape of the trees that it was made of, and by what
an optimizer makes of their gradient.

Every step is as long as one bound on the divergence lets it be. What it promises is its product with a gradient: with
that of its own trees the promise counts what is particular to their tasks and draws, with that of other tasks' trees
only what carries over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from treewright.agent.runs.collect import World
from treewright.agent.runs.demo_real import TREES
from treewright.agent.runs.loop import make_trainer
from treewright.agent.runs.setup import rounds_for
from treewright.agent.runs.shared import shared_model
from treewright.benchmarks.real_learning import SPEC, begun_model, begun_with, from_begun
from treewright.benchmarks.real_parts import Figures, Size, size_of
from treewright.benchmarks.real_update import dot, gradient_of, grown_by, logprobs_of, packs_of, within
from treewright.envs.types import Task
from treewright.search.tree import Tree
from treewright.training.optim import make_optimizer
from treewright.training.region import divergence
from treewright.training.settings import LARGE_KL
from treewright.training.step import Trainer, TrainSettings

__all__ = ["OPTIMIZERS", "SHAPES", "shapes_figures"]

SHAPES: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "trees": (1, TREES),
    "small_trees": (2, ("search.root_draws=6", "search.draws=3", "search.expansions=3")),
    "chains": (2, ("search.rule=chains", "search.root_draws=8", "search.expansions=1")),
}
"""By name, how many times as many tasks as the first has, and how its trees are grown."""
OTHERS = 3  # times as many tasks, whose gradient says what carries over
OPTIMIZERS = ("adamw", "muon")


def shapes_figures(quick: bool, spec: str = SPEC) -> Figures:
    """From the weights of the section `learning`, on training tasks that imitation did not show."""
    size = size_of(quick)
    of = {"part": "shapes", "trees": size.trees_a_round, "shapes": SHAPES}
    return from_begun(of, spec, size, _measured)


def _measured(home: Path, spec: str, size: Size) -> Figures:
    begun = asyncio.run(begun_model(home, spec, size))
    first = make_trainer(begun_with(home / "shapes", f"hf:{begun}", size), str(begun))
    settings = TrainSettings(max_tokens=size.pack, minibatches=1, grad_clip=1e9, max_kl=0.0, weight_decay=0.0)
    step = _Step(Trainer(first.model, settings))
    each = max(1, size.trees_a_round // len(size.taught))
    most = each * max(times for times, _ in SHAPES.values())

    model = shared_model(begun_with(home / "shapes", f"hf:{begun}", size), first)
    options = {} if model is None else {"model": model}

    def grown(count: int, past: int, grow: Sequence[str]) -> tuple[list[Tree], float]:
        """Trees of so many tasks of each suite, past those that were shown and so many more; the seconds it took."""
        cfg, began = begun_with(home / "shapes", f"hf:{begun}", size, *grow), time.monotonic()
        skip = {name: shown + past for name, shown in size.shown.items()}

        def tasks_of(worlds: Mapping[str, World]) -> list[Task]:
            return [task for task, _ in rounds_for(worlds, "train", 0, count, None, skip)]

        trees = asyncio.run(grown_by(cfg, str(begun), options, size.taught, tasks_of))
        return trees, time.monotonic() - began

    step.judged_by(grown(OTHERS * each, most, TREES)[0])
    out: Figures = {"shapes/others": (float(step.others), "trees"), "shapes/bound": (LARGE_KL, "nats per token")}
    for name, (times, grow) in SHAPES.items():
        trees, drawing = grown(times * each, 0, grow)
        began = time.monotonic()
        gradient = gradient_of(step.trainer, packs_of(trees, size.pack))
        out |= {
            f"shapes/{name}/trees": (float(len(trees)), "trees"),
            f"shapes/{name}/sampled_tokens": (
                float(sum(t.spent.policy_tokens + t.spent.closing_tokens for t in trees)),
                "tokens",
            ),
            f"shapes/{name}/drawing": (drawing, "s"),
            f"shapes/{name}/gradient": (time.monotonic() - began, "s"),
        }
        for optimizer in OPTIMIZERS if name == "trees" else OPTIMIZERS[:1]:
            own, others = step.promises(gradient, optimizer)
            out[f"shapes/{name}/{optimizer}/own"] = (own, "points promised on its own trees")
            out[f"shapes/{name}/{optimizer}/others"] = (others, "points promised on other tasks' trees")
    return out


class _Step:
    """First steps of optimizers, from the weights that a trainer has, as long as the bound lets them be."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.weights = list(trainer.model.parameters())
        self.start = [p.detach().clone() for p in self.weights]
        self.others = 0

    def judged_by(self, trees: Sequence[Tree]) -> None:
        """Takes these for the other tasks' trees; the divergence is that on a quarter of them."""
        size = self.trainer.settings.max_tokens
        self.others, self.other = len(trees), gradient_of(self.trainer, packs_of(trees, size))
        self.few = packs_of(trees[:: min(4, len(trees))], size)
        self.before = logprobs_of(self.trainer, self.few)

    def promises(self, gradient: Sequence[Tensor], optimizer: str) -> tuple[float, float]:
        """Points of success that the first step of this optimizer along the gradient promises: on the trees that the
        gradient is of, and on the others."""
        steps = self._of(gradient, optimizer)

        def moved(share: float) -> float:
            self._to([old - share * step for old, step in zip(self.start, steps, strict=True)])
            return divergence(self.before, logprobs_of(self.trainer, self.few))

        share, found = within(moved, LARGE_KL)
        self._to(self.start)
        share *= (LARGE_KL / found) ** 0.5
        return 100 * share * dot(gradient, steps), 100 * share * dot(self.other, steps)

    def _of(self, gradient: Sequence[Tensor], optimizer: str) -> list[Tensor]:
        made = make_optimizer(TrainSettings(optimizer=optimizer, weight_decay=0.0), self.trainer.model, 1.0)
        for p, g in zip(self.weights, gradient, strict=True):
            p.grad = g.clone()
        made.step()
        made.zero_grad(set_to_none=True)
        steps = [old - p.detach() for old, p in zip(self.start, self.weights, strict=True)]
        self._to(self.start)
        return steps

    @torch.no_grad()
    def _to(self, weights: Sequence[Tensor]) -> None:
        for p, w in zip(self.weights, weights, strict=True):
            p.copy_(w)
