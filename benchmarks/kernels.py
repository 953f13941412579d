"""Measures the tree kernels: ``python -m treewright.benchmarks.kernels``, or `main`.

First a correctness gate against float64; nothing is timed if it is red. Then planning, a transformer layer on the CPU
and a whole training step (packed tree against one row per trajectory), decoding over shared prefixes, and, where a GPU
is present, forward and backward on it against FlexAttention, SDPA and a bit mask, and log-probabilities against what is
installed. Results carry hardware, versions and commit. Without a GPU nothing here is a GPU figure.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from treewright.benchmarks.families import FAMILIES
from treewright.benchmarks.kernels_cpu import cpu_figures
from treewright.benchmarks.kernels_decode import decode_figures
from treewright.benchmarks.kernels_step import step_figures
from treewright.kernels.dispatch import choose_backend
from treewright.kernels.reference import dense_attention, relative_error
from treewright.kernels.tree_attention import tree_attention
from treewright.kernels.tree_plan import TreePlan
from treewright.kernels.triton_backend import triton_attention

__all__ = ["GATES", "correctness", "main", "planning_seconds"]

GPU_SECONDS = 450.0
"""Within this the whole run on a GPU ends; what does not fit is left out and named."""

GATES = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
Figure = dict[str, Any]
Attention = Callable[[Tensor, Tensor, Tensor, TreePlan], tuple[Tensor, Tensor]]


def main(quick: bool = False, json_path: str | None = None, plot_path: str | None = None) -> dict[str, Any]:
    """Runs everything the machine can run, prints a table, writes JSON and a plot (SVG) where paths are given.

    quick  smaller trees and a sample of the rows they are compared with; within a minute on two idle cores
    Returns {"figures": {name: {"value", "unit"}}, "table", "hardware", "versions", "commit", "quick", "gpu"}. Raises
    RuntimeError, timing nothing, where a result differs from float64 by more than its gate.
    """
    gpu, machine, began = torch.cuda.is_available(), _machine(), time.monotonic()
    device = "cuda" if gpu else "cpu"
    errors = correctness(device)
    figures: dict[str, Figure] = {
        f"max_rel_error_{_short(dtype)}": _figure(error, "relative RMS") for dtype, error in errors.items()
    }
    figures["plan_s_1e6"] = _figure(planning_seconds(1_000_000), "s")
    table = {}
    small = quick or gpu  # where a GPU waits, the CPU's part is only a sample
    table["cpu"], more = cpu_figures(2048 if small else 4096, most_rows=4 if small else None, repeats=1 if quick else 2)
    figures |= more
    table["training step"], more = step_figures(device, quick)
    figures |= more
    table["decoding"], more = decode_figures(device, quick)
    figures |= more
    if gpu:
        from treewright.benchmarks.kernels_gpu import gpu_figures, logp_rows

        table["log-probs"] = logp_rows()
        table["gpu"], more = gpu_figures(quick, GPU_SECONDS - (time.monotonic() - began))
        figures |= more
    result = {"figures": figures, "table": table, "quick": quick, "gpu": gpu, **machine}
    _show(result)
    if json_path:
        Path(json_path).write_text(json.dumps(result, indent=1) + "\n")
    if plot_path:
        drawing = Path(plot_path).with_suffix(".svg")
        on_gpu = bool(table.get("gpu"))
        drawing.write_text(_plot(table["gpu" if on_gpu else "cpu"], on_gpu))
        print(f"plot: {drawing}")
    return result


def correctness(device: str, backend: str = "auto") -> dict[torch.dtype, float]:
    """Largest relative error of out, lse, dq, dk and dv against float64, over trees, forests and cuts, per dtype.

    On a GPU also packs long enough for key blocks to be split, and the pass that adds dQ by atomics. Raises
    RuntimeError where one exceeds its gate.
    """
    plans = [family.plan(384, seed=1) for family in FAMILIES if "32k" not in family.name]
    plans += [plans[4].cut(100, 300), plans[3].pad_to(400)]
    worst = {}
    for dtype in GATES:
        errors = []
        for i, plan in enumerate(plans):
            # A GPU compiles for every layout of heads: there only bfloat16 goes through all of them.
            heads = [(4, 4), (4, 2), (4, 1)][i % 3] if device == "cpu" or dtype == torch.bfloat16 else (4, 1)
            for attention in _ways(device, dtype, [64, 128][i % 2], backend):
                errors.append(_error(plan, heads, [64, 128][i % 2], dtype, device, attention, seed=i))
        if device != "cpu" and dtype == torch.bfloat16:
            longer = [FAMILIES[0].plan(3000, seed=2), FAMILIES[8].plan(3000, seed=2)]
            for plan, width in itertools.product(longer, (64, 128)):
                for attention in _ways(device, dtype, width, backend):
                    errors.append(_error(plan, (4, 1), width, dtype, device, attention, seed=width))
        worst[dtype] = max(errors)
        if worst[dtype] > GATES[dtype]:
            raise RuntimeError(f"{dtype} is off by {worst[dtype]:.2e} on {device}, gate {GATES[dtype]}: nothing timed")
    return worst


def _ways(device: str, dtype: torch.dtype, width: int, backend: str) -> list[Attention]:
    """What is checked: `tree_attention`, and on a GPU in half precision its other backward pass."""
    ways: list[Attention] = [lambda q, k, v, plan: tree_attention(q, k, v, plan, return_lse=True, backend=backend)]
    chosen = choose_backend(backend, torch.device(device), dtype, width)
    if chosen in ("triton", "triton_ptr") and dtype != torch.float32:
        scale, tma = width**-0.5, chosen == "triton"
        ways.append(
            lambda q, k, v, plan: triton_attention(
                q, k, v, plan.to(device), scale, None, tma=tma, deterministic=False, fused=True
            )
        )
    return ways


def _error(
    plan: TreePlan,
    heads: tuple[int, int],
    width: int,
    dtype: torch.dtype,
    device: str,
    attention: Attention,
    seed: int,
) -> float:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(heads[0], plan.n_queries), (heads[1], plan.n_keys), (heads[1], plan.n_keys), (heads[0], plan.n_queries)]
    q, k, v, g = (torch.randn(*s, width, generator=generator).to(device, dtype) for s in sizes)
    own = [x.clone().requires_grad_() for x in (q, k, v)]
    true = [x.double().requires_grad_() for x in (q, k, v)]
    out, lse = attention(own[0], own[1], own[2], plan)
    true_out, true_lse = dense_attention(true[0], true[1], true[2], plan.to(device))
    found = [out, lse, *torch.autograd.grad(out, own, g)]
    expected = [true_out, true_lse, *torch.autograd.grad(true_out, true, g.double())]
    return max(relative_error(a, b) for a, b in zip(found, expected, strict=True))


def planning_seconds(tokens: int) -> float:
    """Median CPU seconds to plan a random forest: from segments to block lists of 128 × 128."""
    rng = np.random.default_rng(0)
    parent: list[int] = []
    lengths: list[int] = []
    total = 0
    while total < tokens:
        path: list[int] = []
        for _ in range(int(rng.integers(20, 100))):
            path = path[: int(rng.integers(1, len(path) + 1)) if path else 0]
            parent.append(path[-1] if path else -1)
            lengths.append(int(rng.integers(5, 60)))
            path.append(len(parent) - 1)
            total += lengths[-1]
    took = []
    for _ in range(5):
        start = time.process_time()
        plan = TreePlan.from_segments(parent, lengths)
        plan.rows(128, 128), plan.columns(128, 128)
        took.append(time.process_time() - start)
    return float(np.median(took))


def _figure(value: float, unit: str) -> Figure:
    return {"value": value, "unit": unit}


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]


def _machine() -> dict[str, Any]:
    where = Path(__file__).resolve().parent
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=where, capture_output=True, text=True)
    hardware = {"machine": platform.machine(), "cpu": _cpu_name(), "threads": 1}
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    if torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name()
        versions["cuda"] = str(torch.version.cuda)
    try:
        import triton

        versions["triton"] = triton.__version__
    except ImportError:
        versions["triton"] = "absent"
    return {"hardware": hardware, "versions": versions, "commit": asked.stdout.strip() or "unknown"}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _show(result: dict[str, Any]) -> None:
    for name, rows in result["table"].items():
        if not rows:
            print(f"\n{name}: nothing was measured")
            continue
        columns = list(rows[0])
        cells = [columns, *([_text(row[c]) for c in columns] for row in rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
        print(f"\n{name}")
        for line in cells:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print()
    for name, figure in result["figures"].items():
        print(f"{name:40s} {_text(figure['value'])} {figure['unit']}")
    if result["quick"]:
        print("Quick: small trees, and rows sampled; use the full run for anything that is quoted.")
    if not result["gpu"]:
        print("No GPU here: these are CPU figures and say nothing about a GPU.")


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _plot(rows: list[dict[str, Any]], gpu: bool) -> str:
    """An SVG of horizontal bars: what was measured, and a tick where the ideal or the baseline stands."""
    bar, tick, unit = (
        ("fwd_tflops", "flex_fwd_tflops", "TFLOP/s forward (tick: FlexAttention)")
        if gpu
        else ("speedup", "ideal", "× faster than rows (tick: ideal)")
    )
    largest = max(max(row[bar], row.get(tick) or 0) for row in rows)
    parts = []
    for i, row in enumerate(rows):
        y, length = 34 + 24 * i, 420 * row[bar] / largest
        mark = 250 + 420 * (row.get(tick) or 0) / largest
        label = " ".join(str(row[c]) for c in ("family", "tokens", "heads", "D") if c in row)
        parts.append(
            f'<text x="242" y="{y + 13}" text-anchor="end">{label}</text>'
            f'<rect x="250" y="{y}" width="{length:.1f}" height="16" fill="#4878a8"/>'
            f'<line x1="{mark:.1f}" x2="{mark:.1f}" y1="{y - 2}" y2="{y + 18}" stroke="#c03028" stroke-width="2"/>'
            f'<text x="{max(250 + length, mark) + 6:.1f}" y="{y + 13}">{row[bar]:.3g}</text>'
        )
    height = 44 + 24 * len(rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="740" height="{height}" font-family="sans-serif" '
        f'font-size="12"><rect width="740" height="{height}" fill="white"/>'
        f'<text x="250" y="20" font-weight="bold">{unit}</text>{"".join(parts)}</svg>\n'
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m treewright.benchmarks.kernels")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", default=None)
    parser.add_argument("--plot", default=None)
    parser.add_argument("--tiles", action="store_true", help="only try tiles, on a GPU: minutes, and nothing is kept")
    arguments = parser.parse_args()
    if arguments.tiles:
        from treewright.benchmarks.kernels_gpu import tile_rows

        correctness("cuda")
        tile_rows()
    else:
        main(arguments.quick, arguments.json, arguments.plot)
