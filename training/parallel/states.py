"""Checkpoints of sharded weights: torch.distributed.checkpoint writes what resuming needs, each rank its own part.

The folder `state/` of a checkpoint holds weights and optimizer as safetensors, one file for each rank; any number of
ranks, one too, reads it back. Beside it lies the whole model in transformers' layout, as in every checkpoint. Nothing
is pickled into files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from treewright.training.decoders.plans import inner_model
from treewright.training.lora import is_adapted
from treewright.training.manifest import CheckpointError
from treewright.training.parallel.ranks import Ranks
from treewright.training.parallel.shard import full_weights
from treewright.training.versions import put_random, random_state

__all__ = ["STATE", "Sharded", "obey", "read_optimizer"]

STATE = "state"
WEIGHT, SLOT = "weight.", "optimizer."


class Holder(Protocol):
    """What holds a part of the weights: a `RankedTrainer`."""

    model: Any
    optimizer: torch.optim.Optimizer
    steps: int

    @property
    def ranks_of(self) -> Ranks: ...


class Sharded:
    """How a checkpoint is written and read where many processes hold a part each; the leader's side."""

    def __init__(self, trainer: Holder) -> None:
        self.trainer = trainer

    def weights(self) -> dict[str, Tensor]:
        """The whole weights by name, on the CPU of the leader; with an adapter the adapter's."""
        self.trainer.ranks_of.tell({"do": "weights"})
        return dict(full_weights(self.trainer.model, keep=True))

    def each(self) -> Iterator[tuple[str, Tensor]]:
        """The same one after the other, on the leader's device; all must be gone through."""
        self.trainer.ranks_of.tell({"do": "weights"})
        with self.trainer.ranks_of.answering():
            yield from full_weights(self.trainer.model, keep=False)

    def write(self, folder: Path) -> list[dict[str, Any]]:
        """Weights and optimizer into `folder`/state; the plain numbers of the optimizer's groups."""
        self.trainer.ranks_of.tell({"do": "write", "folder": str((folder / STATE).resolve())})
        _write(self.trainer, folder / STATE)
        return groups_of(self.trainer.optimizer)

    def read(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """Weights and optimizer of a checkpoint. Raises CheckpointError for one of another architecture.

        Whose base it is has been compared before.
        """
        _same_architecture(self.trainer, folder)
        order = {"folder": str(folder.resolve()), "groups": manifest["optimizer"], "step": manifest["step"]}
        self.trainer.ranks_of.tell({"do": "read", **order})
        _read(self.trainer, folder, manifest["optimizer"])

    def random(self) -> list[str]:
        """The state of every rank's random numbers."""
        self.trainer.ranks_of.tell({"do": "random"})
        return self.trainer.ranks_of.collect(random_state())

    def put_random(self, states: list[str]) -> None:
        self.trainer.ranks_of.tell({"do": "put_random", "states": states})
        put_random(states, 0)


def obey(trainer: Holder, what: str, order: Mapping[str, Any]) -> None:
    """A follower's side of `Sharded`."""
    match what:
        case "weights":
            for _ in full_weights(trainer.model, keep=False):
                pass
        case "write":
            try:
                _write(trainer, Path(order["folder"]))
            except CheckpointError:
                return  # the leader got it too, and tells
        case "read":
            _read(trainer, Path(order["folder"]), order["groups"])
            trainer.steps = int(order["step"])
        case "random":
            trainer.ranks_of.collect(random_state())
        case "put_random":
            put_random(order["states"], trainer.ranks_of.rank)
        case _:
            raise ValueError(f"no order is called {what!r}")


def _same_architecture(trainer: Holder, folder: Path) -> None:
    apart = (folder / STATE).is_dir()
    shapes, prefix = _shapes(folder / STATE if apart else folder), WEIGHT if apart else ""
    held = _held(trainer.model)
    mine = {_saved(n, apart): tuple(p.shape) for n, p in held}
    tied = [[_saved(n, apart) for n, p in held if p is one] for one in {id(p): p for _, p in held}.values()]
    lost = [names[0] for names in tied if not any(n in shapes for n in names)]
    odd = [n for n, shape in mine.items() if n in shapes and shapes[n] != shape]
    if lost or odd:
        name = (odd or lost)[0]
        raise CheckpointError(
            f"{folder} holds another architecture than {type(inner_model(trainer.model)).__name__} as it is here: "
            f"{name.removeprefix(prefix)!r} is {shapes.get(name, 'missing')} there and {mine[name]} here; begin "
            "another run with --name"
        )


def groups_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The plain numbers of an optimizer's groups, as JSON takes them."""
    return [{k: v for k, v in g.items() if k != "params"} for g in optimizer.state_dict()["param_groups"]]


def _held(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What a checkpoint holds of the model, tied weights under each of their names: with an adapter that alone."""
    adapted = is_adapted(model)
    named = model.named_parameters(remove_duplicate=False)
    return [(name, p) for name, p in named if not adapted or ".lora_" in name]


def _saved(name: str, apart: bool) -> str:
    """What a parameter is called in the folder `state` of a checkpoint, or in the files of a whole one."""
    return WEIGHT + name if apart else name.replace(".default.weight", ".weight")


def _write(trainer: Holder, folder: Path) -> None:
    kept = {id(p) for _, p in _held(trainer.model)}
    named = {WEIGHT + name: p.detach() for name, p in trainer.model.named_parameters() if id(p) in kept}
    for index, slots in trainer.optimizer.state_dict()["state"].items():
        for name, value in slots.items():
            named[f"{SLOT}{index}.{name}"] = value.detach().reshape(value.shape or (1,))
    try:
        with trainer.ranks_of.answering():
            writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
            save(named, storage_writer=writer, process_group=trainer.ranks_of.control)
    except CheckpointException as error:
        cause = next((e for e in (_cause(f) for f in error.failures.values()) if e is not None), error)
        raise CheckpointError(
            f"not saved: {folder} cannot be written ({cause}); make room and type the same line again, the last good "
            "checkpoint stays whole"
        ) from error


def _cause(failure: Any) -> BaseException | None:
    found = failure[0] if isinstance(failure, tuple) else failure
    return found if isinstance(found, BaseException) else None


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """What the safetensors of a folder hold: shapes by name."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: tuple(meta.size) for name, meta in found.items()}  # type: ignore[union-attr]


def read_optimizer(folder: Path) -> dict[str, Tensor]:
    """The optimizer's whole state by `index.slot` of a `state` folder, for one process."""
    tensors: dict[str, Any] = {}
    reader = HuggingFaceStorageReader(str(folder))
    for name, meta in reader.read_metadata().state_dict_metadata.items():
        if name.startswith(SLOT):
            tensors[name] = torch.empty(meta.size, dtype=meta.properties.dtype)  # type: ignore[union-attr]
    load(tensors, storage_reader=reader, no_dist=True)
    return {n.removeprefix(SLOT): t for n, t in tensors.items()}


def _read(trainer: Holder, folder: Path, groups: list[dict[str, Any]]) -> None:
    """Weights and optimizer of a checkpoint, in whatever number of parts it was written."""
    apart = (folder / STATE).is_dir()
    place, slot = (folder / STATE, SLOT) if apart else (folder, "")
    shapes = _shapes(place)
    wanted: dict[str, Any] = {}
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    for name, p in _held(trainer.model):
        if _saved(name, apart) in shapes:
            wanted[_saved(name, apart)] = p.detach()
    slots: dict[int, dict[str, Any]] = {}
    for key, shape in shapes.items():
        index, _, name = key.removeprefix(slot).partition(".")
        if not key.startswith(slot) or not index.isdigit():
            continue
        p = trained[int(index)]
        like = shape == tuple(p.shape)
        wanted[key] = torch.zeros_like(p.detach(), dtype=_wide(p)) if like else torch.zeros(shape, dtype=torch.float32)
        slots.setdefault(int(index), {})[name] = wanted[key]
    with trainer.ranks_of.answering(), torch.no_grad():
        reader = HuggingFaceStorageReader(str(place))
        load(wanted, storage_reader=reader, process_group=trainer.ranks_of.control)
    put_optimizer(trainer.optimizer, slots, groups)


def _wide(p: nn.Parameter) -> torch.dtype:
    return torch.promote_types(p.dtype, torch.float32)


def put_optimizer(
    optimizer: torch.optim.Optimizer, slots: Mapping[int, dict[str, Any]], groups: list[dict[str, Any]]
) -> None:
    state = optimizer.state_dict()
    for mine, saved in zip(state["param_groups"], groups, strict=True):
        mine.update({k: tuple(v) if k == "betas" else v for k, v in saved.items()})
    ready = {i: {n: t.reshape(()) if n == "step" else t for n, t in held.items()} for i, held in slots.items()}
    optimizer.load_state_dict({"state": ready, "param_groups": state["param_groups"]})
