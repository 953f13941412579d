"""One run of the second experiment: an arm on a world, and what it has cost whenever success is measured."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from treewright.benchmarks.learning.charge import charge
from treewright.benchmarks.learning.grow import Grown, Plan, grow
from treewright.benchmarks.learning.policy import TinyPolicy
from treewright.benchmarks.learning.train import Setting, coefficients, success, update
from treewright.benchmarks.learning.world import Array, Tasks, World, draw_tasks
from treewright.search.meter import Meter
from treewright.search.rules.adapting import ARMS as SCHEDULES
from treewright.search.rules.adapting import chance_of
from treewright.search.rules.schedules import fan, late_branch
from treewright.training.credit import Credit, estimate
from treewright.training.recipes.curriculum import Curriculum
from treewright.training.schedules import Schedules
from treewright.training.sections import CurriculumSection

__all__ = ["ARMS", "LONG", "SHORT", "TrialArm", "TrialSizes", "Work", "grown_by", "noise", "run", "widths"]

SHORT, LONG = 3, 30
"""Tokens of prompt for each token of response."""
SUITE = "graph"


@dataclass(frozen=True, slots=True)
class TrialSizes:
    """tokens sampled in a run, about `batch` of them for a step; success is measured on `tasks` tasks at the start and
    `checks` times after;  warm  steps of imitation."""

    tokens: int
    batch: int
    checks: int
    tasks: int
    warm: int


@dataclass(frozen=True, slots=True)
class TrialArm:
    """schedule  a name of `widths`, or adaptive: by the package's bandit, trees costing by the axis `cost`
    curriculum  most of a round's trees that begin at stored successes, as the package chooses them
    """

    schedule: str
    estimator: str = "split_loo"
    options: Mapping[str, Any] = field(default_factory=lambda: {"tau": 3.0})
    own_group: bool = False
    cost: str = "sampled_tokens"
    curriculum: float = 0.0


PLAIN: Mapping[str, Any] = {}
ARMS: Mapping[str, TrialArm] = {
    "chains": TrialArm("chains_8", options={"tau": 0.0}),
    "chains_4": TrialArm("chains_4", options={"tau": 0.0}),
    "chains_16": TrialArm("chains_16", options={"tau": 0.0}),
    "late": TrialArm("late_branch"),
    "split": TrialArm("split"),
    "adaptive": TrialArm("adaptive"),
    "adaptive_flops": TrialArm("adaptive", cost="flops"),
    "curriculum": TrialArm("adaptive", curriculum=0.33),
    "rows": TrialArm("split", "grpo", PLAIN, own_group=True),
    "tree_grpo": TrialArm("reexpand", "tree_grpo", PLAIN, own_group=True),
}


def widths(schedule: str, hops: int, most: int) -> tuple[Array, int]:
    """([2, most + 1] draws by the judge's verdict and turn, expansions by w·√h) of a tree."""
    turns, expansions = np.arange(most + 1), 0
    liked: tuple[int, ...] = (2,)
    if schedule.startswith("chains"):
        first: tuple[int, ...] = (int(schedule.partition("_")[2] or 4), 1)
        liked = (1,)
    elif schedule == "late_branch":
        first = tuple(late_branch(hops + 1))
        liked = first[1:]
    elif schedule == "split":
        first = (2, 1)
    elif schedule == "best_first":
        first, expansions = (4, 2), 4
    else:  # reexpand
        first, liked = (4, 1), (1,)
    return np.stack([fan(turns, first), fan(turns, (first[0], *liked))]), expansions


def grown_by(
    arm: TrialArm, chosen: Array, policy: TinyPolicy, world: World, tasks: Tasks, rng: np.random.Generator,
    flips: float = 0.0, given: tuple[Array, Array] | None = None,
) -> Grown:  # fmt: skip
    """A tree for each task. chosen [T] schedules by name; given as of `grow`."""
    made = [widths(str(name), int(h), world.most) for name, h in zip(chosen, tasks.hops, strict=True)]
    table = np.stack([w for w, _ in made])
    if given is not None:  # a tree's first node gets the draws of a root
        table[np.arange(len(tasks)), :, given[1]] = table[:, :, 0]
    plan = Plan(
        table, merge=False, expansions=np.array([e for _, e in made]), judge="likelihood",
        again=4 if arm.schedule == "reexpand" else 0,
    )  # fmt: skip
    return grow(policy, world, tasks, plan, rng, flips, given)


def noise(grown: Grown, credit: Credit) -> Array:
    """[T] Σ coef² Σ_t (1 − p_t)² of each tree, as `treewright.training.schedules.noise_of`."""
    return np.bincount(grown.arrays.tree, weights=credit.coef**2 * grown.away, minlength=len(grown.begun))


class Work:
    """What a run has spent, with prompts of both sizes."""

    def __init__(self) -> None:
        self.short, self.long, self.alone_short, self.alone_long, self.seconds = Meter(), Meter(), 0.0, 0.0, 0.0

    def add(self, grown: Grown, credit: Credit) -> None:
        short, long = charge(grown, credit, SHORT), charge(grown, credit, LONG)
        self.short, self.long = self.short + short.meter, self.long + long.meter
        self.alone_short, self.alone_long = self.alone_short + short.alone, self.alone_long + long.alone

    def point(self) -> dict[str, float]:
        """By axis; `alone_…`: if no two paths shared anything."""
        return {
            "sampled_tokens": self.short.sampled_tokens,
            "env_steps": self.short.env_steps + self.short.replayed_steps,
            "seconds": round(self.seconds, 3),
            f"flops_{SHORT}": self.short.flops,
            f"flops_{LONG}": self.long.flops,
            f"alone_{SHORT}": self.alone_short,
            f"alone_{LONG}": self.alone_long,
            f"prompt_{SHORT}": self.short.prompt_computed,
            f"prompt_{LONG}": self.long.prompt_computed,
        }


class _Chooser:
    """Schedules and starts of a run, by the package's own rules, from earlier rounds alone."""

    def __init__(self, arm: TrialArm, seed: int, pool: Tasks) -> None:
        self.arm, self.pool = arm, pool
        self.schedules = Schedules(arm.cost, seed)
        self.plan = Curriculum(CurriculumSection(share=arm.curriculum), lambda tree: _nowhere(), seed)
        self.rows: dict[str, Array] = {}

    def names(self, count: int, rng: np.random.Generator) -> Array:
        """[count] schedules, drawn before the trees."""
        if self.arm.schedule != "adaptive":
            return np.full(count, self.arm.schedule)
        told = self.schedules.chances()
        chances = np.array([told.get(chance_of(SUITE, name), 1.0) for name in SCHEDULES])
        return rng.choice(np.array(SCHEDULES), count, p=chances / chances.sum())

    def note(self, index: Array, fronts: list[Any], names: Array, grown: Grown, credit: Credit) -> None:
        """After a round: its first trees are of the pool's tasks `index`, the others began at `fronts`."""
        roots = len(index)
        if self.arm.schedule == "adaptive":
            self._learn(names[:roots], grown, credit)
        if self.arm.curriculum:
            values = credit.value[: len(grown.begun)]
            told = [(SUITE, str(i), float(v)) for i, v in zip(index, values[:roots], strict=True)]
            self.plan.learn(told, fronts, values[roots:].tolist())
            won = np.flatnonzero((grown.arrays.k == 0) & (grown.arrays.reward > 0.5) & (grown.arrays.tree < roots))
            for tree, first in zip(*np.unique(grown.arrays.tree[won], return_index=True), strict=True):
                task, leaf = str(index[tree]), int(won[first])
                if self.plan.wanted(SUITE, task):
                    self.plan.take_up(task, leaf, SUITE, task, int(grown.turn[leaf]))
                    self.rows[task] = grown.rows[leaf]

    def _learn(self, names: Array, grown: Grown, credit: Credit) -> None:
        self.schedules.rounds += 1
        trees = len(grown.begun)
        if self.arm.cost == "sampled_tokens":
            said = grown.arrays.n_tokens * grown.arrays.mult
            cost = np.bincount(grown.arrays.tree, weights=said, minlength=trees)
        else:
            cost = charge(grown, credit, LONG).flops
        for name, q, c in zip(names, noise(grown, credit), cost, strict=False):
            self.schedules.record(SUITE, str(name), float(q), float(c))


def _nowhere() -> Any:
    raise AssertionError("starts are rows here, no tree is loaded")


def run(
    arm: TrialArm, setting: Setting, lr: float, seed: int, sizes: TrialSizes, start: tuple[World, TinyPolicy]
) -> list[dict[str, float]]:
    """The run's points: success on the seed's tasks, and what was spent by then.

    Runs of a seed share world, warm start, tasks in order and those that success is measured on. The step is that of
    the first experiment. Seconds are of the processor, without measuring success.
    """
    world, policy = start[0], copy.deepcopy(start[1])
    pool = draw_tasks(world, sizes.tokens // 4, np.random.default_rng([seed, 2]))
    probe = draw_tasks(world, sizes.tasks, np.random.default_rng([seed, 3]))
    rng = np.random.default_rng([seed, 4])
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr, betas=(0.9, 0.99))
    points: list[dict[str, float]] = []
    work, chooser, trees, per_tree = Work(), _Chooser(arm, seed, pool), 0, 100.0
    while True:
        if work.short.sampled_tokens >= len(points) * sizes.tokens / sizes.checks:
            now = success(policy, world, probe, np.random.default_rng([seed, 5]))
            points.append({"success": now, **work.point()})
        if work.short.sampled_tokens >= sizes.tokens:
            return points
        began = time.process_time()
        count = max(2, round(sizes.batch / per_tree))
        roots = max(2, round(count * (1 - arm.curriculum))) if chooser.plan.fronts else count
        index = np.arange(trees, trees + roots) % len(pool)
        fronts = chooser.plan.chosen(roots) if arm.curriculum else []
        tasks = pool.take(np.concatenate([index, np.array([int(f.task) for f in fronts], dtype=int)]))
        names = chooser.names(len(tasks), rng)
        given = _given(chooser, fronts, roots, world) if fronts else None
        grown = grown_by(arm, names, policy, world, tasks, rng, setting.flips, given)
        arrays = grown.arrays.with_(group=grown.arrays.tree) if arm.own_group else grown.arrays
        credit = estimate(arm.estimator, arrays, **dict(arm.options))
        update(policy, optimizer, *coefficients(grown, credit), len(tasks))
        chooser.note(index, fronts, names, grown, credit)
        work.seconds += time.process_time() - began
        trees += roots
        per_tree += 0.5 * (grown.tokens / len(tasks) - per_tree)
        work.add(grown, credit)


def _given(chooser: _Chooser, fronts: list[Any], roots: int, world: World) -> tuple[Array, Array]:
    """The starts of a round as `grow` takes them, behind `roots` trees from the root."""
    rows, turns = np.zeros((roots + len(fronts), world.length), dtype=int), np.zeros(roots + len(fronts), dtype=int)
    for i, front in enumerate(fronts):
        rows[roots + i], turns[roots + i] = chooser.rows[front.task], front.kept
    return rows, turns
