"""A transformer layer, forward and backward, on a CPU: the packed tree against one row per trajectory.

Measured in CPU seconds of one thread, so that a busy machine does not change the ratio. The ideal ratio is that of the
floating-point operations, linear layers plus visible pairs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from treewright.benchmarks.families import FAMILIES, Family, trajectories
from treewright.kernels.tree_attention import tree_attention
from treewright.kernels.tree_plan import TreePlan

__all__ = ["cpu_figures"]

HIDDEN, INNER, HEADS, KV_HEADS, WIDTH = 256, 768, 4, 2, 64
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class _Layer:
    """Attention and a gated feed-forward part, without norms and positions: the matrix products of a Qwen3 layer."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = [
            ((HEADS + 2 * KV_HEADS) * WIDTH, HIDDEN),
            (HIDDEN, HEADS * WIDTH),
            (2 * INNER, HIDDEN),
            (HIDDEN, INNER),
        ]
        self.weights = [(torch.randn(s, generator=generator) * 0.05).requires_grad_() for s in shapes]

    def __call__(self, x: Tensor, attention: Attention) -> Tensor:
        sizes = [HEADS * WIDTH, KV_HEADS * WIDTH, KV_HEADS * WIDTH]
        q, k, v = torch.split(F.linear(x, self.weights[0]), sizes, -1)
        q, k, v = (y.view(len(x), -1, WIDTH).transpose(0, 1) for y in (q, k, v))
        x = x + F.linear(attention(q, k, v).transpose(0, 1).reshape(len(x), -1), self.weights[1])
        gate, up = F.linear(x, self.weights[2]).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.weights[3])

    def operations(self, tokens: int, pairs: int) -> int:
        """Multiply-adds of a forward pass."""
        return tokens * sum(w.numel() for w in self.weights) + 2 * pairs * HEADS * WIDTH


def cpu_figures(
    tokens: int, most_rows: int | None, repeats: int
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """A table row per family, and the least of measured speed-up over ideal where the ideal is at least 2.

    most_rows  run only that many of a family's rows, spread over their lengths, and scale by operations; None: all
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        table = [_measure(family, tokens, most_rows, repeats) for family in FAMILIES]
    finally:
        torch.set_num_threads(threads)
    least = min(row["of ideal"] for row in table if row["ideal"] >= 2)
    return table, {"cpu_tree_speedup_over_ideal_min": {"value": least, "unit": "ratio"}}


def _measure(family: Family, tokens: int, most_rows: int | None, repeats: int) -> dict[str, Any]:
    layer, plan = _Layer(), family.plan(tokens)
    rows = sorted((torch.from_numpy(r) for r in trajectories(plan)), key=len)
    step = 1 if most_rows is None else max(1, len(rows) // most_rows)
    sample = rows[step // 2 :: step]
    whole, part = (sum(layer.operations(len(r), len(r) * (len(r) + 1) // 2) for r in x) for x in (rows, sample))
    x = torch.randn(plan.n_queries, HIDDEN)
    tree = rows_time = math.inf
    # What disturbs a run makes it longer: the least of several is the cleanest, taken in turns.
    for _ in range(repeats):
        tree = min(tree, *(_seconds(lambda: _both(layer(x, _tree(plan)))) for _ in range(3)))
        rows_time = min(rows_time, sum(_seconds(lambda r=r: _both(layer(x[r], _causal))) for r in sample))  # type: ignore[misc]
    by_rows = rows_time * whole / part
    ideal = whole / layer.operations(plan.n_queries, plan.n_pairs)
    return {
        "family": family.name, "tokens": plan.n_queries, "rows": len(rows), "tree_s": tree, "rows_s": by_rows,
        "speedup": by_rows / tree, "ideal": ideal, "of ideal": by_rows / tree / ideal,
    }  # fmt: skip


def _tree(plan: TreePlan) -> Attention:
    return lambda q, k, v: tree_attention(q, k, v, plan)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, 0) for x in (k, v))
    return F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]


def _both(out: Tensor) -> None:
    torch.autograd.backward(out.sum())


def _seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start
