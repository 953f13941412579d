"""Forward and backward of tree attention on a GPU, against FlexAttention, SDPA and a bit mask.

TFLOP/s count visible pairs only: 4 · D · Hq per pair forward, 10 · D · Hq backward. Every time is the median of runs on
fresh random data, by CUDA events.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from treewright.benchmarks.families import FAMILIES, trajectories
from treewright.kernels import triton_backend
from treewright.kernels.dispatch import choose_backend
from treewright.kernels.flex import flex_block_mask
from treewright.kernels.reference import relative_error
from treewright.kernels.tree_attention import tree_attention
from treewright.kernels.tree_logp import tree_logp
from treewright.kernels.tree_plan import TreePlan

__all__ = ["fused_attention", "gpu_figures", "logp_rows", "tile_rows"]

Shapes = list[tuple[int, ...]]
SHAPES = (
    (16384, (32, 8), 128), (65536, (32, 8), 128), (4096, (32, 8), 128), (16384, (32, 8), 64), (16384, (64, 8), 128),
    (16384, (16, 8), 128), (16384, (32, 32), 128), (65536, (32, 8), 64), (4096, (32, 8), 64),
)  # fmt: skip
"""Tokens, query and key heads, head size; those that matter most first."""

TUNED = 4  # shapes for which FlexAttention is tuned too: it takes long
RUNS, WARM = 15, 2
ENOUGH = 0.6  # seconds after which three runs are enough
DENSE_LIMIT = 4096  # tokens up to which SDPA with a dense mask is timed
BITMASK_LIMIT = 32768
ROWS_LIMIT = 300_000  # tokens of all rows up to which SDPA on rows is timed
TILES = {
    "forward": ((128, 128, 8, 2), (128, 64, 8, 2), (128, 64, 8, 3), (64, 128, 4, 2)),
    "queries": ((128, 64, 8, 2), (128, 64, 8, 3), (64, 64, 4, 2), (128, 128, 8, 1)),
    "columns": ((64, 128, 8, 2), (64, 64, 8, 2), (64, 64, 4, 2), (32, 128, 8, 2)),
    "fused": ((64, 64, 8, 2), (32, 128, 8, 2), (64, 128, 8, 1), (32, 64, 4, 2)),
}
"""Query block, key block, warps, stages; the pinned tile of head size 128 first."""

MASK_PARTS = (
    "kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices",
    "q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices",
)  # fmt: skip


def gpu_figures(quick: bool, seconds: float = 360.0) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """A table row per family, token count, head layout and head size; figures named after them.

    seconds  what does not fit is left out from the end, and said; the shapes that matter most come first
    """
    deadline = time.monotonic() + seconds
    table: list[dict[str, Any]] = []
    for i, (tokens, heads, width) in enumerate(SHAPES[:1] if quick else SHAPES):
        baselines = _Flex.both(tokens, heads, width, tuned=not quick and i < TUNED and _left(deadline) > 90)
        for family in FAMILIES[::3] if quick else FAMILIES:
            label = f"{family.name}, {tokens}, {heads[0]}:{heads[1]}, D={width}"
            if _left(deadline) < 10:
                print(f"left out, {seconds:.0f} s are over: {label}", flush=True)
                continue
            row = {"family": family.name, "tokens": tokens, "heads": f"{heads[0]}:{heads[1]}", "D": width}
            row |= _measure(family.plan(tokens), heads, width, baselines, variants=i == 0)
            table.append(row)
            print(f"{label}: {row['fwd_tflops']:.0f} forward, {row['bwd_tflops']:.0f} backward", flush=True)
        del baselines
        torch.cuda.empty_cache()
    return table, _figures(table)


def _left(deadline: float) -> float:
    return deadline - time.monotonic()


def _figures(table: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each row's figures, and their least and median over the families at 32:8, D = 128 and 16k tokens or more."""
    units = {"fwd_tflops": "TFLOP/s", "bwd_tflops": "TFLOP/s", "fwd_vs_flex": "ratio", "bwd_vs_flex": "ratio"}
    figures = {}
    large = [r for r in table if r["D"] == 128 and r["heads"] == "32:8" and r["tokens"] >= 16384]
    for name, unit in units.items():
        known = sorted(row[name] for row in large if row[name] is not None)
        if known:
            figures[f"{name}_min"] = {"value": known[0], "unit": unit}
            figures[f"{name}_median"] = {"value": known[len(known) // 2], "unit": unit}
    for row in table:
        label = f"{row['family']}, {row['tokens']}, {row['heads']}, D={row['D']}"
        for name, unit in units.items():
            if row[name] is not None:
                figures[f"{name} [{label}]"] = {"value": row[name], "unit": unit}
    return figures


def _measure(
    plan: TreePlan, heads: tuple[int, int], width: int, baselines: list[_Flex], variants: bool
) -> dict[str, Any]:
    """One family. variants: also the backward passes that are not the default, and the bit-mask baseline."""
    plan = plan.to("cuda")
    shapes: Shapes = [(heads[0], plan.n_queries, width), *[(heads[1], plan.n_keys, width)] * 2]
    work = plan.n_pairs * heads[0] * width * 4 / 1e12
    forward, backward = _times(shapes, lambda q, k, v: tree_attention(q, k, v, plan))
    backend = choose_backend("auto", torch.device("cuda"), torch.bfloat16, width)
    row: dict[str, Any] = {"backend": backend, "fwd_tflops": work / forward, "bwd_tflops": 2.5 * work / backward}
    ran = [times for flex in baselines if (times := _try(shapes, flex.on(plan))) is not None]
    best_forward, best_backward = (min((t[i] for t in ran), default=None) for i in range(2))
    row["flex"] = " and ".join(flex.name for flex in baselines)
    row["flex_fwd_tflops"] = work / best_forward if best_forward else None
    row["flex_bwd_tflops"] = 2.5 * work / best_backward if best_backward else None
    row["fwd_vs_flex"] = best_forward / forward if best_forward else None
    row["bwd_vs_flex"] = best_backward / backward if best_backward else None
    row["rows_fwd_over_tree"], row["rows_bwd_over_tree"] = _rows(plan, heads, width, forward, backward)
    dense = _try(shapes, _dense(plan.dense_mask(), heads)) if plan.n_queries <= DENSE_LIMIT else None
    row["dense_fwd_over_tree"] = dense[0] / forward if dense else None
    others: dict[str, float | None] = dict.fromkeys(("fused_bwd_tflops", "fixed_bwd_tflops", "bitmask_fwd_tflops"))
    if variants:
        others = _variants(plan, shapes, work, backend)
    return row | others


def _variants(plan: TreePlan, shapes: Shapes, work: float, backend: str) -> dict[str, float | None]:
    """Other ways: dQ by atomics in the pass over keys (fused), the same bits every time (fixed), one bit per pair."""
    fused = _try(shapes, lambda q, k, v: fused_attention(q, k, v, plan, backend))
    fixed = _try(shapes, lambda q, k, v: tree_attention(q, k, v, plan, deterministic=True))
    bitmask = _bitmask(plan, shapes) if plan.n_queries <= BITMASK_LIMIT else None
    return {
        "fused_bwd_tflops": 2.5 * work / fused[1] if fused else None,
        "fixed_bwd_tflops": 2.5 * work / fixed[1] if fixed else None,
        "bitmask_fwd_tflops": work / bitmask[0] if bitmask else None,
    }


def _bitmask(plan: TreePlan, shapes: Shapes) -> tuple[float, float] | None:
    from treewright.benchmarks.bitmask import bitmask_attention, packed_mask

    words = packed_mask(plan)  # type: ignore[no-untyped-call]

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = bitmask_attention(q, k, v, words)  # type: ignore[no-untyped-call]
        return out

    q, k, v = (torch.randn(s, device="cuda", dtype=torch.bfloat16) for s in shapes)
    gap = relative_error(attention(q, k, v).float(), tree_attention(q, k, v, plan).double())
    if gap > 2e-2:
        raise RuntimeError(f"the bit-mask baseline is off by {gap:.1e}: it is not timed")
    return _try(shapes, attention, backward=False)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, backend: str) -> Tensor:
    """The Triton backends with dQ added by atomics in the pass over keys."""
    scale, tma = q.shape[-1] ** -0.5, backend == "triton"
    return triton_backend.triton_attention(q, k, v, plan, scale, None, tma=tma, deterministic=False, fused=True)[0]


def _times(shapes: Shapes, attention: Callable[..., Tensor], backward: bool = True) -> tuple[float, float]:
    """Median seconds forward and backward over fresh data: at most RUNS runs, or three where they take long."""
    spent: tuple[list[float], list[float]] = ([], [])
    for run in range(RUNS + WARM):
        q, k, v = (torch.randn(s, device="cuda", dtype=torch.bfloat16).requires_grad_() for s in shapes)
        g = torch.randn(shapes[0], device="cuda", dtype=torch.bfloat16)
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]  # type: ignore[no-untyped-call]
        marks[0].record()
        out = attention(q, k, v)
        marks[1].record()
        if backward:
            torch.autograd.grad(out, (q, k, v), g)
        marks[2].record()
        torch.cuda.synchronize()
        if run >= WARM:  # the first compile and warm up
            spent[0].append(marks[0].elapsed_time(marks[1]) / 1e3)
            spent[1].append(marks[1].elapsed_time(marks[2]) / 1e3)
        if len(spent[0]) >= 3 and sum(spent[0]) + sum(spent[1]) > ENOUGH:
            break
    return statistics.median(spent[0]), statistics.median(spent[1])


def _try(shapes: Shapes, attention: Callable[..., Tensor], backward: bool = True) -> tuple[float, float] | None:
    """As `_times`; None, with a word, where something cannot run on this machine."""
    try:
        return _times(shapes, attention, backward)
    except Exception as error:  # compilers raise anything
        print(f"left out: {type(error).__name__}: {(str(error) or '?').splitlines()[0][:120]}", flush=True)
        return None


class _Flex:
    """FlexAttention compiled once for a shape: the families' masks are copied into one, so nothing compiles again."""

    def __init__(self, tokens: int, heads: tuple[int, int], mode: str | None, device: str = "cuda") -> None:
        self.name, self.grouped = "tuned" if mode else "default", heads[0] != heads[1]
        self.compiled: Any = torch.compile(flex_attention, dynamic=False, mode=mode)
        causal = TreePlan.from_segments([-1], [tokens]).to(device)
        self.end, self.mask = causal.end, flex_block_mask(causal)

    @classmethod
    def both(cls, tokens: int, heads: tuple[int, int], width: int, tuned: bool) -> list[_Flex]:
        """The default, and the tuned one where wanted; a new shape forgets what was compiled before."""
        torch.compiler.reset()
        return [cls(tokens, heads, mode) for mode in ([None, "max-autotune-no-cudagraphs"] if tuned else [None])]

    def on(self, plan: TreePlan) -> Callable[..., Tensor]:
        """The compiled attention with this plan as its mask. Raises ValueError for another number of tokens."""
        fresh = flex_block_mask(plan)
        if plan.end.shape != self.end.shape:
            raise ValueError(f"{plan.n_keys} tokens for a mask of {len(self.end)}")
        self.end.copy_(plan.end)
        for name in MASK_PARTS:
            getattr(self.mask, name).copy_(getattr(fresh, name))
        return lambda q, k, v: self.compiled(q[None], k[None], v[None], block_mask=self.mask, enable_gqa=self.grouped)[
            0
        ]


def _dense(mask: Tensor, heads: tuple[int, int]) -> Callable[..., Tensor]:
    groups = heads[0] // heads[1]

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask)[0]

    return attention


def _rows(
    plan: TreePlan, heads: tuple[int, int], width: int, forward: float, backward: float
) -> tuple[float | None, float | None]:
    """Time of causal SDPA on every trajectory over that of the tree; rows of one length are one batch, timed once."""
    rows = [len(r) for r in trajectories(plan.to("cpu"))]
    if sum(rows) > ROWS_LIMIT:
        return None, None
    spent = [0.0, 0.0]
    groups = heads[0] // heads[1]

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    for length in sorted(set(rows)):
        count = rows.count(length)
        times = _try([(count, heads[0], length, width), *[(count, heads[1], length, width)] * 2], attention)
        if times is None:
            return None, None
        spent = [total + time for total, time in zip(spent, times, strict=True)]
    return spent[0] / forward, spent[1] / backward


def tile_rows(tokens: int = 16384, width: int = 128) -> list[dict[str, Any]]:
    """TFLOP/s of each pass with other tiles than the pinned one, on a tree and on a chain; to choose tiles by."""
    rows = []
    plans = [FAMILIES[i].plan(tokens).to("cuda") for i in (5, 8)]
    shapes: Shapes = [(32, tokens, width), *[(8, tokens, width)] * 2]
    for name, tiles in TILES.items():
        for tile in tiles:
            triton_backend.TRIED[name, width] = triton_backend.Tile(*tile)
            try:
                speeds = [_pass_speed(name, plan, shapes) for plan in plans]
            finally:
                triton_backend.TRIED.clear()
            rows.append({"pass": name, "tile": str(tile), "tree": speeds[0], "causal": speeds[1]})
            print(rows[-1], flush=True)
    return rows


def _pass_speed(name: str, plan: TreePlan, shapes: Shapes) -> float | None:
    """TFLOP/s of the forward pass where `name` is that, else of the whole backward pass with this tile in it."""
    backend = choose_backend("auto", torch.device("cuda"), torch.bfloat16, shapes[0][2])
    work = plan.n_pairs * shapes[0][0] * shapes[0][2] * 4 / 1e12
    if name == "fused":
        times = _try(shapes, lambda q, k, v: fused_attention(q, k, v, plan, backend))
    else:
        times = _try(shapes, lambda q, k, v: tree_attention(q, k, v, plan), name != "forward")
    if times is None:
        return None
    return work / times[0] if name == "forward" else 2.5 * work / times[1]


def logp_rows(tokens: int = 8192, hidden: int = 4096, vocabulary: int = 151_936) -> list[dict[str, Any]]:
    """Log-probabilities in bfloat16, ours and what is installed: seconds forward and backward, peak GiB, and the
    relative error of h's gradient on its first 256 rows."""
    rows = []
    h = torch.randn(tokens, hidden, device="cuda", dtype=torch.bfloat16).requires_grad_()
    weight = (torch.randn(vocabulary, hidden, device="cuda", dtype=torch.bfloat16) / 64).requires_grad_()
    target = torch.randint(vocabulary, (tokens,), device="cuda")
    expected = _exact_gradient(h.detach()[:256], weight.detach(), target[:256])
    for name, build in (("tree_logp", _own_logp), ("cut-cross-entropy", _cut_logp), ("Liger", _liger_logp)):
        try:
            run = build()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            spent = []
            for _ in range(5):
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                start.record()
                found = torch.autograd.grad(run(h, weight, target), (h, weight))[0]
                stop.record()
                torch.cuda.synchronize()
                spent.append(start.elapsed_time(stop) / 1e3)
        except Exception as error:  # not installed, or its compiler raises anything
            print(f"{name} left out: {type(error).__name__}: {(str(error) or '?').splitlines()[0][:120]}", flush=True)
            continue
        peak = (torch.cuda.max_memory_allocated() - before) / 2**30
        gap = relative_error(found[:256].float(), expected.double())
        rows.append({"log-probs": name, "seconds": statistics.median(spent), "peak GiB": peak, "error": gap})
    return rows


def _exact_gradient(h: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Of the summed cross entropy with respect to h, in float32."""
    h = h.float().requires_grad_()
    loss = F.cross_entropy(h @ weight.float().T, target, reduction="sum")
    return torch.autograd.grad(loss, h)[0]


def _own_logp() -> Callable[..., Tensor]:
    def run(h: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return -tree_logp(h, weight, torch.arange(len(h), device=h.device), target)[0].sum()

    return run


def _cut_logp() -> Callable[..., Tensor]:
    loss: Any = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    return lambda h, weight, target: loss(h, weight, target, impl="cce_exact", reduction="sum")


def _liger_logp() -> Callable[..., Tensor]:
    loss: Any = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss(reduction="sum")
    return lambda h, weight, target: loss(weight, h, target)
