"""Which experts a decoder sends each token of a tree to, and how far that depends on the precision it runs in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from treewright.kernels import TreePlan
from treewright.training.decoders.check import fit_of, running, whole_numbers
from treewright.training.decoders.plans import inner_model, states_on

__all__ = ["expert_load", "has_experts", "routes", "routing_flips"]


def has_experts(model: nn.Module) -> bool:
    """Whether transformers records what the model's routers say."""
    return "router_logits" in (getattr(inner_model(model), "_can_record_outputs", None) or {})


@torch.no_grad()
def routes(model: nn.Module, ids: Tensor, plan: TreePlan) -> dict[str, Tensor]:
    """The experts of each token, int64 [T, k], by the name of the router; {} where there are none.

    ids  int64 [T] in the plan's order. A router is a module that gives whole numbers for each token.
    """
    inner = inner_model(model)
    with running(inner, fit_of(inner).attention), _watched(inner, len(ids)) as found:
        states_on(inner, plan.to(ids.device), ids[None])
    return found


@contextmanager
def _watched(model: nn.Module, count: int) -> Iterator[dict[str, Tensor]]:
    found: dict[str, Tensor] = {}

    def keep(name: str, out: Any) -> None:
        chosen = whole_numbers(out, count)
        if chosen is not None:
            found[name] = chosen.long()

    hooks = [m.register_forward_hook(lambda m, args, out, n=name: keep(n, out)) for name, m in model.named_modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def routing_flips(model: nn.Module, ids: Tensor, plan: TreePlan, dtype: torch.dtype = torch.bfloat16) -> float:
    """Share of (token, layer) that get other experts when the model runs under autocast in `dtype`, as servers do."""
    plain = routes(model, ids, plan)
    with torch.autocast(ids.device.type, dtype) if plain else nullcontext():
        other = routes(model, ids, plan) if plain else {}
    apart = [(plain[n].sort(-1).values != other[n].sort(-1).values).any(-1).float().mean() for n in plain]
    return float(torch.stack(apart).mean()) if apart else 0.0


def expert_load(model: nn.Module, ids: Tensor, plan: TreePlan) -> dict[str, tuple[Tensor, Tensor]]:
    """By router, each expert's share of what is routed: counting each token once, and once for every trajectory."""
    through = _trajectories(plan).to(ids.device)
    load = {}
    for name, chosen in routes(model, ids, plan).items():
        size = int(chosen.max()) + 1
        once = torch.bincount(chosen.flatten(), minlength=size).double()
        each = torch.bincount(chosen.flatten(), through.repeat_interleave(chosen.shape[1]).double(), minlength=size)
        load[name] = once / once.sum(), each / each.sum()
    return load


def _trajectories(plan: TreePlan) -> Tensor:
    """int64 [T], how many paths from a root to a leaf lead through each token."""
    parent = plan.parent.tolist()
    count = [0] * len(parent)
    for token in range(len(parent) - 1, -1, -1):
        count[token] = count[token] or 1
        if parent[token] >= 0:
            count[parent[token]] += count[token]
    return torch.tensor(count)
