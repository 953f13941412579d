"""What a test has two ranks do with weights that are sent one after the other."""

from __future__ import annotations

import itertools
import weakref
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from treewright.training.checkpoint import streamed


def passed_through(trainer: Any, folder: Path) -> dict[str, Any]:
    """The leader's weights one after the other beside those in a checkpoint of its, once more after a pass that was
    broken off; and the most numbers that were whole at once, as a share of all."""
    source, files = streamed(trainer), load_file(folder / "model.safetensors")
    wanted = [(name, t.dtype, tuple(t.shape)) for name, t in files.items()]
    alive: list[tuple[weakref.ref[torch.Tensor], int]] = []
    same, most = True, 0
    for name, tensor in source:
        same = same and torch.equal(tensor, files[name])
        alive = [(there, size) for there, size in alive if there() is not None]
        alive.append((weakref.ref(tensor), tensor.numel()))
        most = max(most, sum(size for _, size in alive))
        del tensor
    begun = len(list(itertools.islice(source, 3)))
    source.drain()
    source.drain()  # nothing is left to go through
    return {
        "same": same and sorted(source.metadata()) == sorted(wanted, key=lambda d: d[0]),
        "begun": begun, "again": all(torch.equal(t, files[name]) for name, t in source),
        "most": most / sum(t.numel() for t in files.values()),
    }  # fmt: skip
