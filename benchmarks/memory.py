"""`treewright bench memory`: the peak of a training step against the size of its tree, expected and measured.

Whole, with gradient checkpointing, and in chunks; for a Llama of four layers, two thirds as wide as SmolLM2-135M. What
is expected comes from passes over short rows (`treewright.training.memory.measured`), and from the formula.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from treewright.benchmarks.families import FAMILIES
from treewright.benchmarks.train_ways import Load, load_of
from treewright.training.memory import Costs, PeakMemory, formula, measured, said
from treewright.training.model import chunked_backward, prepare, tree_logprobs
from treewright.training.optim import make_optimizer
from treewright.training.precision import checkpoint_layers, compute_dtype, computing, logit_rows
from treewright.training.settings import TrainSettings

__all__ = ["chunked_ratio", "main", "memory_rows", "step_peak"]

FAMILY = next(f for f in FAMILIES if f.name.startswith("random depth 6"))


def main(quick: bool = False, json_path: str | None = None, plot_path: str | None = None) -> dict[str, Any]:
    """Prints the table and returns {"figures", "table", "quick"}, written as JSON where a path is given."""
    console, threads = Console(emoji=False, markup=False), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        table, ratio = memory_rows(quick), chunked_ratio(quick)
    finally:
        torch.set_num_threads(threads)
    for row in table:
        console.print(
            f"{row['tokens']:6} tokens, {row['way']:24} {row['precision']:8} peak {said(row['peak']):>9}, expected "
            f"{said(row['expected']):>9}, by formula {said(row['formula']):>9}", highlight=False
        )  # fmt: skip
    worst = max(abs(row["expected"] / row["peak"] - 1) for row in table)
    figures = {
        "chunked_peak_ratio_8x": {"value": ratio, "unit": "ratio"},
        "expected_peak_off_max": {"value": worst, "unit": "share"},
        "formula_peak_off_max": {"value": max(abs(r["formula"] / r["peak"] - 1) for r in table), "unit": "share"},
    }
    console.print(f"chunked step on a tree 8 times as large: {ratio:.3f} of the small one's peak")
    result = {"figures": figures, "table": table, "quick": quick}
    if json_path:
        Path(json_path).write_text(json.dumps(result, indent=1) + "\n")
    if plot_path:
        console.print("bench memory draws no plot")
    return result


def _model(quick: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=192 if quick else 384, intermediate_size=512 if quick else 1024,
        num_hidden_layers=4, num_attention_heads=3 if quick else 6, num_key_value_heads=1 if quick else 2, head_dim=64,
        max_position_embeddings=16_384,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    prepare(model)
    return model


def step_peak(model: Any, load: Load, settings: TrainSettings) -> int:
    """Bytes alive at once in a whole step: forward, loss, backward and optimizer, with its state from before."""
    model = copy.deepcopy(model)
    checkpoint_layers(model, settings.checkpointing)
    optimizer = make_optimizer(settings, model, 1e-9)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    optimizer.step()
    trained = torch.nonzero(load.weight).flatten()
    given = load.ids, load.plan, load.plan.parent[trained].long(), load.ids[trained]
    with PeakMemory(model).count(optimizer) as seen:
        with computing(model, compute_dtype(settings.precision)):
            if settings.chunk_tokens is not None:
                chunked_backward(
                    model, *given, lambda p, e: -(p * load.weight[trained]).sum(), settings.chunk_tokens,
                    logit_rows(model),
                )  # fmt: skip
            else:
                logp, _ = tree_logprobs(model, *given, logit_rows(model))
                (-(logp * load.weight[trained]).sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return seen.peak


def memory_rows(quick: bool) -> list[dict[str, Any]]:
    """{"tokens", "way", "precision", "peak", "expected", "formula"} in bytes, for each size and way."""
    model, rows = _model(quick), []
    for precision in ("float32", "bfloat16"):
        plain = TrainSettings(precision=precision)
        ways = {
            "whole": plain,
            "checkpointed": replace(plain, checkpointing=True),
            "chunks of 128": replace(plain, chunk_tokens=128),
            "checkpointed chunks": replace(plain, checkpointing=True, chunk_tokens=128),
        }
        costs = measured(model, plain), formula(model.config, plain, "cpu")
        for tokens in (256, 512) if quick else (256, 1024, 2048):
            load = load_of(FAMILY.plan(tokens), 512)
            for way, settings in ways.items():
                path = int(load.plan.depth.max()) + 1
                expected = [c.peak(tokens, settings.chunk_tokens, settings.checkpointing, path) for c in costs]
                rows.append(
                    {"tokens": tokens, "way": way, "precision": precision,
                     "peak": step_peak(model, load, settings), "expected": expected[0], "formula": expected[1]}
                )  # fmt: skip
    return rows


def chunked_ratio(quick: bool) -> float:
    """Peak of a chunked step on a tree 8 times as large over that of the small tree whole, in chunks that fit there."""
    model, tokens = _model(quick), 256 if quick else 512
    settings = TrainSettings()
    costs: Costs = measured(model, settings)
    small = step_peak(model, load_of(FAMILY.plan(tokens), 512), settings)
    tree = load_of(FAMILY.plan(8 * tokens), 512)
    path = int(tree.plan.depth.max()) + 1
    limit = costs.peak(tokens)
    fits = [(checkpointing, chunk) for checkpointing in (False, True) for chunk in range(tokens, 32, -32)
            if costs.peak(8 * tokens, chunk, checkpointing, path) <= limit]  # fmt: skip
    checkpointing, chunk = fits[0] if fits else (True, 32)
    large = step_peak(
        model, tree,
        replace(settings, chunk_tokens=chunk, checkpointing=checkpointing),
    )  # fmt: skip
    return large / small
