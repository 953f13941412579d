"""Checkpoints: safetensors only, written beside their final place, the manifest last.

A folder `step-000012/` is either complete (its manifest lists every file with its hash) or does not count. Layout of
the weights is transformers' `save_pretrained`, so any tool that loads models loads a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from treewright.training.manifest import MANIFEST, Checkpoint, CheckpointError, complete, latest, read_manifest
from treewright.training.step import Trainer
from treewright.training.versions import weights_version

__all__ = ["Checkpoint", "CheckpointError", "latest", "restore", "save"]


def save(trainer: Trainer, folder: Path, keep: int = 3, extra: dict[str, Any] | None = None) -> Checkpoint:
    """Writes `folder/step-NNNNNN` and removes complete checkpoints beyond the newest `keep`.

    Raises CheckpointError if a weight is not finite: bad weights never push out good ones.
    """
    complete(folder)  # nothing is written beside a damaged checkpoint
    bad = [name for name, p in trainer.model.named_parameters() if not bool(torch.isfinite(p).all())]
    if bad:
        raise CheckpointError(f"not saved: {bad[0]} holds NaN or infinity; the last good checkpoint stays")
    final = folder / f"step-{trainer.steps:06d}"
    work = folder / f".step-{trainer.steps:06d}.part"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    trainer.model.save_pretrained(work)
    if trainer.tokenizer is not None:
        trainer.tokenizer.save_pretrained(work)
    tensors, plain = _flatten(trainer)
    save_file(tensors, work / "optimizer.safetensors")
    files = {p.name: _hash(p) for p in sorted(work.iterdir())}
    version = files["model.safetensors"][:16]
    manifest = {
        "step": trainer.steps,
        "version": version,
        "files": files,
        "optimizer": plain,
        "baselines": trainer.baselines,
        "versions": trainer.versions,
        "aliases": trainer.aliases,
        "consumed": sorted(map(list, trainer.consumed)),
        "extra": extra or {},
    }
    for p in work.iterdir():
        _sync(p)
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1))
    _sync(work / MANIFEST)
    before = folder / f".step-{trainer.steps:06d}.before"
    shutil.rmtree(before, ignore_errors=True)
    if final.exists():  # an older one of the same step stays whole until the new one is in its place
        os.replace(final, before)
    os.replace(work, final)
    _sync(folder)
    shutil.rmtree(before, ignore_errors=True)
    for old in complete(folder)[:-keep]:
        shutil.rmtree(old.path)
    return Checkpoint(final, trainer.steps, version)


def restore(trainer: Trainer, checkpoint: Checkpoint) -> dict[str, Any]:
    """Puts weights, optimizer, counters and consumed trees back; returns what `save` was given as `extra`.

    Raises CheckpointError if a file is missing or its hash differs.
    """
    manifest = read_manifest(checkpoint.path)
    for name, want in manifest["files"].items():
        path = checkpoint.path / name
        if not path.exists() or _hash(path) != want:
            raise CheckpointError(f"{path} is missing or damaged; remove {checkpoint.path} to use an older one")
    weights = load_file(checkpoint.path / "model.safetensors")
    trainer.model.load_state_dict(weights, strict=False)
    trainer.model.tie_weights()
    _unflatten(trainer, load_file(checkpoint.path / "optimizer.safetensors"), manifest["optimizer"])
    trainer.steps, trainer.baselines = manifest["step"], manifest["baselines"]
    trainer.consumed = {(a, b) for a, b in manifest["consumed"]}
    # A checkpoint made before versions were kept knows the weights that it holds, and no older ones.
    trainer.versions = manifest.get("versions") or (
        None if trainer.versions is None else [weights_version(trainer.model)]
    )
    trainer.aliases = {**trainer.aliases, **manifest.get("aliases", {})}
    extra: dict[str, Any] = manifest["extra"]
    return extra


def _flatten(trainer: Trainer) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Optimizer state as named tensors and the plain numbers of its groups."""
    state = trainer.optimizer.state_dict()
    tensors = {
        f"{index}.{name}": value.detach().clone().contiguous() if value.dim() else value.detach().reshape(1).clone()
        for index, slots in state["state"].items()
        for name, value in slots.items()
    }
    return tensors or {"empty": torch.zeros(1)}, [
        {k: v for k, v in g.items() if k != "params"} for g in state["param_groups"]
    ]


def _unflatten(trainer: Trainer, tensors: dict[str, torch.Tensor], groups: list[dict[str, Any]]) -> None:
    state = trainer.optimizer.state_dict()
    for mine, saved in zip(state["param_groups"], groups, strict=True):
        mine.update({k: tuple(v) if k == "betas" else v for k, v in saved.items()})
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key == "empty":
            continue
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = value.reshape(()) if name == "step" else value
    trainer.optimizer.load_state_dict({"state": slots, "param_groups": state["param_groups"]})


def _hash(path: Path) -> str:
    h = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
