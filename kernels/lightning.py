"""Lightning attention in blocks: linear attention under a fixed decay per head, from given states."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["lightning_attention"]


def lightning_attention(
    q: Tensor, k: Tensor, v: Tensor, slope: Tensor, state: Tensor | None = None, block: int = 64
) -> tuple[Tensor, Tensor]:
    """q, k [S, L, H, K]; v [S, L, H, V]; slope [S, L, H], by which each token's step decays → out, states [S, H, K, V].

    A token with slope, k and v zero leaves the state as it is. Differentiable; `block` tokens are one product.
    """
    q, k, v, slope = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), slope.transpose(1, 2)
    if state is None:
        state = q.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    outputs = []
    for parts in zip(*(torch.split(x, block, 2) for x in (q, k, v, slope)), strict=True):
        q_part, k_part, v_part, fall = parts
        passed = fall.cumsum(-1)
        between = passed[..., None] - passed[..., None, :]
        hidden = torch.ones(between.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        weight = (-between).masked_fill(hidden, float("-inf")).exp()
        own = (q_part @ k_part.transpose(-1, -2) * weight) @ v_part
        outputs.append(own + (q_part * (-passed).exp()[..., None]) @ state)
        left = passed[..., -1:] - passed
        state = (
            state * (-passed[..., -1]).exp()[..., None, None]
            + (k_part * (-left).exp()[..., None]).transpose(-1, -2) @ v_part
        )
    return torch.cat(outputs, 2).transpose(1, 2), state
