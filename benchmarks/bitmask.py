"""A baseline: attention under a mask of one bit per (query, key) pair, as a plain Triton program.

What many speculative decoders and tree trainers do. It reads Tq · Tk / 8 bytes of mask per head, where a `TreePlan` has
four bytes per key. Forward only. Importing this needs Triton.
"""

# mypy: ignore-errors
# Triton compiles these functions; their annotations are its own.

import torch
import triton
import triton.language as tl

__all__ = ["bitmask_attention", "packed_mask"]

LOG2E = tl.constexpr(1.4426950408889634)


def packed_mask(plan, rows=1024):
    """int32 [Tq, ceil(Tk / 32)]; bit j % 32 of word j // 32 says whether the query sees key j. `rows` at a time."""
    words = -(-plan.n_keys // 32)
    out = torch.zeros(plan.n_queries, words, dtype=torch.int32, device=plan.device)
    keys, ends = torch.arange(words * 32, device=plan.device), plan.end.new_zeros(words * 32)
    ends[: plan.n_keys] = plan.end
    bits = 1 << torch.arange(32, device=plan.device)
    for start in range(0, plan.n_queries, rows):
        at = plan.q_offset + torch.arange(start, min(start + rows, plan.n_queries), device=plan.device)[:, None]
        seen = (keys <= at) & (at < ends)
        out[start : start + rows] = (seen.view(len(at), words, 32) * bits).sum(-1).int()
    return out


@triton.jit(do_not_specialize=["n_q", "n_k", "q_offset", "n_words"])
def _forward(q_in, k_in, v_in, out, words, n_q, n_k, q_offset, n_words, scale, GROUPS: tl.constexpr, D: tl.constexpr,
             BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, COMPUTE: tl.constexpr):  # fmt: skip
    block, head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    rows, dims, columns = block * BLOCK_Q + tl.arange(0, BLOCK_Q), tl.arange(0, D), tl.arange(0, BLOCK_K)
    inside = rows < n_q
    own = head.to(tl.int64) * n_q * D
    shared = (head // GROUPS).to(tl.int64) * n_k * D
    q = tl.load(q_in + own + rows[:, None] * D + dims[None, :], mask=inside[:, None], other=0.0).to(COMPUTE)
    acc = tl.zeros([BLOCK_Q, D], tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    top = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    stop = tl.minimum(n_k, q_offset + (block + 1) * BLOCK_Q)
    for start in range(0, stop, BLOCK_K):
        keys = start + columns
        at = words + rows[:, None].to(tl.int64) * n_words + (keys // 32)[None, :]
        word = tl.load(at, mask=inside[:, None] & (keys < n_k)[None, :], other=0)
        if tl.max(tl.max((word != 0).to(tl.int32), 1), 0) > 0:  # most tiles of a wide tree hold nothing
            seen = ((word >> (keys % 32)[None, :]) & 1) != 0
            place = shared + keys[:, None].to(tl.int64) * D + dims[None, :]
            k = tl.load(k_in + place, mask=(keys < n_k)[:, None], other=0.0).to(COMPUTE)
            v = tl.load(v_in + place, mask=(keys < n_k)[:, None], other=0.0).to(COMPUTE)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2E)
            scores = tl.where(seen, scores, float("-inf"))
            raised = tl.maximum(top, tl.max(scores, 1))
            base = tl.where(raised == float("-inf"), 0.0, raised)
            weights = tl.exp2(scores - base[:, None])
            shrink = tl.exp2(top - base)
            total = total * shrink + tl.sum(weights, 1)
            acc = tl.dot(weights.to(COMPUTE), v, acc * shrink[:, None], input_precision="ieee")
            top = raised
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out + own + rows[:, None] * D + dims[None, :], acc.to(out.dtype.element_ty), mask=inside[:, None])


def bitmask_attention(q, k, v, words, q_offset=0, scale=None):
    """out [Hq, Tq, D] for contiguous q [Hq, Tq, D] and k, v [Hkv, Tk, D] under ``words = packed_mask(plan)``."""
    from treewright.kernels.triton_backend import _compute, _on, tile_for

    q, k, v = (x.contiguous() for x in (q, k, v))
    out = torch.empty_like(q)
    tile = tile_for("forward", False, q.dtype, q.shape[2])
    with _on(q.device):
        _forward[-(-q.shape[1] // tile.block_q), q.shape[0]](
            q, k, v, out, words, q.shape[1], k.shape[1], q_offset, words.shape[1],
            q.shape[2] ** -0.5 if scale is None else scale, GROUPS=q.shape[0] // k.shape[0], D=q.shape[2],
            BLOCK_Q=tile.block_q, BLOCK_K=tile.block_k, COMPUTE=_compute(q.dtype), num_warps=tile.warps,
            num_stages=tile.stages,
        )  # fmt: skip
    return out
