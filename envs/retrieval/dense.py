"""Finding documents by meaning: unit vectors of an encoder, compared by inner product.

    index = DenseIndex(corpus, SentenceEncoder("minilm"))

Flat search in numpy up to FLAT documents, faiss' HNSW graph (Malkov & Yashunin 2018) beyond. Vectors are made once and
kept in a cache by the content of the corpus and of the encoder (its `name`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from treewright.envs.errors import TreewrightError
from treewright.envs.retrieval.corpus import Corpus
from treewright.envs.retrieval.index import Hit
from treewright.envs.retrieval.rows import clean
from treewright.envs.types import digest

__all__ = ["DenseIndex", "Encoder", "Vectors", "encode_queries", "label", "top"]

FLAT = 100_000
LINKS, EF = 32, 128  # of the HNSW graph: neighbours of a node, candidates kept while searching
FORM = 2  # of what is encoded of a document; raised when that changes

Vectors = NDArray[np.float32]


class Encoder(Protocol):
    """Turns texts into vectors. `name` changes whenever the vectors would, and only then.

    One that treats queries in another way has `encode_queries(texts)` too.
    """

    name: str

    def encode(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), D], every row of length 1."""


def encode_queries(encoder: Encoder, texts: Sequence[str]) -> Vectors:
    """Vectors of queries, float32 [len(texts), D], by the encoder's own way for them if it has one."""
    own: Callable[[Sequence[str]], Vectors] = getattr(encoder, "encode_queries", encoder.encode)
    return own([clean(text) for text in texts])


def label(encoder: Encoder) -> str:
    """What the encoder is called in messages: what the user typed, or its name."""
    return str(getattr(encoder, "label", encoder.name))


class DenseIndex:
    """Documents by inner product with the query's vector. Hits of equal score stand in corpus order.

    flat   most documents that are searched exhaustively
    cache  folder for the vectors; None keeps them in memory only
    """

    def __init__(self, corpus: Corpus, encoder: Encoder, *, cache: Path | None = None, flat: int = FLAT) -> None:
        self.encoder: Encoder = encoder
        self.vectors = _cached(corpus, encoder, cache)
        self._graph = _graph(self.vectors) if len(corpus) > flat else None

    async def search(self, query: str, k: int) -> list[Hit]:
        return await asyncio.to_thread(self.rank, query, k)

    def rank(self, query: str, k: int) -> list[Hit]:
        """`search` for code that is not a coroutine."""
        return self.near(encode_queries(self.encoder, [query])[0], k) if query.strip() and k > 0 else []

    def near(self, vector: Vectors, k: int) -> list[Hit]:
        """The documents nearest to a vector [D], which need not be a text's."""
        k = min(k, len(self.vectors))
        if self._graph is not None:
            scores, positions = self._graph.search(vector[None], k)
            found = [(float(s), int(p)) for s, p in zip(scores[0], positions[0], strict=True) if p >= 0]
        else:
            scores = self.vectors @ vector
            found = [(float(scores[i]), int(i)) for i in top(scores, k)]
        return [Hit(position, score) for score, position in sorted(found, key=lambda pair: (-pair[0], pair[1]))]


def top(scores: NDArray[Any], k: int) -> NDArray[np.intp]:
    """Positions of the k greatest, greatest first, equal ones in order. In O(N + k log k)."""
    k = min(k, len(scores))
    if k == 0:
        return np.empty(0, np.intp)
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    sure, tied = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
    chosen = np.concatenate([sure, tied[: k - len(sure)]])
    order: NDArray[np.intp] = chosen[np.lexsort((chosen, -scores[chosen]))]
    return order


def _graph(vectors: Vectors) -> Any:
    try:
        faiss: Any = import_module("faiss")
    except ImportError as error:
        raise TreewrightError(
            f"{len(vectors)} documents need an index of faiss: pip install 'treewright[dense]'"
        ) from error
    graph = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efSearch = EF
    graph.add(vectors)
    return graph


def _cached(corpus: Corpus, encoder: Encoder, cache: Path | None) -> Vectors:
    """Vectors of all documents, title and text together, from the cache if they are there."""

    def make() -> Vectors:
        return encoder.encode([f"{doc.title}. {doc.text}" if doc.title != doc.id else doc.text for doc in corpus.docs])

    if cache is None:
        return make()
    return _kept(cache / f"dense-{digest(str(FORM), encoder.name, corpus.digest)}.npy", len(corpus), make)


def _kept(path: Path, rows: int, make: Callable[[], Vectors]) -> Vectors:
    if path.is_file():
        try:
            kept = np.load(path)
            if kept.shape[0] == rows and kept.dtype == np.float32:
                return np.asarray(kept)
        except (OSError, ValueError):
            pass  # a file cut short is made again
    vectors = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.{os.getpid()}.npy")
    np.save(draft, vectors)
    draft.replace(path)
    return vectors
