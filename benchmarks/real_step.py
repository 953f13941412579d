"""A training step of a real model on trees that it grew itself, beside the same step on one row for each trajectory.

Both are in float32, of the same terms, by the same kernels; nothing is timed unless their gradients agree.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch

from treewright.agent.policies.opening import open_policy
from treewright.agent.runs.collect import open_worlds
from treewright.agent.runs.loop import grow_for_training, make_trainer, tasks_for
from treewright.benchmarks.families import trajectories
from treewright.benchmarks.real_exact import packs_by_lot
from treewright.benchmarks.real_learning import ARMS, SPEC, begun_with, from_begun, imitated
from treewright.benchmarks.real_parts import Figures, Size, size_of
from treewright.benchmarks.train import Mode, side_by_side
from treewright.benchmarks.train_ways import load_of
from treewright.search.tree import Tree
from treewright.training.pack import PackedBatch

__all__ = ["step_figures"]

REPEATS = 2


def step_figures(quick: bool, spec: str = SPEC) -> Figures:
    """On the first suite, with the weights of the section `learning`: the pack of a round that shares most."""
    size = size_of(quick)
    of = {"part": "step", "trees": size.trees_a_round, "search": ARMS["trees"]}
    return from_begun(of, spec, size, _measured)


def _measured(home: Path, spec: str, size: Size) -> Figures:
    begun, trees = asyncio.run(_grown(home, spec, size))
    pack = max(packs_by_lot(trees), key=_shared)
    model = make_trainer(begun_with(home / "step", f"hf:{begun}", size), str(begun)).model
    load, threads = load_of(pack, model.config.vocab_size), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        line = side_by_side(Mode(name="float32", model=model), "own trees", load, ("tree", "rows"), REPEATS)
    finally:
        torch.set_num_threads(threads)
    return {
        "step/trees": (float(pack.trees), "trees"),
        "step/tokens": (float(line["tokens"]), "distinct tokens"),
        "step/row_tokens": (float(line["row tokens"]), "tokens of rows"),
        "step/ideal": (line["ideal"], "ratio of operations"),
        "step/speedup": (line["speedup"], "ratio"),
        "step/gradient_difference": (line["difference"], "relative"),
        "real_step_over_ideal": (line["of ideal"], "ratio"),
    }


def _shared(pack: PackedBatch) -> float:
    """Tokens of all rows for each distinct one."""
    return sum(map(len, trajectories(pack.plan))) / len(pack)


async def _grown(home: Path, spec: str, size: Size) -> tuple[Path, list[Tree]]:
    async with open_worlds(size.taught) as worlds:
        begun = await imitated(begun_with(home / "begun", spec, size), worlds, size)
        policy = open_policy(f"hf:{begun}")
        try:
            one = {size.taught[0]: worlds[size.taught[0]]}
            cfg = begun_with(home / "step", spec, size, *ARMS["trees"])
            tasks = tasks_for(one, "train", 30, size.trees_a_round)
            return begun, await grow_for_training(cfg, tasks, one, policy, "step", 30)
        finally:
            await policy.close()
