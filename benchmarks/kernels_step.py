"""A whole training step, the packed trees against one row per trajectory: forward, loss, backward, optimizer.

A small decoder with rotary positions, norms, gated feed-forward parts and an output layer, in torch alone. Rows are
packed too, as documents of their own, so that the two differ in nothing but what is shared. Each token has a weight;
its rows share it evenly, and the gradients of the two ways must agree before anything is timed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from treewright.benchmarks.families import FAMILIES, Family, trajectories
from treewright.kernels.reference import relative_error
from treewright.kernels.tree_attention import tree_attention
from treewright.kernels.tree_logp import tree_logp
from treewright.kernels.tree_plan import TreePlan

__all__ = ["seconds_of", "step_figures"]

NAMES = ("flat 2k + 16 x 1k", "binary depth 6 x 512", "random depth 6, 30-800", "comb 32 x (512 + 512)")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the decoder; `tokens` in a tree and, at most, in a pack of rows."""

    tokens: int
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    width: int
    vocabulary: int
    dtype: torch.dtype


CPU = Shape(2048, 2, 256, 768, 4, 2, 64, 2048, torch.float32)
GPU = Shape(16384, 4, 2048, 6144, 16, 8, 128, 65536, torch.bfloat16)
CHECK = Shape(1024, 2, 256, 768, 4, 1, 128, 2048, torch.float32)
"""What a GPU's gradients are compared on: in half precision they would differ by rounding alone."""


@dataclass(frozen=True, slots=True)
class Pack:
    """A plan with token ids int64 [T] and weights [T]; a root has weight 0."""

    plan: TreePlan
    ids: Tensor
    weight: Tensor


class _Decoder:
    def __init__(self, shape: Shape, device: str) -> None:
        self.shape = shape
        generator = torch.Generator().manual_seed(0)
        s, qkv = shape, (shape.heads + 2 * shape.kv_heads) * shape.width
        sizes = [(qkv, s.hidden), (s.hidden, s.heads * s.width), (2 * s.inner, s.hidden), (s.hidden, s.inner)]

        def weight(*size: int) -> Tensor:
            made = torch.randn(size, generator=generator) / math.sqrt(size[-1])
            return made.to(device, shape.dtype).requires_grad_()

        self.embed, self.head = weight(s.vocabulary, s.hidden), weight(s.vocabulary, s.hidden)
        self.layers = [[weight(*size) for size in sizes] for _ in range(s.layers)]
        self.parameters = [self.embed, self.head, *(w for layer in self.layers for w in layer)]

    def hidden(self, pack: Pack) -> Tensor:
        s = self.shape
        x, turn = F.embedding(pack.ids, self.embed), _turns(pack.plan.depth.to(pack.ids.device), s.width)
        for qkv, out, gate_up, down in self.layers:
            sizes = [s.heads * s.width, s.kv_heads * s.width, s.kv_heads * s.width]
            parts = torch.split(F.linear(_norm(x), qkv), sizes, -1)
            q, k, v = (y.view(len(x), -1, s.width).transpose(0, 1) for y in parts)
            seen = tree_attention(_rotated(q, turn), _rotated(k, turn), v, pack.plan)
            x = x + F.linear(seen.transpose(0, 1).reshape(len(x), -1), out)
            gate, up = F.linear(_norm(x), gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, down)
        return _norm(x)

    def backward(self, pack: Pack) -> None:
        """Adds the gradient of the weighted log-likelihood of the pack."""
        parent = pack.plan.parent.to(pack.ids.device).long()
        trained = torch.nonzero(parent >= 0).flatten()
        used, row = torch.unique(parent[trained], return_inverse=True)
        logp, _ = tree_logp(self.hidden(pack)[used], self.head, row, pack.ids[trained])
        (logp * pack.weight[trained]).sum().neg().backward()  # type: ignore[no-untyped-call]

    def operations(self, plan: TreePlan) -> int:
        """Multiply-adds of a forward pass; the output layer runs for tokens that something follows."""
        s = self.shape
        linear = sum(w.numel() for layer in self.layers for w in layer)
        predicting = len(np.unique(plan.parent.cpu().numpy()[plan.parent.cpu().numpy() >= 0]))
        attention = 2 * plan.n_pairs * s.heads * s.width * s.layers
        return plan.n_queries * linear + predicting * self.head.numel() + attention


def step_figures(device: str, quick: bool = False) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """A table row per family, and the least share of the ideal speed-up of a whole step.

    Raises RuntimeError where the gradients of trees and rows disagree.
    """
    shape, threads = CPU if device == "cpu" else GPU, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        families = [f for f in FAMILIES if f.name in (NAMES[1:3] if quick else NAMES)]
        table = [_measure(family, shape, device, quick) for family in families]
    finally:
        torch.set_num_threads(threads)
    least = min(row["of ideal"] for row in table)
    return table, {"step_speedup_over_ideal": {"value": least, "unit": "ratio"}}


def _measure(family: Family, shape: Shape, device: str, quick: bool) -> dict[str, Any]:
    _agree(family, shape if device == "cpu" else CHECK, device)
    tree, rows = packs(family.plan(shape.tokens // 2 if quick else shape.tokens), shape, device)
    model = _Decoder(shape, device)
    optimizer = torch.optim.AdamW(model.parameters, lr=1e-6, fused=device != "cpu")
    _step(model, [tree], optimizer)  # warm
    spent = [math.inf, math.inf]
    for _ in range(1 if quick else 3):  # what disturbs a run makes it longer: the least is the cleanest
        for i, way in enumerate(([tree], rows)):
            spent[i] = min(spent[i], seconds_of(lambda w=way: _step(model, w, optimizer), device))  # type: ignore[misc]
    ideal = sum(model.operations(p.plan) for p in rows) / model.operations(tree.plan)
    return {
        "family": family.name, "tokens": tree.plan.n_queries, "row tokens": sum(p.plan.n_queries for p in rows),
        "tree_s": spent[0], "rows_s": spent[1], "speedup": spent[1] / spent[0], "ideal": ideal,
        "of ideal": spent[1] / spent[0] / ideal,
    }  # fmt: skip


def _agree(family: Family, shape: Shape, device: str) -> None:
    """Raises RuntimeError where the gradients of tree and rows differ, in float32."""
    tree, rows = packs(family.plan(min(shape.tokens, 1024)), shape, device)
    gradients = []
    for way in ([tree], rows):
        model = _Decoder(shape, device)
        for pack in way:
            model.backward(pack)
        gradients.append(torch.cat([w.grad.flatten() for w in model.parameters if w.grad is not None]))
    gap = relative_error(gradients[0], gradients[1].double())
    if gap > 1e-4:
        raise RuntimeError(f"{family.name}: gradients of tree and rows differ by {gap:.1e}; nothing is timed")


def packs(plan: TreePlan, shape: Shape, device: str) -> tuple[Pack, list[Pack]]:
    """The tree as one pack, and its trajectories as documents in packs of about as many tokens."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(shape.vocabulary, (plan.n_queries,), generator=generator)
    weight = torch.randn(plan.n_queries, generator=generator) / plan.n_queries
    rows = trajectories(plan)
    through = torch.zeros(plan.n_queries)
    for row in rows:
        through[row] += 1
    made, group = [], list[Any]()
    for i, row in enumerate(rows):
        group.append(row)
        if i + 1 == len(rows) or sum(map(len, group)) + len(rows[i + 1]) > plan.n_queries:
            at = torch.from_numpy(np.concatenate(group))
            lines = TreePlan.from_segments([-1] * len(group), [len(r) for r in group])
            made.append(Pack(lines.to(device), ids[at].to(device), (weight / through)[at].to(device)))
            group = []
    return Pack(plan.to(device), ids.to(device), weight.to(device)), made


def _step(model: _Decoder, way: Sequence[Pack], optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    for pack in way:
        model.backward(pack)
    optimizer.step()


def seconds_of(run: Callable[[], Any], device: str) -> float:
    """Processor seconds on a CPU, seconds by the clock on a GPU once it is done."""
    if device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


def _turns(depth: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, width] of the rotary embedding (Su et al. 2021, arXiv:2104.09864)."""
    rates = 10_000.0 ** (-torch.arange(0, width, 2, device=depth.device) / width)
    angle = (depth[:, None] * rates).repeat(1, 2)
    return angle.cos(), angle.sin()


def _rotated(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, -1)
    return (x * turn[0] + torch.cat([-second, first], -1) * turn[1]).to(x.dtype)
