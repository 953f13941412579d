"""FSDP2 over a transformers decoder: every layer is a group of its own, what is around the layers another one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from treewright.envs.errors import TreewrightError
from treewright.training.decoders.plans import inner_model
from treewright.training.lora import is_adapted
from treewright.training.parallel.ranks import Ranks

__all__ = ["decoder_layers", "full", "full_weights", "gathered_bytes", "keep_whole", "reshard", "shard_model", "small"]

SMALL = 1 << 31
"""Bytes of a whole model with its gradients up to which every rank keeps them within an optimizer step."""


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

    A model on the CPU goes to the ranks' devices layer by layer, so that none of them ever holds all of it.

    compute  the type that layers run in, None for the weights' own; gradients are summed in float32 or wider
    """
    wide = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=None if compute is None else wide)
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(inner_model(model), mesh=mesh, mp_policy=policy)  # which runs, where an adapter's model is around it


def gathered_bytes(weights: Iterable[nn.Parameter], compute: torch.dtype | None) -> int:
    """What weights take while they are whole on a rank, with their gradients that wait to be summed over ranks."""
    size = 0 if compute is None else compute.itemsize
    return sum(p.numel() * ((size or p.element_size()) + max(4, p.element_size()) * p.requires_grad) for p in weights)


def small(model: nn.Module, compute: torch.dtype | None) -> bool:
    """Whether a rank has the room to keep the model whole within an optimizer step."""
    return gathered_bytes(model.parameters(), compute) <= SMALL


def keep_whole(model: nn.Module, keep: bool) -> None:
    """With `keep`, weights stay gathered after each pass, and gradients stay where they are; the next pass without it
    sums them over all ranks and frees both. So weights are gathered once for an optimizer step, not for every pack."""
    inner = inner_model(model)
    inner.set_reshard_after_forward(False)
    inner.set_reshard_after_backward(not keep)
    inner.set_requires_gradient_sync(not keep)


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

    Tied weights are one tensor under its names. Of a model with an adapter those of the adapter alone.
    """
    state: dict[str, Any] = model.state_dict()
    if is_adapted(model):
        state = {name: tensor for name, tensor in state.items() if ".lora_" in name}
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
