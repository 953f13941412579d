"""Host side of the Triton backends: tiles, launches, autograd. Importing this does not import Triton."""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from treewright.kernels.dispatch import HEAD_SIZES
from treewright.kernels.tree_plan import TreePlan

__all__ = ["Tile", "tile_for", "triton_attention"]


@dataclass(frozen=True, slots=True)
class Tile:
    """Block sizes and launch options of one kernel; pinned, so that recomputation gives the same bits."""

    block_q: int
    block_k: int
    warps: int
    stages: int


TRIED: dict[tuple[str, int], Tile] = {}
"""Tiles by pass and head size in place of the pinned ones, while the benchmark tries them."""


def tile_for(name: str, tma: bool, dtype: torch.dtype, width: int) -> Tile:
    """The tile of pass `name` ("forward", "queries", "columns", "fused") for head size `width`.

    Chosen so that nothing spills and shared memory fits (compiled budgets are in budgets.json).
    """
    if (name, width) in TRIED:
        return TRIED[name, width]
    if dtype == torch.float32:  # exact products do not use tensor cores
        return (
            Tile(32, 32, 4, 2)
            if width <= 64
            else Tile(32, 16, 4, 1)
            if name in ("forward", "queries")
            else Tile(16, 32, 4, 1)
        )
    if width == 256:
        return Tile(64, 64, 8, 1) if tma else Tile(64, 32, 8, 1)
    if tma:
        return {
            "forward": Tile(128, 128 if width == 128 else 64, 8, 2),
            "queries": Tile(128, 64, 8, 2),
            "columns": Tile(64, 128, 8, 2),
            "fused": Tile(64, 64 if width == 128 else 128, 8, 2),
        }[name]
    return {
        "forward": Tile(128, 64, 8 if width == 128 else 4, 3 if width <= 64 else 2),
        "queries": Tile(64, 64, 4, 2),
        "columns": Tile(32, 64, 4, 2),
        "fused": Tile(64, 64, 8, 2),
    }[name]


def triton_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: TreePlan,
    scale: float,
    window: int | None,
    *,
    tma: bool,
    deterministic: bool,
    fused: bool = False,
    chunk: int | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """out [Hq, Tq, Dv] and lse float32 [Hq, Tq], differentiable. `tma`: tiles through tensor descriptors.

    fused  dQ by atomic additions in the pass over keys, instead of a pass of its own that computes two products again;
           not together with `deterministic`, nor for head sizes above 128, where it would spill

    Raises ValueError for dtypes and head sizes that have no kernel.
    """
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16) or not {q.shape[-1], v.shape[-1]} <= {*HEAD_SIZES}:
        sizes = ", ".join(map(str, HEAD_SIZES))
        raise ValueError(
            f"no Triton kernel for {q.dtype} with head sizes {q.shape[-1]} and {v.shape[-1]}: head sizes are {sizes}, "
            'in float32, float16 or bfloat16; use backend="sdpa" or "flex"'
        )
    fused = fused and not deterministic and max(q.shape[-1], v.shape[-1]) <= 128
    call = _Call(plan, scale, window, chunk, softcap, tma, deterministic, fused)
    out, lse = _Triton.apply(q, k, v, call)  # type: ignore[no-untyped-call]
    return out, lse


@dataclass(frozen=True, slots=True)
class _Call:
    """What one call of `triton_attention` was asked for, beside its tensors."""

    plan: TreePlan
    scale: float
    window: int | None
    chunk: int | None
    softcap: float | None
    tma: bool
    deterministic: bool
    fused: bool

    def tile(self, name: str, q: Tensor, v: Tensor) -> Tile:
        return tile_for(name, self.tma, q.dtype, max(q.shape[-1], v.shape[-1]))


class _Triton(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, call: _Call) -> tuple[Tensor, Tensor]:
        q, k, v = (_aligned(x) for x in (q, k, v))
        out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=q.dtype, device=q.device)
        lse = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        tile = call.tile("forward", q, v)
        _launch("forward_kernel", -(-q.shape[1] // tile.block_q), q.shape[0], tile, call, (q, k, v), (out, lse),
                _rows(call, tile))  # fmt: skip
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.call = call
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        call: _Call = ctx.call
        d_out, d_lse = grads
        g = torch.zeros_like(out) if d_out is None else _aligned(d_out)
        delta = _delta(out, g, d_lse)
        if call.fused:
            d_q = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
            d_k, d_v = _columns(q, k, v, g, lse, delta, d_q, call)
            d_q = d_q.to(q.dtype)
        else:
            d_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
            tile = call.tile("queries", q, v)
            _launch("queries_kernel", -(-q.shape[1] // tile.block_q), q.shape[0], tile, call, (q, k, v, g),
                    (lse, delta, d_q), _rows(call, tile))  # fmt: skip
            d_k, d_v = _columns(q, k, v, g, lse, delta, None, call)
        return d_q, d_k, d_v, None


def _columns(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, lse: Tensor, delta: Tensor, d_q: Tensor | None, call: _Call
) -> tuple[Tensor, Tensor]:
    tile = call.tile("fused" if call.fused else "columns", q, v)
    split = None if call.deterministic else _split(call.plan, tile, k.shape[0], q.device)
    columns = call.plan.columns(tile.block_q, tile.block_k, split)
    # Items of one key block add up, in float32; where each key block is one item, it stores its result.
    create = torch.zeros if columns.split else torch.empty
    dtype = torch.float32 if columns.split else k.dtype
    d_k, d_v = (create(x.shape, dtype=dtype, device=x.device) for x in (k, v))
    limited = call.window is not None or call.chunk is not None
    full = (columns.stop, columns.stop) if limited else (columns.full_first, columns.full_stop)
    lists = (columns.key_block, columns.first, columns.stop, *full)
    _launch("columns_kernel", len(columns.first), k.shape[0], tile, call, (q, k, v, g),
            (lse, delta, d_k, d_v, delta if d_q is None else d_q), lists, ADD=columns.split,
            FUSED=call.fused)  # fmt: skip
    return d_k.to(k.dtype), d_v.to(v.dtype)


def _split(plan: TreePlan, tile: Tile, heads: int, device: torch.device) -> int:
    """Most query blocks per work item: an eighth of a processor's fair share, so that the last ones end together."""
    key = ("split", tile.block_q, tile.block_k, heads)
    if key not in plan.cache:
        processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
        whole = plan.columns(tile.block_q, tile.block_k)
        plan.cache[key] = max(16, int((whole.stop - whole.first).sum()) * heads // (8 * processors))
    found: int = plan.cache[key]
    return found


def _rows(call: _Call, tile: Tile) -> tuple[Tensor, ...]:
    rows = call.plan.rows(tile.block_q, tile.block_k, call.window, call.chunk)
    return rows.partial_ptr, rows.partial, rows.full_ptr, rows.full


def _aligned(x: Tensor) -> Tensor:
    """x itself where the copy engine can read it: rows contiguous, strides and base multiples of 16 bytes."""
    size = x.element_size()
    fits = x.stride(2) == 1 and x.stride(0) * size % 16 == 0 and x.stride(1) * size % 16 == 0
    return (
        x
        if fits and x.stride(1) > 0 and x.stride(0) > 0 and x.data_ptr() % 16 == 0
        else x.clone(memory_format=torch.contiguous_format)
    )


def _delta(out: Tensor, g: Tensor, d_lse: Tensor | None) -> Tensor:
    kernels = _kernels()
    delta = torch.empty(out.shape[:-1], dtype=torch.float32, device=out.device)
    d_lse = None if d_lse is None else d_lse.float().contiguous()
    with _on(out.device):
        kernels.delta_kernel[-(-out.shape[1] // 64), out.shape[0]](
            out, g, delta if d_lse is None else d_lse, delta, out.shape[1], g.stride(0), g.stride(1),
            D=out.shape[2], BLOCK=64, LSE=d_lse is not None,
        )  # fmt: skip
    return delta


def _launch(
    name: str,
    blocks: int,
    heads: int,
    tile: Tile,
    call: _Call,
    tiled: tuple[Tensor, ...],
    plain: tuple[Tensor, ...],
    lists: tuple[Tensor, ...],
    **more: Any,
) -> None:
    """Starts one kernel. tiled: q, k, v(, dO), read tile by tile; plain: what it reads or writes by address."""
    q, k, v = tiled[:3]
    plan, low = call.plan, call.plan.low(call.window, call.chunk)
    sizes = (tile.block_q, tile.block_k, tile.block_k, tile.block_q)
    sources = [_descriptor(x, size) if call.tma else x for x, size in zip(tiled, sizes, strict=False)]
    strides = [s for x in tiled for s in (x.stride(0), x.stride(1))]
    with _on(q.device):
        getattr(_kernels(), name)[blocks, heads](
            *sources, *plain, plan.end, plan.key_depth, plan.key_depth if low is None else low, *lists,
            plan.n_queries, plan.n_keys, plan.q_offset, call.scale, (call.softcap or 1.0) / math.log(2), *strides,
            GROUPS=q.shape[0] // k.shape[0], D=q.shape[2], DV=v.shape[2], BLOCK_Q=tile.block_q, BLOCK_K=tile.block_k,
            COMPUTE=_compute(q.dtype), PRECISION="ieee", WINDOW=low is not None, CAP=call.softcap is not None,
            TMA=call.tma, num_warps=tile.warps, num_stages=tile.stages, **more,
        )  # fmt: skip


def _on(device: torch.device) -> Any:
    return torch.cuda.device(device) if device.type == "cuda" else torch.autograd.profiler.record_function("triton")


@functools.cache
def _kernels() -> Any:
    from treewright.kernels import triton_kernels

    return triton_kernels


def _descriptor(x: Tensor, block: int) -> Any:
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, block, x.shape[2]])


def _compute(dtype: torch.dtype) -> Any:
    import triton.language as tl

    if os.environ.get("TRITON_INTERPRET") == "1":
        return tl.float32
    return {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[dtype]
