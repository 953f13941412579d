"""FlexAttention with a BlockMask that comes from the plan (Dong et al. 2024, arXiv:2412.05496).

The generic backend on GPUs, and the baseline that the others must beat. On a CPU it runs forward only and unfused.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from treewright.kernels.tree_plan import TreePlan

__all__ = ["flex_block_mask", "flex_tree_attention"]

BLOCK = 128


def flex_block_mask(plan: TreePlan, window: int | None = None, chunk: int | None = None) -> BlockMask:
    """The plan as a BlockMask of 128 × 128 blocks; kept in the plan. No mask is evaluated to find it."""
    key = ("flex", window, chunk)
    if key not in plan.cache:
        plan.cache[key] = _block_mask(plan, window, chunk)
    found: BlockMask = plan.cache[key]
    return found


def _block_mask(plan: TreePlan, window: int | None, chunk: int | None) -> BlockMask:
    rows = plan.rows(BLOCK, BLOCK, window, chunk)
    width = -(-plan.n_keys // BLOCK)
    counts, indices = [], []
    for pointer, flat in ((rows.partial_ptr, rows.partial), (rows.full_ptr, rows.full)):
        count = pointer.diff()
        row = torch.repeat_interleave(torch.arange(len(count), device=flat.device), count)
        place = torch.arange(len(flat), device=flat.device) - pointer[row]
        table = torch.zeros(len(count), width, dtype=torch.int32, device=flat.device)
        table[row, place] = flat
        counts.append(count.int()[None, None])
        indices.append(table[None, None])
    end, low, key_depth = plan.end, plan.low(window, chunk), plan.key_depth
    # A tensor, since the compiler would make a new kernel for every number.
    offset = torch.tensor(plan.q_offset, device=plan.device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        at = query + offset
        seen = (key <= at) & (at < end[key])
        return seen if low is None else seen & (key_depth[key] >= low[query])

    return BlockMask.from_kv_blocks(
        counts[0], indices[0], counts[1], indices[1],
        BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(plan.n_queries, plan.n_keys),
    )  # fmt: skip


def flex_tree_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, scale: float, window: int | None, options: Any = None,
    chunk: int | None = None, softcap: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out [Hq, Tq, D] and lse [Hq, Tq]; ``options`` are FlexAttention's kernel options.

    Raises ValueError on a CPU where gradients are wanted: FlexAttention has none there.
    """
    on_gpu = q.device.type == "cuda"
    if not on_gpu and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise ValueError('FlexAttention has no backward pass on a CPU; use backend="sdpa" there')
    run = _compiled() if on_gpu else flex_attention
    out, aux = run(
        q[None], k[None], v[None], None if softcap is None else _capped(softcap),
        block_mask=flex_block_mask(plan, window, chunk), scale=scale,
        enable_gqa=q.shape[0] != k.shape[0], return_aux=AuxRequest(lse=True), kernel_options=options,
    )  # fmt: skip
    return out[0], aux.lse[0]


@functools.cache
def _capped(softcap: float) -> Any:
    def score(found: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(found / softcap)

    return score


@functools.cache
def _compiled() -> Any:
    return torch.compile(flex_attention)
