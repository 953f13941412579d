"""A model's weights by the names of its checkpoint, layer after layer: what an engine that serves it can take as they
come, and what never stands whole in one place.

Names, types and shapes are those that `save_pretrained` writes: experts that transformers keeps in one tensor are taken
apart, weights that are tied go once. They are known without gathering anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from treewright.training.decoders.plans import inner_model

__all__ = ["Described", "Weights"]

LAYER = re.compile(r".*?\.\d+\.")


class Described(NamedTuple):
    """A weight before it is there."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class Weights:
    """All weights of a model, anew at each iteration, as (name in a checkpoint, tensor).

    gather  begins a pass over (name in the model, whole tensor) by rising name; where many processes hold the model it
            is a collective, so a pass that is broken off must be finished by `drain`
    """

    def __init__(self, model: nn.Module, gather: Callable[[], Iterator[tuple[str, Tensor]]]) -> None:
        self.model, self.gather = inner_model(model), gather
        self._under_way: Iterator[tuple[str, Tensor]] | None = None

    def metadata(self) -> list[Described]:
        """What an iteration gives, in the same order."""
        empty = ((n, torch.empty(t.shape, dtype=t.dtype, device="meta")) for n, t in sorted(self._state().items()))
        return [Described(name, t.dtype, tuple(t.shape)) for name, t in self._renamed(empty)]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._under_way = self.gather()
        yield from self._renamed(self._under_way)
        self._under_way = None

    def drain(self) -> None:
        """Goes through what is left of a pass that was broken off, so that no other process waits for this one."""
        left, self._under_way = self._under_way, None
        for _ in left or ():
            pass

    def _state(self) -> dict[str, Any]:
        return dict(self.model.state_dict())

    def _renamed(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        from transformers.core_model_loading import revert_weight_conversion

        twice = self._twice()
        for _, group in groupby(weights, key=lambda named: _layer_of(named[0])):
            held = {name: tensor for name, tensor in group if name not in twice}
            yield from revert_weight_conversion(self.model, held).items()

    def _twice(self) -> set[str]:
        """Names of weights that go by another one already: an output layer that is the embedding."""
        seen: set[int] = set()
        out = set()
        for name, p in self.model.named_parameters(remove_duplicate=False):
            if id(p) in seen:
                out.add(name)
            seen.add(id(p))
        return out


def _layer_of(name: str) -> str:
    """The layer that a weight belongs to; its own name for what is in none."""
    found = LAYER.match(name)
    return name if found is None else found[0]
