"""Four ways to take the same training step on a forest, through one transformers model with one output layer.

tree      each distinct token once, tree attention
rows      one row per trajectory, the rows of a pack side by side
shared    one-level sharing, as Prefix Grouper (arXiv 2506.05433) does: what all rows of a tree begin with is there
          once, what follows once per row
gathered  each distinct token once; every segment's attention reads a copy of the keys and values on its root path, as
          TRL's tree packing describes it: "each segment attends to the K/V of its root-to-segment path". Written from
          that description. TRL forks one token before the branches differ; here the token is shared, in its favour

A token's weight in the loss is split evenly over the rows that it stands in, so that all ways have one gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from treewright.benchmarks.families import trajectories
from treewright.kernels import TreePlan, tree_logp
from treewright.training.decoders.attention import NAME, register
from treewright.training.decoders.check import running
from treewright.training.decoders.plans import inner_model, running_plan, states_on
from treewright.training.pack import PackedBatch
from treewright.training.precision import computing, logit_rows

__all__ = ["WAYS", "Load", "Step", "backward", "gathered_keys", "load_of", "operations", "steps_of"]

GATHERED = "treewright_bench_gathered"
WAYS = ("tree", "rows", "shared", "gathered")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Load:
    """A forest to train on: its plan, token ids int64 [T], and weight float32 [T] of each token in the loss; 0 for
    tokens that are not trained."""

    plan: TreePlan
    ids: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Step:
    """What goes through the model at once: a load, and the attention that it takes."""

    load: Load
    attention: str = NAME


def load_of(pack: PackedBatch | TreePlan, vocabulary: int, device: str = "cpu") -> Load:
    """The load of a pack with its coefficients, or of a plan with random tokens and weights."""
    if isinstance(pack, TreePlan):
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(4, vocabulary, (pack.n_queries,), generator=generator)
        weight = torch.randn(pack.n_queries, generator=generator) / pack.n_queries
        weight[pack.parent < 0] = 0
        return Load(plan=pack.to(device), ids=ids.to(device), weight=weight.to(device))
    weight = torch.zeros(len(pack))
    weight[torch.from_numpy(pack.target)] = torch.from_numpy(pack.coef / pack.trees).float()
    return Load(plan=pack.plan.to(device), ids=torch.from_numpy(pack.ids).to(device), weight=weight.to(device))


def steps_of(load: Load, way: str) -> list[Step]:
    """The load laid out in one of WAYS; ways that repeat tokens take several passes of about the tree's size."""
    if way == "tree":
        return [Step(load=load)]
    if way == "gathered":
        _register()
        return [Step(load=load, attention=GATHERED)]
    rows = [row for row in trajectories(load.plan) if bool(load.weight[torch.from_numpy(row)].any())]
    through = np.zeros(load.plan.n_queries)
    for row in rows:
        through[row] += 1
    share = load.weight / torch.from_numpy(np.maximum(through, 1)).to(load.weight)
    groups = _grouped(rows, load.plan) if way == "shared" else [([], [row]) for row in rows]
    packs, held, size = list[Step](), list[tuple[list[int], list[NDArray[np.int64]]]](), 0
    for common, tails in groups:
        more = len(common) + sum(map(len, tails))
        if held and size + more > load.plan.n_queries:
            packs.append(_laid(load, held, share))
            held, size = [], 0
        held.append((common, tails))
        size += more
    return [*packs, _laid(load, held, share)] if held else packs


def _grouped(rows: Sequence[NDArray[np.int64]], plan: TreePlan) -> list[tuple[list[int], list[NDArray[np.int64]]]]:
    """(what all rows of a tree begin with, what each goes on with) for each tree."""
    trees: dict[int, list[NDArray[np.int64]]] = {}
    for row in rows:
        trees.setdefault(int(row[0]), []).append(row)
    out = []
    for own in trees.values():
        shortest = min(map(len, own))
        same = np.ones(shortest, bool)
        for row in own:
            same &= row[:shortest] == own[0][:shortest]
        count = shortest if same.all() else int(np.argmin(same))
        out.append((own[0][:count].tolist(), [row[count:] for row in own if len(row) > count]))
    return out


def _laid(load: Load, groups: Sequence[tuple[list[int], list[NDArray[np.int64]]]], share: Tensor) -> Step:
    """Groups as trees of one level in a pack. A common prefix has its whole weight, the rest a row's share."""
    parent, lengths, at, whole = list[int](), list[int](), list[Any](), list[Any]()
    for common, tails in groups:
        root = -1
        if common:
            root = len(parent)
            parent.append(-1)
            lengths.append(len(common))
            at.append(np.asarray(common))
            whole.append(np.ones(len(common), bool))
        for tail in tails:
            parent.append(root)
            lengths.append(len(tail))
            at.append(tail)
            whole.append(np.zeros(len(tail), bool))
    where = torch.from_numpy(np.concatenate(at)).to(load.ids.device)
    full = torch.from_numpy(np.concatenate(whole)).to(load.ids.device)
    weight = torch.where(full, load.weight[where], share[where])
    plan = TreePlan.from_segments(parent, lengths).to(load.ids.device)
    return Step(load=Load(plan=plan, ids=load.ids[where], weight=weight))


def backward(model: nn.Module, steps: Sequence[Step], dtype: torch.dtype | None = None) -> None:
    """Adds the gradient of the negative weighted log-likelihood of all steps."""
    inner = inner_model(model)
    with computing(model, dtype):
        head = inner.get_output_embeddings().weight
        for step in steps:
            load = step.load
            trained = torch.nonzero(load.weight).flatten()
            with running(model, step.attention):
                hidden = states_on(inner, load.plan, load.ids[None])[0]
            used, row = torch.unique(load.plan.parent.to(trained.device)[trained].long(), return_inverse=True)
            logp, _ = tree_logp(hidden[used].to(head.dtype), head, row, load.ids[trained], logit_rows(model))
            (logp * load.weight[trained]).sum().neg().backward()  # type: ignore[no-untyped-call]


def operations(model: nn.Module, steps: Sequence[Step]) -> float:
    """Multiply-adds of a forward pass: linear layers, visible pairs, and logits of the tokens that predict."""
    inner = inner_model(model)
    config = inner.config.get_text_config()
    linear = sum(m.weight.numel() for n, m in inner.named_modules()
                 if isinstance(m, nn.Linear) and n != "lm_head" and "lora_" not in n)  # fmt: skip
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pair = 2 * config.num_attention_heads * width * config.num_hidden_layers
    head, total = inner.get_output_embeddings().weight.numel(), 0.0
    for step in steps:
        plan, trained = step.load.plan, torch.nonzero(step.load.weight).flatten()
        predicting = len(torch.unique(plan.parent.to(trained.device)[trained]))
        total += plan.n_queries * linear + plan.n_pairs * pair + predicting * head
    return total


# -- keys and values gathered per segment -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Gathered:
    """index int64 [K] of every key that is copied, and for each segment its queries, its copies and their mask."""

    index: Tensor
    segments: list[tuple[slice, slice, Tensor]]


def gathered_keys(plan: TreePlan) -> int:
    """Keys that are copied, of which the forest has one for each token."""
    return len(_gathered(plan).index)


def _gathered(plan: TreePlan) -> _Gathered:
    if GATHERED not in plan.cache:
        parent = plan.parent.cpu().numpy()
        index = np.arange(len(parent))
        children = np.bincount(parent[parent >= 0], minlength=len(parent))
        after = (parent == index - 1) & (parent >= 0)
        after[1:] &= children[:-1] == 1
        starts = np.flatnonzero(~after)
        stops = np.append(starts[1:], len(parent))
        paths: dict[int, NDArray[np.int64]] = {}
        copied, segments, at = [], [], 0
        for start, stop in zip(starts, stops, strict=True):
            above = paths[int(parent[start])] if parent[start] >= 0 else index[:0]
            path = paths[int(stop) - 1] = np.concatenate([above, index[start:stop]])
            seen = torch.ones(stop - start, len(path), dtype=torch.bool).tril(len(above)).to(plan.device)
            segments.append((slice(int(start), int(stop)), slice(at, at + len(path)), seen))
            copied.append(path)
            at += len(path)
        plan.cache[GATHERED] = _Gathered(torch.from_numpy(np.concatenate(copied)).to(plan.device), segments)
    found: _Gathered = plan.cache[GATHERED]
    return found


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    plan = running_plan()
    assert isinstance(plan, TreePlan)
    layout = _gathered(plan)
    query, key = query.to(value.dtype), key.to(value.dtype)
    keys, values = key.index_select(2, layout.index), value.index_select(2, layout.index)
    out = [
        F.scaled_dot_product_attention(
            query[:, :, own], keys[:, :, copies], values[:, :, copies], attn_mask=seen, scale=scaling, enable_gqa=True
        )
        for own, copies, seen in layout.segments
    ]
    return torch.cat(out, 2).transpose(1, 2).contiguous(), None


def _register() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    register()
    ALL_ATTENTION_FUNCTIONS.register(GATHERED, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(GATHERED, lambda *_, **__: None)
