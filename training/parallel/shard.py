"""FSDP2 over a transformers decoder: every layer is a group of its own, what is around the layers another one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from treewright.envs.errors import TreewrightError
from treewright.training.decoders.plans import inner_model
from treewright.training.parallel.ranks import Ranks

__all__ = ["decoder_layers", "full", "full_weights", "reshard", "shard_model"]


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The model's decoder layers, of whatever class: those that transformers never splits over devices, else the
    members of the list that holds most weights. Raises TreewrightError where there are none."""
    inner = inner_model(model)
    kept = set(getattr(inner, "_no_split_modules", None) or ())
    found = [module for module in inner.modules() if type(module).__name__ in kept]
    if not found:
        lists = [module for module in inner.modules() if isinstance(module, nn.ModuleList)]
        biggest = max(lists, key=lambda held: sum(p.numel() for p in held.parameters()), default=nn.ModuleList())
        found = list(biggest)
    if not found:
        raise TreewrightError(
            f"{type(inner).__name__} has no list of layers to share out over processes; train it in one process"
        )
    return found


def shard_model(model: nn.Module, ranks: Ranks, compute: torch.dtype | None = None) -> None:
    """Shards the weights over all ranks, in place: each keeps one part of every tensor, and gathers a layer to run it.

    compute  the type that layers run in, None for the weights' own; gradients are summed in float32 or wider
    """
    wide = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=None if compute is None else wide)
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    model.to(ranks.device)
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def reshard(model: nn.Module) -> None:
    """Frees what passes without gradient have gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def full(tensor: Tensor) -> Tensor:
    """The whole tensor, on every rank. Every rank must ask for the same ones in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_weights(model: nn.Module, keep: bool) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor) by rising name, on the CPU where `keep`; every rank must go through all of them.

    Tied weights are one tensor under its names.
    """
    state: dict[str, Any] = model.state_dict()
    parameters = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    held = list(parameters.values())
    tied: dict[int, Tensor] = {}
    for name, tensor in sorted(state.items()):
        key = parameters.get(name, 0)
        whole = tied.get(key)
        if whole is None:
            whole = full(tensor.detach())
            whole = whole.cpu() if keep else whole
            if held.count(key) > 1:
                tied[key] = whole
        yield name, whole
