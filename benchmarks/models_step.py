"""A training step of a hybrid decoder (Gated DeltaNet and attention, Qwen3.5-shaped) on trees beside the same on rows.

The rows go through the model's own code, one after another. The ideal is the ratio of floating-point operations. The
gradients of the two ways must agree before anything is timed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from treewright.benchmarks.families import FAMILIES, Family, trajectories
from treewright.kernels import TreePlan
from treewright.training.decoders.check import running
from treewright.training.model import prepare, tree_logprobs

__all__ = ["hybrid_step"]

NAMES = ("flat 2k + 16 x 1k", "binary depth 6 x 512", "random depth 6, 30-800", "comb 32 x (512 + 512)")
TOKENS = 1024
AGREE = 1e-4


def hybrid_step(quick: bool = False) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """A table row per family, and the least share of the ideal speed-up of a whole step.

    Raises RuntimeError where the gradients of trees and rows disagree.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = _model()
        families = [f for f in FAMILIES if f.name in (NAMES[1:3] if quick else NAMES)]
        table = [_measured(model, family, TOKENS // 4 if quick else TOKENS, quick) for family in families]
    finally:
        torch.set_num_threads(threads)
    least = min(row["of ideal"] for row in table)
    return table, {"hybrid_step_over_ideal_min": {"value": least, "unit": "ratio"}}


def _model() -> Any:
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    torch.manual_seed(0)
    config = Qwen3_5TextConfig(
        vocab_size=2048, hidden_size=256, intermediate_size=768, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, linear_num_key_heads=4, linear_num_value_heads=4, linear_key_head_dim=64,
        linear_value_head_dim=64, max_position_embeddings=8192,
    )  # fmt: skip
    model = Qwen3_5ForCausalLM(config)
    prepare(model)
    return model


def _measured(model: Any, family: Family, tokens: int, quick: bool) -> dict[str, Any]:
    plan = family.plan(tokens)
    ids = torch.randint(4, 2048, (plan.n_queries,), generator=torch.Generator().manual_seed(0))
    trained = torch.nonzero(plan.parent >= 0).flatten()
    weight = torch.randn(len(trained), generator=torch.Generator().manual_seed(1)) / len(trained)
    rows = [torch.from_numpy(row) for row in trajectories(plan)]
    through = torch.zeros(plan.n_queries)
    for row in rows:
        through[row] += 1
    whole = torch.zeros(plan.n_queries).index_copy_(0, trained, weight)

    def on_tree() -> None:
        logp, _ = tree_logprobs(model, ids, plan, plan.parent[trained].long(), ids[trained])
        (logp * weight).sum().backward()  # type: ignore[no-untyped-call]

    def on_rows() -> None:
        with running(model, "sdpa"):
            for row in rows:
                logits = model(input_ids=ids[row][None], use_cache=False).logits[0, :-1]
                logp = torch.log_softmax(logits.float(), -1).gather(1, ids[row[1:], None])[:, 0]
                (logp * (whole / through)[row[1:]]).sum().backward()  # type: ignore[no-untyped-call]

    gap = _gap(model, on_tree, on_rows)
    if gap > AGREE:
        raise RuntimeError(f"{family.name}: gradients of tree and rows differ by {gap:.1e}; nothing is timed")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    spent = [math.inf, math.inf]
    for _ in range(1 if quick else 2):  # what disturbs a run makes it longer: the least is the cleanest
        for i, way in enumerate((on_tree, on_rows)):
            spent[i] = min(spent[i], _seconds(model, optimizer, way))
    parts = [TreePlan.from_segments([-1], [len(row)]) for row in rows]
    ideal = sum(_operations(model, part) for part in parts) / _operations(model, plan)
    return {
        "family": family.name, "tokens": plan.n_queries, "row tokens": sum(len(r) for r in rows), "tree_s": spent[0],
        "rows_s": spent[1], "speedup": spent[1] / spent[0], "ideal": ideal, "of ideal": spent[1] / spent[0] / ideal,
        "difference": gap,
    }  # fmt: skip


def _gap(model: Any, *ways: Callable[[], None]) -> float:
    found: list[Tensor] = []
    for way in ways:
        model.zero_grad(set_to_none=True)
        way()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    return float((found[0] - found[1]).norm() / found[1].norm())


def _seconds(model: Any, optimizer: torch.optim.Optimizer, way: Callable[[], None]) -> float:
    model.zero_grad(set_to_none=True)
    start = time.process_time()
    way()
    optimizer.step()
    return time.process_time() - start


def _operations(model: Any, plan: TreePlan) -> int:
    """Multiply-adds of a forward pass: linear layers, visible pairs, recurrent states, logits of what predicts."""
    c = model.config
    linear = sum(
        m.weight.numel() for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"
    )
    full = sum(kind == "full_attention" for kind in c.layer_types)
    states = c.linear_num_value_heads * c.linear_key_head_dim * c.linear_value_head_dim * 4
    parent = plan.parent.numpy()
    predicting = len(np.unique(parent[parent >= 0]))
    each = linear + (len(c.layer_types) - full) * states
    return int(
        plan.n_queries * each + 2 * plan.n_pairs * c.num_attention_heads * c.head_dim * full
        + predicting * model.lm_head.weight.numel()
    )  # fmt: skip
