"""Tree attention from ordinary attention calls: the CPU default.

A run is a stretch of tokens each of which continues the one before it. A long run attends to its root path (all of it,
no mask) and to itself (causal); short runs are put together into chunks that attend to the path they share and, under
a small mask, to the rest. Each such piece is one call; pieces of the same queries are merged by their log-sum-exps,
and go backward one by one with the merged output and log-sum-exp (Dao et al. 2022, arXiv:2205.14135, section 3).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from treewright.kernels.tree_plan import TreePlan

__all__ = ["Piece", "Work", "sdpa_attention", "work_list"]

CHUNK = 128  # most queries of short runs put together
MERGE = 64  # a shared path shorter than this goes under the mask instead of into a call of its own


@dataclass(frozen=True, slots=True)
class Piece:
    """One attention call. ``keys`` is a slice or int64 [L] of key coordinates.

    ``mask`` is None (all visible), "causal", or bool [queries, L] with True where visible.
    """

    keys: slice | Tensor
    mask: Tensor | str | None


@dataclass(frozen=True, slots=True)
class Work:
    """Queries [start, stop) and the pieces they attend to, which do not overlap."""

    start: int
    stop: int
    pieces: tuple[Piece, ...]


def work_list(
    plan: TreePlan, window: int | None = None, chunk: int | None = None, size: int = CHUNK, longest: int | None = None
) -> list[Work]:
    """The calls that make up one pass over the pack, runs cut after `longest` queries; kept in the plan.

    window, chunk as `TreePlan.low` has them;  size  most queries of short runs in one call
    """
    key = ("sdpa", window, chunk, size, longest)
    if key not in plan.cache:
        plan.cache[key] = _build(plan, plan.low(window, chunk), size, longest)
    found: list[Work] = plan.cache[key]
    return found


@dataclass(frozen=True, slots=True)
class _Layout:
    """The plan as numpy arrays over key coordinates (`depth` too), and where each token's run starts.

    low  [Tq] the least depth that each query sees, None where it sees its whole path
    """

    offset: int
    parent: Any
    run_start: Any
    end: Any
    depth: Any
    low: Any

    def path(self, token: int) -> Any:
        """Key coordinates of the root path that ends with `token`, rising; empty for −1."""
        stretches = []
        while token >= 0:
            stretches.append(np.arange(self.run_start[token], token + 1))
            token = int(self.parent[self.run_start[token]])
        return np.concatenate(stretches[::-1]) if stretches else np.zeros(0, dtype=np.int64)


def _build(plan: TreePlan, low: Tensor | None, size: int, longest: int | None) -> list[Work]:
    offset, index = plan.q_offset, np.arange(plan.n_keys)
    parent = np.concatenate([np.arange(-1, offset - 1), plan.parent.cpu().numpy()])
    run_start = np.maximum.accumulate(np.where(parent == index - 1, 0, index))
    least = None if low is None else low.cpu().numpy()
    layout = _Layout(offset, parent, run_start, plan.end.cpu().numpy(), plan.key_depth.cpu().numpy(), least)
    begins = [offset, *(int(i) for i in np.flatnonzero(run_start == index) if i > offset), plan.n_keys]
    # A window needs a mask, whose size must stay bounded.
    step = size if low is not None else longest or plan.n_keys
    return [_work(layout, a, b) for a, b in _stretches(begins, size, step)]


def _stretches(begins: list[int], size: int, step: int) -> Iterator[tuple[int, int]]:
    """Query ranges [a, b): short runs together up to `size`, long ones alone and cut every `step`."""
    start = begins[0]
    for this, following in itertools.pairwise(begins):
        if following - start > size and this > start:
            yield start, this
            start = this
        if following - start >= size:
            for stop in [*range(start + step, following, step), following]:
                yield start, stop
                start = stop
    if start < begins[-1]:
        yield start, begins[-1]


def _work(layout: _Layout, a: int, b: int) -> Work:
    path, start, stop = layout.path(int(layout.parent[a])), a - layout.offset, b - layout.offset
    if layout.low is not None:
        path = path[layout.depth[path] >= layout.low[start:stop].min()]
    elif layout.run_start[b - 1] <= a:
        own = Piece(slice(a, b), "causal")
        return Work(start, stop, (Piece(_tight(path), None), own) if len(path) else (own,))
    shared = 0 if layout.low is not None else int((layout.end[path] >= b).sum())
    shared = shared if shared >= MERGE else 0
    rest, queries = np.concatenate([path[shared:], np.arange(a, b)]), np.arange(a, b)[:, None]
    seen = (rest[None] <= queries) & (queries < layout.end[rest][None])
    if layout.low is not None:
        seen &= layout.depth[rest][None] >= layout.low[start:stop, None]
    masked = Piece(_tight(rest), torch.from_numpy(seen))
    return Work(start, stop, (Piece(_tight(path[:shared]), None), masked) if shared else (masked,))


def _tight(keys: Any) -> slice | Tensor:
    """A slice where the keys are one stretch: then nothing needs to be gathered."""
    if len(keys) and keys[-1] - keys[0] == len(keys) - 1:
        return slice(int(keys[0]), int(keys[-1]) + 1)
    return torch.from_numpy(np.ascontiguousarray(keys))


def sdpa_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, scale: float, window: int | None, chunk: int | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out [Hq, Tq, D] in q's dtype and lse [Hq, Tq] in float32 (float64 for float64), both differentiable."""
    # The fused CPU kernel never holds all scores; what other devices do here does, and so does a soft cap.
    fused = q.device.type == "cpu" and softcap is None
    works = work_list(plan, window, chunk, longest=None if fused else 1024)
    out, lse = _Sdpa.apply(q, k, v, works, scale, softcap)  # type: ignore[no-untyped-call]
    return out, lse


class _Sdpa(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, works: list[Work], scale: float, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        heads, groups = k.shape[0], q.shape[0] // k.shape[0]
        k, v = k.contiguous(), v.contiguous()  # else every gather would copy all of them
        grouped = _group(q, heads)
        out = torch.empty_like(grouped, memory_format=torch.contiguous_format)
        lse = torch.empty(grouped.shape[:-1], dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
        for work in works:
            rows = slice(work.start, work.stop)
            total: Tensor | None = None
            for piece in work.pieces:
                keys = _take(piece.keys, k, groups), _take(piece.keys, v, groups)
                part, part_lse = _forward(grouped[:, :, rows], *keys, piece.mask, scale, softcap)
                if total is None:
                    total, total_lse = part, part_lse
                else:
                    merged = torch.logaddexp(total_lse, part_lse)
                    total = torch.lerp(
                        total.to(merged.dtype), part.to(merged.dtype), (part_lse - merged).exp()[..., None]
                    )
                    total_lse = merged
            assert total is not None
            out[:, :, rows], lse[:, :, rows] = total, total_lse
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.works, ctx.scale, ctx.softcap = works, scale, softcap
        ctx.set_materialize_grads(False)
        return out.flatten(0, 1), lse.flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        d_out, d_lse = grads
        heads, groups, width = k.shape[0], q.shape[0] // k.shape[0], q.shape[-1]
        d_out = torch.zeros_like(q) if d_out is None else d_out
        given = q.dtype, k.dtype, v.dtype
        if q.device.type == "cpu" and ctx.softcap is None and q.dtype in (torch.bfloat16, torch.float16):
            # The fused CPU kernel goes backward faster in float32 than in half precision (torch 2.13, AMD EPYC).
            q, k, v, out, d_out = (x.to(lse.dtype) for x in (q, k, v, out, d_out))
        queries, d_out = _group(q, heads), _group(d_out, heads)
        if d_lse is not None:
            # dS = P (dO Vᵀ − rowsum(dO O) + dlse): a column of ones in V, of dlse in dO and of zeros in O adds dlse.
            column = _group(d_lse, heads)[..., None].to(q.dtype)
            d_out, out = _widen(d_out, column), _widen(out, torch.zeros_like(column))
            queries, k, v = (
                _widen(queries, torch.zeros_like(column)),
                _widen(k, k.new_zeros(1)),
                _widen(v, v.new_ones(1)),
            )
        d_q = torch.zeros_like(queries, memory_format=torch.contiguous_format)
        d_k, d_v = (torch.zeros(x.shape, dtype=lse.dtype, device=x.device) for x in (k, v))
        for work in ctx.works:
            rows = slice(work.start, work.stop)
            for piece in work.pieces:
                part_k, part_v = _take(piece.keys, k, groups), _take(piece.keys, v, groups)
                own, own_out = (d_out[:, :, rows], queries[:, :, rows]), (out[:, :, rows], lse[:, :, rows])
                part_q, part_k, part_v = _backward(*own, *own_out, part_k, part_v, piece.mask, ctx.scale, ctx.softcap)
                d_q[:, :, rows] += part_q
                _give(piece.keys, d_k, part_k.sum(1, dtype=d_k.dtype))
                _give(piece.keys, d_v, part_v.sum(1, dtype=d_v.dtype))
        d_q, d_k, d_v = d_q.flatten(0, 1)[..., :width], d_k[..., :width], d_v[..., :width]
        return (*(x.to(dtype) for x, dtype in zip((d_q, d_k, d_v), given, strict=True)), None, None, None)


def _group(x: Tensor, heads: int) -> Tensor:
    """[Hq, …] → [Hkv, groups, …]."""
    return x.reshape(heads, x.shape[0] // heads, *x.shape[1:])


def _widen(x: Tensor, column: Tensor) -> Tensor:
    """Eight more columns (which keeps rows aligned): the given one, then zeros."""
    return torch.cat([x, column.expand(*x.shape[:-1], 1), x.new_zeros(*x.shape[:-1], 7)], -1)


def _take(keys: slice | Tensor, x: Tensor, groups: int) -> Tensor:
    """[Hkv, groups, L, D], the group axis without copies."""
    chosen = x[:, keys] if isinstance(keys, slice) else x.index_select(1, keys.to(x.device))
    return chosen[:, None].expand(-1, groups, -1, -1)


def _give(keys: slice | Tensor, total: Tensor, part: Tensor) -> None:
    if isinstance(keys, slice):
        total[:, keys] += part
    else:
        total.index_add_(1, keys.to(total.device), part)


def _bias(mask: Tensor | str | None, q: Tensor) -> Tensor | None:
    if isinstance(mask, Tensor):
        zero = torch.zeros(mask.shape, dtype=q.dtype, device=q.device)
        return zero.masked_fill_(~mask.to(q.device), -math.inf)
    return None


def _forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | str | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    if mask is None and q.shape[1] > 1:
        # Without a mask the query heads of a group are just more rows of one product.
        out, lse = _forward(q.flatten(1, 2)[:, None], k[:, :1], v[:, :1], None, scale, softcap)
        return out.view(q.shape), lse.view(q.shape[:-1])
    if q.device.type == "cpu" and softcap is None:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, mask == "causal", attn_mask=_bias(mask, q), scale=scale
        )
        return out, lse
    scores, _ = _scores(q, k, mask, scale, softcap)
    lse = torch.logsumexp(scores, -1)
    return torch.exp(scores - lse[..., None]).to(v.dtype) @ v, lse


def _backward(
    d_out: Tensor, q: Tensor, out: Tensor, lse: Tensor, k: Tensor, v: Tensor, mask: Tensor | str | None, scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if mask is None and q.shape[1] > 1:
        rows = [x.flatten(1, 2)[:, None] for x in (d_out, q, out, lse)]
        d_q, d_k, d_v = _backward(rows[0], rows[1], rows[2], rows[3], k[:, :1], v[:, :1], None, scale, softcap)
        return d_q.view(q.shape), d_k, d_v
    if q.device.type == "cpu" and softcap is None:
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            d_out, q, k, v, out, lse, 0.0, mask == "causal", attn_mask=_bias(mask, q), scale=scale
        )
        return grads[0], grads[1], grads[2]
    scores, slope = _scores(q, k, mask, scale, softcap)
    weights = torch.exp(scores - lse[..., None])
    delta = (d_out.to(lse.dtype) * out.to(lse.dtype)).sum(-1, keepdim=True)
    d_scores = (weights * (d_out @ v.transpose(-1, -2) - delta) * scale * slope).to(q.dtype)
    return d_scores @ k, d_scores.transpose(-1, -2) @ q, weights.to(d_out.dtype).transpose(-1, -2) @ d_out


def _scores(
    q: Tensor, k: Tensor, mask: Tensor | str | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor | float]:
    """Scores, −∞ where hidden, and what a change of the plain score makes of one of these."""
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * scale
    slope: Tensor | float = 1.0
    if softcap is not None:
        bent = torch.tanh(scores / softcap)
        scores, slope = softcap * bent, 1 - bent * bent
    if mask is None:
        return scores, slope
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril() if mask == "causal" else mask
    return scores.masked_fill(~torch.as_tensor(seen, device=q.device), -math.inf), slope
