"""Trees of tokens that continue a prompt, run through a transformers model in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from treewright.kernels.decode import Path

__all__ = ["KV", "Constraint", "checked", "extended", "joined"]

KV = list[tuple[Tensor, Tensor]]  # for each layer keys and values [1, kv heads, tokens, head dim]


class Constraint(Protocol):
    """What one response may say, from where it stands on."""

    def mask(self, logits: Tensor) -> Tensor:
        """logits [V] with −inf for every token that may not follow."""

    def allows(self, tokens: Sequence[int]) -> bool:
        """Whether these may follow, one after the other. Changes nothing."""

    def take(self, token: int) -> None:
        """The response goes on with `token`, which was allowed."""


def joined(path: Path) -> KV:
    """Keys and values of a whole prompt, layer by layer."""
    keys = torch.cat([stretch.keys for stretch in path], 2)
    values = torch.cat([stretch.values for stretch in path], 2)
    return [(k[None], v[None]) for k, v in zip(keys, values, strict=True)]


def checked(model: Any, kv: KV, tokens: Sequence[int], parents: Sequence[int]) -> tuple[Tensor, KV]:
    """Logits [T, V] after each node of a token tree that continues `kv`, and the nodes' keys and values."""
    from transformers import DynamicCache

    count, before = len(tokens), kv[0][0].shape[2]
    seen = np.eye(count, dtype=bool)
    depth = np.zeros(count, dtype=np.int64)
    for i, parent in enumerate(parents):
        if parent >= 0:
            seen[i] |= seen[parent]
            depth[i] = depth[parent] + 1
    mask = torch.zeros(count, before + count, dtype=model.dtype)
    mask[:, before:].masked_fill_(torch.from_numpy(~seen), torch.finfo(model.dtype).min)
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(kv):
        cache.update(keys, values, layer)
    out = model(
        input_ids=torch.tensor([list(tokens)], device=model.device),
        attention_mask=mask[None, None].to(model.device),
        position_ids=torch.from_numpy(depth + before)[None].to(model.device),
        past_key_values=cache,
        use_cache=True,
    )
    layers = out.past_key_values.layers
    return out.logits[0], [(layer.keys[:, :, before:], layer.values[:, :, before:]) for layer in layers]


def extended(kv: KV, fresh: KV, taken: Sequence[int]) -> KV:
    """Keys and values with those of the nodes `taken` of a token tree behind them."""
    keep = torch.tensor(list(taken), device=kv[0][0].device)
    return [
        (torch.cat([k, a.index_select(2, keep)], 2), torch.cat([v, b.index_select(2, keep)], 2))
        for (k, v), (a, b) in zip(kv, fresh, strict=True)
    ]
