"""A transformer of about 80,000 parameters with a cache of keys and values per row."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from treewright.benchmarks.learning.world import LENGTH, VOCABULARY

__all__ = ["TinyPolicy"]


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, H, C, width/H] of x [B, C, width]."""
        b, c, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, c, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return q, k, v

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """x [B, C, width] after attention's result [B, H, C, width/H] and the feed-forward layer."""
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return x + torch.as_tensor(self.down(F.gelu(self.up(self.norm2(x)))))


class TinyPolicy(nn.Module):
    """Learned positions, two pre-norm blocks, tied embeddings.

    forward  full rows, differentiable; extend  the next tokens of rows whose past is in a cache
    """

    def __init__(self, width: int = 64, layers: int = 2, heads: int = 4, length: int = LENGTH) -> None:
        super().__init__()
        self.width, self.layers, self.heads, self.length = width, layers, heads, length
        self.token = nn.Embedding(VOCABULARY, width)
        self.place = nn.Embedding(length, width)
        nn.init.normal_(self.token.weight, std=width**-0.5)
        nn.init.normal_(self.place.weight, std=width**-0.5)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, C, VOCABULARY] of the token after each of tokens [B, C]."""
        x = self.token(tokens) + self.place.weight[: tokens.shape[1]]
        for block in self._stack():
            q, k, v = block.project(x)
            x = block.finish(x, F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return self.logits(x)

    def _stack(self) -> list[_Block]:
        return cast(list[_Block], list(self.blocks))

    def logits(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(x), self.token.weight)

    def empty_cache(self, rows: int) -> Tensor:
        """[rows, layers, 2, H, length, width/H] of zeros."""
        return torch.zeros(rows, self.layers, 2, self.heads, self.length, self.width // self.heads)

    @torch.no_grad()
    def extend(self, tokens: Tensor, at: Tensor, cache: Tensor) -> Tensor:
        """Logits [B, VOCABULARY] after tokens [B, C] standing at positions at[b] … at[b] + C − 1; fills the cache."""
        rows = torch.arange(len(tokens))[:, None]
        where = at[:, None] + torch.arange(tokens.shape[1])
        end = int(where.max()) + 1
        seen = (torch.arange(end) <= where[:, :, None])[:, None]
        x = self.token(tokens) + self.place(where)
        for i, block in enumerate(self._stack()):
            q, k, v = block.project(x)
            cache[rows, i, 0, :, where] = k.transpose(1, 2)
            cache[rows, i, 1, :, where] = v.transpose(1, 2)
            mixed = F.scaled_dot_product_attention(q, cache[:, i, 0, :, :end], cache[:, i, 1, :, :end], attn_mask=seen)
            x = block.finish(x, mixed)
        return self.logits(x[:, -1])
