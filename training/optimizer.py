"""The state of an optimizer as named tensors and plain numbers, so that it is kept without pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["flatten", "unflatten"]

NUMBER = ".number"
"""Ends the name of a slot that is no tensor, as some optimizers count their steps."""


def flatten(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Its slots by "index.name", and the plain numbers of its groups.

    The slots are the optimizer's own memory, not copies, which would be twice the weights; what several slots share is
    copied, since a file of tensors holds each for itself.
    """
    state, seen = optimizer.state_dict(), set[int]()
    tensors = {
        f"{index}.{name}": _alone(value.detach(), seen)
        for index, slots in state["state"].items()
        for name, value in slots.items()
        if isinstance(value, Tensor)
    }
    tensors |= {
        f"{index}.{name}{NUMBER}": torch.tensor([value])
        for index, slots in state["state"].items()
        for name, value in slots.items()
        if isinstance(value, int | float)
    }
    return tensors, [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]]


def _alone(value: Tensor, seen: set[int]) -> Tensor:
    place = value.untyped_storage().data_ptr()
    shared = place in seen
    seen.add(place)
    return (value.clone() if shared else value).reshape(value.shape or (1,)).contiguous()


def unflatten(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: Sequence[Mapping[str, Any]]
) -> None:
    """Puts back what `flatten` gave."""
    state = optimizer.state_dict()
    for mine, saved in zip(state["param_groups"], groups, strict=True):
        mine.update({k: tuple(v) if k == "betas" else v for k, v in saved.items()})
    slots: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        held: Any = value.item() if name.endswith(NUMBER) else value.reshape(()) if name == "step" else value
        slots.setdefault(int(index), {})[name.removesuffix(NUMBER)] = held
    optimizer.load_state_dict({"state": slots, "param_groups": state["param_groups"]})
