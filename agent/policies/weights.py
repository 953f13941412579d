"""Folders of weights: what names them, and how vLLM can load them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from treewright.envs.errors import TreewrightError

__all__ = ["OPTIMIZER", "folder_version", "served_folder", "weights_in"]

OPTIMIZER = "optimizer.safetensors"  # what a checkpoint holds beside the weights


def folder_version(folder: str | Path) -> str:
    """32 hex digits that name the weights in a folder; the name itself for a model that is not a folder."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        return str(folder)
    h = hashlib.blake2b(digest_size=16)
    for file in files:
        if file.name == OPTIMIZER:
            continue
        with file.open("rb") as opened:
            while block := opened.read(1 << 22):
                h.update(block)
    return h.hexdigest()


def served_folder(folder: str | Path) -> str:
    """A folder that vLLM can load: it reads every safetensors file that it finds, the optimizer's too.

    The folder itself where it holds weights alone; else its subfolder `served`, with links to all but the optimizer.
    """
    path = Path(folder)
    if not (path / OPTIMIZER).exists():
        return str(folder)
    made = path / "served"
    made.mkdir(exist_ok=True)
    for file in path.iterdir():
        link = made / file.name
        if file.is_file() and file.name != OPTIMIZER and not link.exists():
            link.symlink_to(Path("..") / file.name)
    return str(made)


def weights_in(folder: str | Path) -> str:
    """The version of the weights in a folder. Raises TreewrightError where there are none."""
    if not any(Path(folder).glob("*.safetensors")):
        raise TreewrightError(
            f"cannot load weights from {str(folder)!r}: it holds no *.safetensors; name a folder of save_pretrained"
        )
    return folder_version(folder)
