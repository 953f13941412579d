"""Which checkpoints a folder holds, read from their manifests alone: no torch, no weights."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.envs.lines import json_value

__all__ = [
    "ADAPTER",
    "BEGUN",
    "MANIFEST",
    "Checkpoint",
    "CheckpointError",
    "base_of",
    "complete",
    "hash_of",
    "is_adapter_folder",
    "latest",
    "only_trainer",
    "read_manifest",
    "require_readable",
]

MANIFEST = "manifest.json"
ADAPTER = "adapter_config.json"
BEGUN = ", begun at stored nodes"
"""Ends the names in a manifest's `baselines` that are of a suite's trees which do not begin at the root."""


class CheckpointError(TreewrightError):
    """A checkpoint is missing, incomplete or damaged; the message names the file."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint: its folder, optimizer step, and policy version (hash of the weights)."""

    path: Path
    step: int
    version: str


def read_manifest(path: Path) -> dict[str, Any]:
    """What a checkpoint's folder says of itself. Raises CheckpointError for one that is damaged."""
    file = path / MANIFEST
    try:
        data = json_value(file.read_bytes())
        int(data["step"]), str(data["version"]), dict(data["files"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(
            f"{file} is damaged ({type(error).__name__}: {error}); move the folder {path} away to go on from the "
            "checkpoint before it"
        ) from error
    return data  # type: ignore[no-any-return]


def hash_of(file: Path) -> str:
    """sha256 of a file, as manifests have it."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def require_readable(folder: str | Path) -> None:
    """What a policy reads of a checkpoint is as it was saved: the tokenizer and the templates tell the prompts, and
    with others the same weights act otherwise. Weights must be there, the optimizer's state need not; a folder without
    a manifest is no checkpoint of ours, and is not looked at.

    Raises CheckpointError for a file that is missing or damaged.
    """
    path = Path(folder)
    if not (path / MANIFEST).is_file():
        return
    for name, want in read_manifest(path)["files"].items():
        file = path / name
        if name.startswith(("optimizer", "state/")):
            continue
        if not file.is_file() or (file.suffix != ".safetensors" and hash_of(file) != want):
            raise CheckpointError(
                f"{file} is missing or damaged; remove {path} to use an older one, or its {MANIFEST} where the file "
                "was changed on purpose"
            )


def is_adapter_folder(folder: str | Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (Path(folder) / ADAPTER).is_file() and not (Path(folder) / "config.json").is_file()


def base_of(folder: str | Path) -> dict[str, str]:
    """The base of the adapter in a folder: {"model"}, and "version" of its weights where a trainer of ours wrote it.

    Raises CheckpointError for a damaged folder.
    """
    path = Path(folder)
    try:
        if (path / MANIFEST).is_file() and (known := read_manifest(path).get("base")):
            return dict(known)
        return {"model": str(json_value((path / ADAPTER).read_bytes())["base_model_name_or_path"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path / ADAPTER} does not say which base the adapter belongs to; name a folder that peft wrote"
        ) from error


def complete(folder: Path) -> list[Checkpoint]:
    """The folder's checkpoints, oldest first; one without a manifest was never finished and does not count.

    Raises CheckpointError for a damaged manifest: what it holds may be newer than all others, and nothing may be built
    beside it without a word.
    """
    out = []
    for path in sorted(folder.glob("step-*")) if folder.exists() else []:
        if (path / MANIFEST).exists():
            data = read_manifest(path)
            out.append(Checkpoint(path, int(data["step"]), str(data["version"])))
    return out


def latest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint, or None. Raises CheckpointError for a damaged manifest."""
    found = complete(folder)
    return found[-1] if found else None


@contextmanager
def only_trainer(folder: Path, name: str) -> Iterator[None]:
    """Nobody else trains this run meanwhile: two trainers would each overwrite what the other had learnt.

    The lock is the operating system's, so it ends with the process. Raises CheckpointError where another holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".trainer").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            who = file.read().strip() or "another process"
            raise CheckpointError(
                f"{who} trains the run {name!r} right now; wait until it has ended, or train under another --name"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield
