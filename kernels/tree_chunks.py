"""Exact gradients of a tree that does not fit: the pack in chunks, twice.

Pass 1, without gradients, runs the chunks in order; each attends to [the live keys before it; its own], and its keys
and values are kept per layer. Any loss of all log-probabilities then gives their gradient g. Pass 2 runs the chunks
last to first with gradients and backpropagates g; what a chunk owes to keys before it is added up, in float32 or wider,
until the chunk that made them comes.

Recurrent layers keep states, and short convolutions their last inputs, the same way: of the tokens that a later chunk
goes on from (`TreeChunk.read` and `write`).

Only live keys are owed anything, and the live keys of a cut are one root path, so the debts of a layer take as much
memory as the longest path: they are indexed by depth. The result is exact for any loss of the log-probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from treewright.kernels.tree_attention import tree_attention
from treewright.kernels.tree_plan import TreePlan

__all__ = ["TreeChunk", "TreeChunkState"]


class TreeChunkState:
    """Keys, values and owed gradients of one pack while its chunks come and go.

    plan   the whole pack
    cuts   where chunks begin, rising, the first 0; or one int, the most tokens per chunk
    Layers may have different head counts; memory is K, V of the whole pack per layer plus one path of debts. It is free
    as soon as neither the state nor one of its chunks is held.
    """

    def __init__(self, plan: TreePlan, cuts: int | Sequence[int]) -> None:
        starts = list(range(0, plan.n_queries, cuts)) if isinstance(cuts, int) else [int(c) for c in cuts]
        bounds = [*starts, plan.n_queries]
        if not starts or starts[0] != 0 or any(a >= b for a, b in pairwise(bounds)):
            raise ValueError(f"cuts {starts[:8]} must rise from 0 and stay below the plan's {plan.n_queries} tokens")
        self.plan = plan
        live = [plan.live(start) for start in starts]
        self._kept = kept = _Kept(plan, max(each.shape[0] for each in live))
        self.chunks = tuple(
            TreeChunk(
                kept=kept,
                start=a,
                stop=b,
                plan=plan.cut(a, b),
                live=before,
                due=_due(plan, a, b),
                exports=_exports(plan, a, b),
            )
            for (a, b), before in zip(pairwise(bounds), live, strict=True)
        )

    def keys_and_values(self) -> list[Tensor]:
        """Those that chunks have kept so far, [Hkv, N, D] each: keys and values of every layer."""
        return list(self._kept.pairs.values())


class _Kept:
    """What chunks of a pack keep for each other. It knows none of them: in a reference cycle with its chunks, keys and
    values of each pack would stay until Python looks for cycles, which takes gigabytes over many packs."""

    def __init__(self, plan: TreePlan, longest: int) -> None:
        self.plan, self.longest = plan, longest  # the most live tokens before a chunk
        self.rows: dict[Any, Tensor] = {}
        self.debts: dict[Any, Tensor] = {}
        self.pairs: dict[tuple[Any, str], Tensor] = {}
        self._owed: dict[tuple[Any, str], Tensor] = {}

    def keep(self, layer: Any, name: str, chunk: TreeChunk, x: Tensor) -> None:
        """Keeps a chunk's own keys ("k") or values ("v"), [Hkv, own, D]."""
        store = self.pairs.get((layer, name))
        if store is None:
            store = x.new_empty(x.shape[0], self.plan.n_queries, x.shape[2])
            self.pairs[layer, name] = store
        store[:, chunk.start : chunk.stop] = x

    def prefix(self, layer: Any, name: str, chunk: TreeChunk) -> Tensor:
        """The live keys or values before a chunk, [Hkv, P, D]."""
        if (layer, name) not in self.pairs:
            raise ValueError(f"layer {layer} has no kept keys: run every chunk in order under torch.no_grad() first")
        return self.pairs[layer, name][:, chunk.live]

    def settle(self, layer: Any, name: str, chunk: TreeChunk, grad: Tensor) -> Tensor:
        """Takes gradients [Hkv, P + own, D], books those of the prefix, returns own ones with what later chunks owe."""
        wide = torch.promote_types(grad.dtype, torch.float32)
        owed = self._owed.get((layer, name))
        if owed is None:
            owed = torch.zeros(grad.shape[0], self.longest, grad.shape[2], dtype=wide, device=grad.device)
            self._owed[layer, name] = owed
        size = chunk.live.shape[0]
        own = grad[:, size:].to(wide)
        if chunk.due.shape[0]:
            # First what is owed to this chunk leaves the path, then its own debts take the place.
            at = self.plan.depth[chunk.due].to(owed.device)
            own = own.index_add(1, (chunk.due - chunk.start).to(owed.device), owed[:, at])
            owed[:, at] = 0
        owed[:, :size] += grad[:, :size]
        return own.to(grad.dtype)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TreeChunk:
    """Queries [start, stop) of the pack; pass it where a model expects the plan.

    plan  the rectangular cut
    live  int64 [P], tokens before it that it may see
    due   int64, its own tokens that later chunks see
    exports  its queries that tokens of later chunks come right after
    """

    kept: _Kept
    start: int
    stop: int
    plan: TreePlan
    live: Tensor
    due: Tensor
    exports: tuple[int, ...]

    def attention(
        self, layer: Any, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, **options: Any
    ) -> Tensor:
        """`tree_attention` of own q [Hq, own, D] and own k, v [Hkv, own, D] against the prefix and themselves."""
        if not torch.is_grad_enabled():
            self.kept.keep(layer, "k", self, k)
            self.kept.keep(layer, "v", self, v)
        keys = _Carry.apply(k, self, layer, "k")  # type: ignore[no-untyped-call]
        values = _Carry.apply(v, self, layer, "v")  # type: ignore[no-untyped-call]
        out: Tensor = tree_attention(q, keys, values, self.plan, scale, **options)
        return out

    def tails(self, count: int) -> tuple[int, ...]:
        """Its queries that are among the last `count` tokens before a token of a later chunk."""
        key = ("tails", self.start, self.stop, count)
        cache = self.kept.plan.cache
        if key not in cache:
            up, found = self.kept.plan.parent.cpu().numpy().astype(np.int64), np.arange(0)
            at = np.arange(self.stop, len(up))
            for _ in range(count):
                at = np.unique(up[at])
                at = at[at >= 0]
                found = np.union1d(found, at)
            mine = found[(found >= self.start) & (found < self.stop)] - self.start
            cache[key] = tuple(int(i) for i in mine)
        tails: tuple[int, ...] = cache[key]
        return tails

    def read(self, name: Any, tokens: Tensor) -> Tensor:
        """What earlier chunks wrote under `name` for these tokens of the pack, [n, …]; its gradient is theirs."""
        held = [self.kept.rows.get((name, token)) for token in tokens.tolist()]
        if any(x is None for x in held):
            raise ValueError(f"{name} has no kept rows: run every chunk in order under torch.no_grad() first")
        rows = torch.stack([x for x in held if x is not None])
        if torch.is_grad_enabled():
            rows.requires_grad_()
            rows.register_hook(lambda grad: self._owe(name, tokens.tolist(), grad))  # type: ignore[no-untyped-call]
        return rows

    def _owe(self, name: Any, tokens: list[int], grad: Tensor) -> None:
        wide = torch.promote_types(grad.dtype, torch.float32)
        for token, row in zip(tokens, grad.to(wide), strict=True):
            debt = self.kept.debts.get((name, token))
            self.kept.debts[name, token] = row if debt is None else debt + row

    def write(self, name: Any, queries: Sequence[int], rows: Tensor, out: Tensor) -> Tensor:
        """Keeps rows [n, …] of own queries for later chunks; `out` as it is, through which their gradient comes."""
        tokens = [self.start + query for query in queries]
        if not torch.is_grad_enabled():
            self.kept.rows.update({(name, t): row for t, row in zip(tokens, rows.detach().clone(), strict=True)})
            return out
        through: Tensor = _Due.apply(out, rows, self, name, tokens)  # type: ignore[no-untyped-call]
        return through


class _Due(torch.autograd.Function):
    """`out` forwards; backwards, what later chunks owe to `rows`."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, rows: Tensor, chunk: TreeChunk, name: Any, tokens: list[int]) -> Tensor:
        ctx.chunk, ctx.name, ctx.tokens, ctx.shape, ctx.dtype = chunk, name, tokens, rows.shape, rows.dtype
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        debts = ctx.chunk.kept.debts
        due = torch.zeros(ctx.shape, dtype=ctx.dtype, device=grads[0].device)
        for i, token in enumerate(ctx.tokens):
            debt = debts.pop((ctx.name, token), None)
            if debt is not None:
                due[i] = debt.to(ctx.dtype)
        return grads[0], due, None, None, None


def _exports(plan: TreePlan, start: int, stop: int) -> tuple[int, ...]:
    after = plan.parent[stop:]
    mine = torch.unique(after[(after >= start) & (after < stop)]) - start
    return tuple(mine.tolist())


def _due(plan: TreePlan, start: int, stop: int) -> Tensor:
    later = plan.live(stop) if stop < plan.n_queries else plan.depth[:0]
    return later[later >= start]


class _Carry(torch.autograd.Function):
    """[prefix; own] forwards; backwards, settles with the state."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, chunk: TreeChunk, layer: Any, name: str) -> Tensor:
        ctx.chunk, ctx.layer, ctx.name = chunk, layer, name
        return torch.cat([chunk.kept.prefix(layer, name, chunk), own], 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.chunk.kept.settle(ctx.layer, ctx.name, ctx.chunk, grads[0]), None, None, None
