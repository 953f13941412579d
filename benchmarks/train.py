"""`treewright bench train`: a whole training step on trees beside the same step on rows, and two other ways to share.

Side by side in one run, for the tree families of the kernels and for trees that the packaged model grew: seconds of a
step (forward, loss, backward, optimizer), peak memory, and the difference of the gradient from that of rows. Then the
same with bfloat16, with an adapter and with gradient checkpointing; planning a comb beside TRL's packing, where TRL is
installed; and what chunks take. On a GPU random weights in the shapes of Qwen3-0.6B and 4B, within eight minutes.
"""

from __future__ import annotations

import asyncio
import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from treewright.agent.runs.figures import write_result
from treewright.benchmarks import train_ranks
from treewright.benchmarks.families import FAMILIES, trajectories
from treewright.benchmarks.kernels_step import seconds_of
from treewright.benchmarks.memory import chunked_ratio
from treewright.benchmarks.train_ways import WAYS, Load, backward, gathered_keys, load_of, operations, steps_of
from treewright.envs.doors import nearest
from treewright.envs.errors import TreewrightError
from treewright.training.lora import attach
from treewright.training.memory import PeakMemory
from treewright.training.model import prepare
from treewright.training.optim import make_optimizer
from treewright.training.pack import TokenRow, pack_rows, pack_trees
from treewright.training.precision import checkpoint_layers
from treewright.training.settings import LoraSettings, TrainSettings

__all__ = ["Mode", "main", "side_by_side"]

NAMES = ("flat 2k + 16 x 1k", "binary depth 6 x 512", "random depth 6, 30-800", "comb 32 x (512 + 512)")
SEEDLING = "trees that the seedling grew on kg"
LEAST_IDEAL = 2.0
"""Families that share less say little about sharing."""
AGREE = {None: 1e-4, torch.bfloat16: 0.05}
GPU_SECONDS = 440.0
Figures = dict[str, tuple[float, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """A model and how it is trained."""

    name: str
    model: Any
    dtype: torch.dtype | None = None


PARTS = ("float32", "bf16", "lora", "checkpointed", "seedling", "planning", "chunks", "processes")


def main(
    quick: bool = False,
    json_path: str | None = None,
    plot_path: str | None = None,
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Prints the tables and returns {"figures", "table", "quick", "gpu"}, written as JSON where a path is given.

    quick  two small families and one repetition
    only   these of PARTS; a result at `json_path` keeps the others. Not on a GPU

    Raises RuntimeError, timing nothing, where a way's gradient differs from that of rows.
    """
    console, threads, began = Console(emoji=False, markup=False), torch.get_num_threads(), time.monotonic()
    gpu = torch.cuda.is_available()
    if wrong := [part for part in only or () if part not in PARTS]:
        raise TreewrightError(f"bench train has no part {wrong[0]!r}; {nearest(wrong[0], PARTS)}")
    if not gpu:
        torch.set_num_threads(1)
    try:
        table = _gpu(console, quick, began) if gpu else _cpu(console, quick, only or PARTS)
        figures = _planning(console) if not only or "planning" in only else {}
        if not gpu and "chunks" in (only or PARTS):
            figures["chunked_peak_ratio_8x"] = (chunked_ratio(quick), "ratio")
        if not gpu and "processes" in (only or PARTS):
            figures |= train_ranks.figures(quick)
    finally:
        torch.set_num_threads(threads)
    before: dict[str, Any] = {}
    if only and json_path and Path(json_path).exists():
        before = json.loads(Path(json_path).read_text())
    kept = [old for old in before.get("table", []) if not any(_same(old, row) for row in table)]
    table = [*kept, *table]
    figures |= _figures(table)
    result: dict[str, Any] = {
        "figures": before.get("figures", {})
        | {name: {"value": value, "unit": unit} for name, (value, unit) in figures.items()},
        "table": table, "quick": quick or before.get("quick", False), "gpu": gpu,
        "seconds": round(time.monotonic() - began + before.get("seconds", 0.0), 1),
    }  # fmt: skip
    for label, figure in figures.items():
        console.print(f"{label:40} {figure[0]:.4g} {figure[1]}")
    if json_path:
        write_result(Path(json_path), result)
    if plot_path:
        console.print("bench train draws no plot")
    return result


def _same(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return all(old.get(key) == new.get(key) for key in ("family", "mode", "model"))


def _figures(table: Sequence[dict[str, Any]]) -> Figures:
    shared = [row for row in table if row["ideal"] >= LEAST_IDEAL]
    out: Figures = {}
    for mode, name in (("float32", ""), ("bf16", "_bf16"), ("lora", "_lora"), ("checkpointed", "_checkpointed")):
        rows = [row for row in shared if row["mode"] == mode]
        if rows:
            out[f"train_step_over_ideal_min{name}"] = (min(row["of ideal"] for row in rows), "ratio")
    for mode, name in (("bf16", "gradient_difference_max_bf16"), ("float32", "gradient_difference_max")):
        gaps = [row["difference"] for row in table if (row["mode"] == "bf16") == (mode == "bf16")]
        if gaps:
            out[name] = (max(gaps), "relative")
    for way in ("shared", "gathered"):
        rows = [row for row in shared if f"{way}_s" in row and row["family"] != SEEDLING]
        if rows:
            out[f"step_vs_{way}_max"] = (max(row[f"{way}_s"] / row["tree_s"] for row in rows), "ratio")
            out[f"memory_vs_{way}_max"] = (max(row[f"{way}_peak"] / row["tree_peak"] for row in rows), "ratio")
    return out


# -- on a CPU ---------------------------------------------------------------------------------------------------------


def _cpu(console: Console, quick: bool, parts: Sequence[str]) -> list[dict[str, Any]]:
    """A Llama of two layers in the proportions of SmolLM2-135M's, two thirds as wide; and the seedling as it is."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=192 if quick else 384, intermediate_size=512 if quick else 1024,
        num_hidden_layers=2, num_attention_heads=3 if quick else 6, num_key_value_heads=1 if quick else 2,
        head_dim=64, max_position_embeddings=8192,
    )  # fmt: skip
    model, table, repeats = LlamaForCausalLM(config).eval(), list[dict[str, Any]](), 1 if quick else 2
    names = NAMES[1:3] if quick else NAMES
    loads = {f.name: load_of(f.plan(512 if quick else 1024), 2048) for f in FAMILIES if f.name in names}
    for mode in _modes(model):
        for name, load in loads.items() if mode.name in parts else ():
            ways = WAYS if mode.name == "float32" else WAYS[:2]
            table.append(side_by_side(mode, name, load, ways, repeats))
            _show(console, table[-1])
    if "seedling" in parts:
        seedling, load = _grown(4 if quick else 12)
        table.append(side_by_side(Mode(name="float32", model=seedling), SEEDLING, load, WAYS, repeats + 1))
        _show(console, table[-1])
    return table


def _modes(model: Any) -> list[Mode]:
    prepare(model)
    adapted = attach(copy.deepcopy(model), LoraSettings(rank=16), "random weights")
    recomputed = copy.deepcopy(model)
    checkpoint_layers(recomputed, True)
    return [
        Mode(name="float32", model=model),
        Mode(name="bf16", model=model, dtype=torch.bfloat16),
        Mode(name="lora", model=adapted),
        Mode(name="checkpointed", model=recomputed),
    ]


def _grown(tasks: int) -> tuple[Any, Load]:
    """The seedling, and the trees that it grows on tasks of kg, with their credit."""
    from transformers import AutoModelForCausalLM

    from treewright.agent.config import load_config
    from treewright.agent.policies.opening import open_policy
    from treewright.agent.policies.policy import SEEDLING as FOLDER
    from treewright.agent.runs.collect import open_worlds
    from treewright.agent.runs.loop import grow_for_training, tasks_for
    from treewright.training.credit import estimate
    from treewright.training.credit.trees import tree_arrays

    config = load_config(settings=["search.expansions=8"])

    async def grow() -> Any:
        policy = open_policy("seedling")
        try:
            async with open_worlds(["kg"]) as worlds:
                wanted = tasks_for(worlds, "train", 0, tasks, {})
                return await grow_for_training(config, wanted, worlds, policy, "bench", 0)
        finally:
            await policy.close()

    trees = asyncio.run(grow())
    arrays = tree_arrays(trees)
    pack = max(pack_trees(trees, arrays, estimate("split_loo", arrays), 4096), key=len)
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    prepare(model)
    return model, load_of(pack, model.config.vocab_size)


def side_by_side(mode: Mode, family: str, load: Load, ways: Sequence[str], repeats: int) -> dict[str, Any]:
    """One line of the table. What disturbs a run makes it longer, so the least of `repeats` is kept."""
    device = load.ids.device.type
    steps = {way: steps_of(load, way) for way in ways}
    gradients, peaks = {}, {}
    for way in ways:
        mode.model.zero_grad(set_to_none=True)
        if mode.name == "float32" or device != "cpu":
            with PeakMemory(mode.model) as seen:
                backward(mode.model, steps[way], mode.dtype)
            peaks[way] = seen.peak
        else:
            backward(mode.model, steps[way], mode.dtype)
        gradients[way] = torch.cat([p.grad.flatten() for p in mode.model.parameters() if p.grad is not None]).cpu()
    size = gradients["rows"].norm()
    gaps = {way: float((gradients[way] - gradients["rows"]).norm() / size) for way in ways if way != "rows"}
    if max(gaps.values()) > AGREE[mode.dtype]:
        raise RuntimeError(f"{family}, {mode.name}: gradients differ from those of rows, {gaps}; nothing is timed")
    del gradients
    optimizer = make_optimizer(TrainSettings(optimizer="adamw_fused"), mode.model, 1e-9)
    spent = dict.fromkeys(ways, math.inf)
    for _ in range(repeats):
        for way in ways:
            mode.model.zero_grad(set_to_none=True)
            spent[way] = min(spent[way], seconds_of(lambda w=way: _step(mode, steps[w], optimizer), device))  # type: ignore[misc]
    ideal = operations(mode.model, steps["rows"]) / operations(mode.model, steps["tree"])
    line: dict[str, Any] = {
        "family": family, "mode": mode.name, "tokens": load.plan.n_queries,
        "row tokens": sum(s.load.plan.n_queries for s in steps["rows"]),
    }  # fmt: skip
    if "gathered" in ways:
        line["keys gathered per token"] = gathered_keys(load.plan) / load.plan.n_queries
    for way in ways:
        line |= {f"{way}_s": spent[way]} | ({f"{way}_peak": peaks[way]} if way in peaks else {})
    speedup = spent["rows"] / spent["tree"]
    return line | {"speedup": speedup, "ideal": ideal, "of ideal": speedup / ideal, "difference": max(gaps.values())}


def _step(mode: Mode, steps: Sequence[Any], optimizer: torch.optim.Optimizer) -> None:
    backward(mode.model, steps, mode.dtype)
    optimizer.step()


def _show(console: Console, line: dict[str, Any]) -> None:
    ways = [way for way in WAYS if f"{way}_s" in line]
    peaks = {way: f" {line[f'{way}_peak'] / 2**20:.0f} MiB" for way in ways if f"{way}_peak" in line}
    times = "  ".join(f"{way} {line[f'{way}_s']:.3g} s{peaks.get(way, '')}" for way in ways)
    console.print(
        f"{line['family']}, {line['mode']}: {times}  speed-up {line['speedup']:.2f} of {line['ideal']:.2f} "
        f"({line['of ideal']:.3f})  difference {line['difference']:.1e}",
        soft_wrap=True, highlight=False,
    )  # fmt: skip


# -- planning ---------------------------------------------------------------------------------------------------------


def _planning(console: Console) -> Figures:
    """Laying out the rows of a comb of 32 x (512 + 512), beside TRL's own packing of the same rows."""
    family = next(f for f in FAMILIES if f.name == NAMES[3])
    plan = family.plan(32_768)
    ids = np.random.default_rng(0).integers(0, 50_000, plan.n_queries)
    paths = trajectories(plan)
    prompt = int(len(paths[0]) // 2)
    rows = [torch.from_numpy(ids[path]) for path in paths]
    logps = [torch.full((len(row),), -0.5) for row in rows]

    def ours() -> int:
        given = [
            TokenRow(context=r[:prompt].numpy(), response=r[prompt:].numpy(), behaviour=p[prompt:].double().numpy())
            for r, p in zip(rows, logps, strict=True)
        ]
        (pack,) = pack_rows([given], 10**9)
        return pack.plan.n_queries

    own = min(seconds_of(ours, "cpu") for _ in range(3))
    known = min(seconds_of(lambda: family.plan(plan.n_queries), "cpu") for _ in range(3))
    figures: Figures = {"plan_s": (own, "s"), "plan_known_s": (known, "s")}
    row_class = _trl_row()
    if row_class is None:
        console.print("TRL is not installed: its packing is not timed")
        return figures
    mask = [torch.cat([torch.zeros(prompt), torch.ones(len(row) - prompt)]).long() for row in rows]

    def theirs() -> int:
        packed = row_class()
        for row, one, logp in zip(rows, mask, logps, strict=True):
            packed.add(
                {"input_ids": row, "completion_mask": one, "old_log_probs": logp, "advantage": 1.0, "group_id": 0}
            )
        return len(packed.pack()["input_ids"])

    assert ours() == plan.n_queries <= theirs()
    spent = min(seconds_of(theirs, "cpu") for _ in range(2))
    own = min(own, *(seconds_of(ours, "cpu") for _ in range(2)))
    console.print(f"planning a comb from rows: {own:.3f} s, TRL {spent:.3f} s; where it is known {known:.4f} s")
    return figures | {"plan_trl_s": (spent, "s"), "plan_vs_trl_packing": (own / spent, "ratio")}


def _trl_row() -> Any:
    """TRL's `TreeRow`; None where TRL is not installed, or is another version."""
    try:
        from trl.experimental.async_grpo.packing import TreeRow
    except Exception as error:  # its imports may miss anything
        print(f"TRL's packing left out: {type(error).__name__}: {str(error).partition(chr(10))[0][:120]}", flush=True)
        return None
    return TreeRow


# -- on a GPU ---------------------------------------------------------------------------------------------------------


def _gpu(console: Console, quick: bool, began: float) -> list[dict[str, Any]]:
    """Random weights in the shapes of Qwen3-0.6B and Qwen3-4B, bfloat16 over float32 weights, checkpointed where large.

    What does not fit into the time is left out from the end, and said.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shapes = {"0.6B": (1024, 3072, 28, 16), "4B": (2560, 9728, 36, 32)}
    table = []
    for size, (hidden, inner, layers, heads) in list(shapes.items())[: 1 if quick else 2]:
        config = Qwen3Config(
            vocab_size=151_936, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=8, head_dim=128, max_position_embeddings=65_536,
            tie_word_embeddings=True,
        )  # fmt: skip
        with torch.device("cuda"):
            model: nn.Module = Qwen3ForCausalLM(config).eval()
        prepare(model)
        checkpoint_layers(model, size == "4B")
        mode = Mode(name="bf16", model=model, dtype=torch.bfloat16)
        for family in (f for f in FAMILIES if f.name in NAMES):
            if time.monotonic() - began > GPU_SECONDS * (0.45 if size == "0.6B" else 0.8):
                console.print(f"left out, no time: {size}, {family.name}")
                continue
            load = load_of(family.plan(4096 if quick else 16_384), 151_936, "cuda")
            line = side_by_side(mode, family.name, load, WAYS if size == "0.6B" else WAYS[:3], 2)
            table.append(line | {"model": size})
            _show(console, line)
        del model, mode
        torch.cuda.empty_cache()
    return table
