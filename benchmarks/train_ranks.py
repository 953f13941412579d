"""Two processes against one: the same batch of packed trees, one core each; and a step's seconds against the plan's.

`figures()` gives what `treewright bench train` puts among its figures. Runs are interleaved, the fastest of each kind
counts. Wall-clock time is what a user waits; seconds of the processor are told as well, since they say how evenly the
work was shared even where other programs take the cores.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from treewright.agent.runs.ranks import PRELOADED
from treewright.training.parallel.launched import LAUNCHER

__all__ = ["figures", "measure"]

SHAPE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8,
         "num_key_value_heads": 4, "head_dim": 32, "vocab_size": 2048, "max_position_embeddings": 4096}  # fmt: skip
TOKENS = 1024  # of a pack


def figures(quick: bool = False) -> dict[str, tuple[float, str]]:
    """two_process_speedup (wall-clock), train_step_over_ideal_min_two_processes (trees by two against rows by one, over
    twice the ideal), two_process_work_ratio (processor seconds of one process over those of the busier of two),
    two_process_idle (share that the ranks should wait, by the plan), two_process_gap (largest relative difference of
    the loss)."""
    found = measure(trees=12 if quick else 32, repeats=2 if quick else 5)
    one, two, rows = found["one"], found["two"], found["rows"]
    ideal = rows["operations"] / one["operations"]
    return {
        "two_process_speedup": (min(one["wall"]) / min(two["wall"]), "ratio"),
        "train_step_over_ideal_min_two_processes": (min(rows["wall"]) / min(two["wall"]) / (2 * ideal), "ratio"),
        "two_process_work_ratio": (min(one["busy"]) / min(two["busy"]), "ratio"),
        "two_process_idle": (found["idle"], "share"),
        "two_process_gap": (abs(one["loss"] - two["loss"]) / abs(one["loss"]), "relative"),
    }


def measure(trees: int, repeats: int) -> dict[str, Any]:
    """Seconds of the same update by one process and by two, each on a core of its own, and by one that trains on rows;
    `busy` of the busier rank.

    Raises RuntimeError where a process ended before it was through.
    """
    folder = Path(tempfile.mkdtemp(prefix="treewright-ranks-"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, __name__])
    out: dict[str, Any] = {}
    try:
        for name, world in (("two", 2), ("one", 1), ("rows", 1)):
            ranks = [
                context.Process(target=_rank, args=(str(folder), name, r, world, trees, repeats)) for r in range(world)
            ]
            for rank in ranks:
                rank.start()
            for rank in ranks:
                rank.join()
            if any(rank.exitcode for rank in ranks):
                raise RuntimeError(f"a process of {world} ended with {[rank.exitcode for rank in ranks]}")
            out[name] = json.loads((folder / f"{name}.json").read_text())
        out["idle"] = out["two"].pop("idle")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return out


def _rank(folder: str, name: str, rank: int, world: int, trees: int, repeats: int) -> None:
    import torch

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
                   LAUNCHER: f"{folder}/{name}", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from treewright.benchmarks.train_ways import Step, load_of, operations
    from treewright.training.settings import TrainSettings

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SHAPE)).eval()
    settings = TrainSettings(lr=1e-9, minibatches=1, max_tokens=TOKENS)
    packs = packs_of(trees, shared=name != "rows")
    if world == 1:
        from treewright.training.step import Trainer

        trainer: Any = Trainer(model, settings)
    else:
        from treewright.training.parallel.ranks import join
        from treewright.training.parallel.trainer import RankedTrainer

        trainer = RankedTrainer(model, settings, ranks=join())
    wall, busy, losses = [], [], []
    for _ in range(repeats + 1):  # the first warms up
        began, worked = time.perf_counter(), time.process_time()
        if rank == 0:
            losses.append(trainer.descend_surrogate(packs)["loss"])
        else:
            trainer.follow_one()
        spent = time.process_time() - worked
        wall.append(time.perf_counter() - began)
        if world > 1:
            spent = float(trainer.ranks_of.largest(torch.tensor([spent]))[0])
        busy.append(spent)
    if rank == 0:
        found: dict[str, Any] = {"wall": wall[1:], "busy": busy[1:], "loss": losses[0]}
        if world > 1:
            found["idle"] = _idle(packs, trainer.costs)
        else:
            loads = [load_of(pack, SHAPE["vocab_size"]) for pack in packs]
            found["operations"] = operations(model, [Step(load=load) for load in loads])
        Path(folder, f"{name}.json").write_text(json.dumps(found))


def packs_of(count: int, shared: bool = True) -> list[Any]:
    """Packs of bushy random trees: a prompt of 128 tokens, branches of 32 to 96, each trained on.

    shared  False: every branch with a prompt of its own
    """
    import random

    from treewright.training.pack import TokenRow, pack_rows

    rng = random.Random(0)
    groups: list[Sequence[TokenRow]] = []
    for _ in range(count):
        prompt = tuple(rng.randrange(SHAPE["vocab_size"]) for _ in range(128))
        rows = []
        for _ in range(rng.randrange(2, 7)):
            length = rng.randrange(32, 97)
            said = tuple(rng.randrange(SHAPE["vocab_size"]) for _ in range(length))
            rows.append(TokenRow(context=prompt, response=said, coef=rng.uniform(-1, 1), behaviour=(-7.0,) * length))
        groups += [rows] if shared else [[row] for row in rows]
    return pack_rows(groups, TOKENS)


def _idle(packs: Sequence[Any], costs: Any) -> float:
    from treewright.training.balance import idle_share, share_out
    from treewright.training.parallel.forest import cut, part_of

    parts = [part_of(part) for pack in packs for part in cut(pack)]
    return idle_share(parts, share_out(parts, 2, TOKENS, costs), costs)
