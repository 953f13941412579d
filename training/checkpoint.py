"""Checkpoints: safetensors only, written beside their final place, the manifest last.

A folder `step-000012/` is either complete (its manifest lists every file with its hash) or does not count. Layout of
the weights is transformers' `save_pretrained`, so any tool that loads models loads a checkpoint.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from treewright.training.decoders.plans import inner_model
from treewright.training.lora import is_adapted
from treewright.training.manifest import (
    MANIFEST,
    Checkpoint,
    CheckpointError,
    complete,
    hash_of,
    latest,
    read_manifest,
)
from treewright.training.optimizer import flatten, unflatten
from treewright.training.step import Trainer
from treewright.training.streamed import Weights
from treewright.training.versions import put_random, random_state

if TYPE_CHECKING:
    from treewright.training.parallel.states import Sharded

__all__ = ["Checkpoint", "CheckpointError", "latest", "restore", "save", "streamed", "whole_weights"]


Save = Callable[..., Checkpoint]


def _or_nothing(write: Save) -> Save:
    """A save that a disk ends leaves nothing of itself behind, and the checkpoints before it as they were."""

    @functools.wraps(write)
    def saved(trainer: Trainer, folder: Path, *args: Any, **more: Any) -> Checkpoint:
        try:
            return write(trainer, folder, *args, **more)
        except CheckpointError:
            _forget_parts(folder)
            raise
        except (OSError, SafetensorError) as error:
            _forget_parts(folder)
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise CheckpointError(
                f"not saved: {folder} cannot be written ({why}); make room and type the same line again, the last good "
                "checkpoint stays whole"
            ) from error

    return saved


def _forget_parts(folder: Path) -> None:
    for part in folder.glob(".step-*.part"):
        shutil.rmtree(part, ignore_errors=True)


@_or_nothing
def save(trainer: Trainer, folder: Path, checkpoints: int = 3, extra: dict[str, Any] | None = None) -> Checkpoint:
    """Writes `folder/step-NNNNNN` and removes complete checkpoints beyond the newest `checkpoints`.

    Raises CheckpointError if a weight is not finite: bad weights never push out good ones; and where it cannot be
    written, for a full disk: the last good checkpoint stays whole.
    """
    complete(folder)  # nothing is written beside a damaged checkpoint
    sharded = _sharded(trainer)
    weights = None if sharded is None else sharded.weights()
    named = trainer.model.named_parameters() if weights is None else weights.items()
    bad = [name for name, p in named if not bool(torch.isfinite(p).all())]
    if bad:
        raise CheckpointError(f"not saved: {bad[0]} holds NaN or infinity; the last good checkpoint stays")
    final = folder / f"step-{trainer.steps:06d}"
    work = folder / f".step-{trainer.steps:06d}.part"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if is_adapted(trainer.model):
        trainer.model.save_pretrained(work, save_embedding_layers=False, state_dict=weights)
        (work / "README.md").unlink(missing_ok=True)
    elif weights is not None:
        trainer.model.save_pretrained(work, state_dict=weights)
    else:
        trainer.model.save_pretrained(work)
    if trainer.tokenizer is not None:
        trainer.tokenizer.save_pretrained(work)
    if sharded is None:
        tensors, plain = flatten(trainer.optimizer)
        save_file(tensors or {"empty": torch.zeros(1)}, work / "optimizer.safetensors")
    else:
        plain = sharded.write(work)
    files = {str(p.relative_to(work)): hash_of(p) for p in sorted(work.rglob("*")) if p.is_file()}
    version = files[_weights(trainer)][:16]
    manifest = {
        "step": trainer.steps,
        "version": version,
        "files": files,
        "optimizer": plain,
        "optimizer_name": trainer.settings.optimizer,
        "baselines": trainer.baselines,
        "versions": trainer.versions,
        "aliases": trainer.aliases,
        "consumed": sorted(map(list, trainer.consumed)),
        "random": [random_state()] if sharded is None else sharded.random(),
        **({"base": trainer.model.treewright_base} if is_adapted(trainer.model) else {}),
        "extra": extra or {},
    }
    for p in work.rglob("*"):
        _sync(p)
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1))
    _sync(work / MANIFEST)
    before = folder / f".{final.name}.before"
    shutil.rmtree(before, ignore_errors=True)
    if final.exists():  # an older one of the same step stays whole until the new one is in its place
        os.replace(final, before)
    os.replace(work, final)
    _sync(folder)
    shutil.rmtree(before, ignore_errors=True)
    if trainer.progress is not None:
        trainer.progress.clear()
    for old in complete(folder)[:-checkpoints]:
        shutil.rmtree(old.path)
    return Checkpoint(final, trainer.steps, version)


def restore(trainer: Trainer, checkpoint: Checkpoint) -> dict[str, Any]:
    """Puts weights, optimizer, counters and consumed trees back; returns what `save` was given as `extra`.

    Raises CheckpointError if a file is missing or its hash differs.
    """
    manifest = read_manifest(checkpoint.path)
    for name, want in manifest["files"].items():
        path = checkpoint.path / name
        if not path.exists() or hash_of(path) != want:
            raise CheckpointError(f"{path} is missing or damaged; remove {checkpoint.path} to use an older one")
    sharded = _sharded(trainer)
    _same_optimizer(trainer, checkpoint.path, manifest.get("optimizer_name", "adamw"))
    _same_base(trainer, checkpoint.path, manifest.get("base"))
    if sharded is not None:
        sharded.read(checkpoint.path, manifest)
        sharded.put_random(manifest.get("random", []))
    else:
        _load_weights(trainer, checkpoint.path)
        unflatten(trainer.optimizer, _optimizer_tensors(checkpoint.path), manifest["optimizer"])
        put_random(manifest.get("random", []), 0)
    trainer.steps, trainer.baselines = manifest["step"], manifest["baselines"]
    trainer.consumed = {(a, b) for a, b in manifest["consumed"]}
    # A checkpoint made before versions were kept knows the weights that it holds, and no older ones.
    trainer.versions = manifest.get("versions") or (None if trainer.versions is None else [trainer.version()])
    trainer.aliases = {**trainer.aliases, **manifest.get("aliases", {})}
    extra: dict[str, Any] = manifest["extra"]
    return extra


def whole_weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The trainer's weights by name, gathered from all its processes."""
    sharded = _sharded(trainer)
    return dict(trainer.model.state_dict()) if sharded is None else sharded.weights()


def streamed(trainer: Trainer) -> Weights:
    """The trainer's weights one after the other, as a checkpoint names them; whole one layer at a time."""
    sharded, model = _sharded(trainer), trainer.model
    return Weights(model, (lambda: iter(sorted(model.state_dict().items()))) if sharded is None else sharded.each)


def _sharded(trainer: Trainer) -> Sharded | None:
    """The other way to write and read, for a trainer of many processes."""
    if getattr(trainer, "ranks", None) is None:
        return None
    from treewright.training.parallel.states import Sharded

    return Sharded(trainer)  # type: ignore[arg-type]


def _optimizer_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The optimizer's state, of one process or of many that held a part each."""
    whole = path / "optimizer.safetensors"
    if whole.exists():
        found: dict[str, torch.Tensor] = load_file(whole)
        found.pop("empty", None)
        return found
    from treewright.training.parallel.states import STATE, read_optimizer

    return read_optimizer(path / STATE)


def _weights(trainer: Trainer) -> str:
    return "adapter_model.safetensors" if is_adapted(trainer.model) else "model.safetensors"


def _same_base(trainer: Trainer, path: Path, base: dict[str, str] | None) -> None:
    """Raises CheckpointError where one of checkpoint and trainer has an adapter, or each that of another base."""
    own = getattr(trainer.model, "treewright_base", None)
    if (base is None) != (own is None):
        holds, wants = ("all weights", "an adapter") if base is None else ("an adapter", "all weights")
        raise CheckpointError(
            f"{path} holds {holds}, but this run trains {wants}; set train.lora.rank as the run was begun, or begin "
            "another with --name"
        )
    if base is not None and own is not None and base["version"] != own["version"]:
        raise CheckpointError(
            f"{path} holds an adapter for {base['model']} (version {base['version'][:8]}), but the base here is "
            f"{own['model']} (version {own['version'][:8]}); begin with --policy hf:{base['model']}"
        )


def _load_weights(trainer: Trainer, path: Path) -> None:
    """Puts the weights of a checkpoint into the trainer's model. Raises CheckpointError for those of another."""
    model, own = trainer.model, getattr(trainer.model, "treewright_base", None)
    weights = load_file(path / _weights(trainer))
    if own is not None:
        weights = {name.replace(".weight", ".default.weight"): value for name, value in weights.items()}
    mine = {n: v for n, v in model.state_dict().items() if own is None or ".lora_" in n}
    odd = [n for n, v in weights.items() if n not in mine or mine[n].shape != v.shape]
    here = {mine[n].data_ptr() for n in weights if n in mine}
    lost = [n for n, v in mine.items() if n not in weights and v.data_ptr() not in here]  # tied weights are saved once
    if odd or lost:
        name = (odd or lost)[0]
        raise CheckpointError(
            f"{path} holds another architecture than {type(inner_model(model)).__name__} as it is here: {name!r} is "
            f"{tuple(weights[name].shape) if name in weights else 'missing'} there and "
            f"{tuple(mine[name].shape) if name in mine else 'missing'} here; begin another run with --name"
        )
    model.load_state_dict(weights, strict=False)
    inner_model(model).tie_weights()


def _same_optimizer(trainer: Trainer, path: Path, saved: str) -> None:
    """Raises CheckpointError where the state in a checkpoint is that of another optimizer."""
    asked = trainer.settings.optimizer
    if saved.removesuffix("_fused") != asked.removesuffix("_fused"):
        raise CheckpointError(
            f"{path} was trained with train.optimizer = {saved}, whose state {asked} has no use for; set "
            f"train.optimizer={saved}, or begin another run with --name and --policy hf:{path}"
        )


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
