"""Several hops of dense retrieval without a word between them: the next query is computed from vectors.

After TreeHop (Li et al. 2025, arXiv 2504.20114): what a found passage already answers is taken off the query, and what
it adds is put in its place,

    q' = normalise(q − c + g(q, c)),     g(q, c) = tanh([q, c, q·c] W1 + b1) W2 + b2

with the gate g as a small network instead of attention. Nothing is encoded after the question itself. The weights are
made by `treewright.training.treehop`; this is numpy alone.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from treewright.envs.errors import TreewrightError
from treewright.envs.retrieval.corpus import Corpus
from treewright.envs.retrieval.dense import DenseIndex, Vectors
from treewright.envs.retrieval.hybrid import fuse
from treewright.envs.retrieval.index import Hit

__all__ = ["Gate", "Jump", "RewriteIndex", "TreeHopIndex", "linked_jumps", "normalise"]

WIDTH = 5  # passages from which a hop goes on
SENTENCE = re.compile(r"(?<=[.!?])\s+")
SHORTEST = 4  # characters of a title that counts as a link


@dataclass(frozen=True, slots=True)
class Gate:
    """The weights: w1 [3 D, H], b1 [H], w2 [H, D], b2 [D], all float32, for vectors of the encoder of that name."""

    w1: NDArray[np.float32]
    b1: NDArray[np.float32]
    w2: NDArray[np.float32]
    b2: NDArray[np.float32]
    encoder: str

    def next(self, q: Vectors, c: Vectors) -> Vectors:
        """The queries [N, D] after passages [N, D] were found by queries [N, D]; rows have length 1."""
        inner = np.tanh(np.concatenate([q, c, q * c], axis=-1) @ self.w1 + self.b1)
        return normalise(q - c + inner @ self.w2 + self.b2)

    def save(self, folder: Path) -> Path:
        """Writes FOLDER/treehop.npz."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "treehop.npz"
        np.savez(path, w1=self.w1, b1=self.b1, w2=self.w2, b2=self.b2, encoder=np.array(json.dumps(self.encoder)))
        return path

    @classmethod
    def load(cls, folder: Path) -> Gate:
        """Raises TreewrightError if the folder holds no gate."""
        path = folder / "treehop.npz" if folder.is_dir() else folder
        try:
            with np.load(path, allow_pickle=False) as kept:
                return cls(kept["w1"], kept["b1"], kept["w2"], kept["b2"], json.loads(str(kept["encoder"])))
        except (OSError, ValueError, KeyError) as error:
            raise TreewrightError(
                f"{path} is no gate of TreeHop ({error}); make one: treewright train treehop {folder} --corpus FILE"
            ) from error


def normalise(vectors: Vectors) -> Vectors:
    """Rows of length 1."""
    out: Vectors = (vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)).astype(np.float32)
    return out


class TreeHopIndex:
    """Dense retrieval over `hops` hops; the question is encoded once. Raises TreewrightError for another encoder.

    width  passages of each hop from which the next one starts; a passage is never found twice on one way
    """

    def __init__(self, dense: DenseIndex, gate: Gate, *, hops: int = 2, width: int = WIDTH) -> None:
        if gate.encoder != dense.encoder.name:
            raise TreewrightError(
                f"the gate was trained on vectors of {gate.encoder!r}, the index has those of {dense.encoder.name!r}"
            )
        self._dense, self._gate, self._hops, self._width = dense, gate, hops, width

    async def search(self, query: str, k: int) -> list[Hit]:
        return await asyncio.to_thread(self.rank, query, k)

    def rank(self, query: str, k: int) -> list[Hit]:
        """At most k hits: the rankings of all hops fused by reciprocal rank, see `fuse`."""
        if not query.strip() or k <= 0:
            return []
        vectors, size = self._dense.vectors, max(k, self._width)
        question = self._dense.encoder.encode([query])
        first = self._dense.near(question[0], size)
        rankings, ways = [first], [_Way((hit.position,), hit.score) for hit in first[: self._width]]
        queries = np.repeat(question, len(ways), axis=0)
        for _ in range(1, self._hops):
            queries = self._gate.next(queries, vectors[[way.seen[-1] for way in ways]])
            found = [(way, i, hit) for i, way in enumerate(ways) for hit in self._dense.near(queries[i], size)]
            better = _best(found, size)
            rankings.append([Hit(hit.position, way.score + hit.score) for way, _, hit in better])
            ways = [_Way((*way.seen, hit.position), way.score + hit.score) for way, _, hit in better[: self._width]]
            queries = queries[[i for _, i, _ in better[: self._width]]]
        return fuse(rankings, k)


class RewriteIndex:
    """The plain way to a second hop: the question is written anew with what was found, and encoded again.

    What a model's rewriting would add is left out: question and passage stand one after the other. One call of the
    encoder for the question and one for each of `width` passages.
    """

    def __init__(self, dense: DenseIndex, corpus: Corpus, width: int = WIDTH) -> None:
        self._dense, self._corpus, self._width = dense, corpus, width

    async def search(self, query: str, k: int) -> list[Hit]:
        return await asyncio.to_thread(self.rank, query, k)

    def rank(self, query: str, k: int) -> list[Hit]:
        """At most k hits: both hops fused by reciprocal rank."""
        size = max(k, self._width)
        first = self._dense.rank(query, size)
        ways = [_Way((hit.position,), hit.score) for hit in first[: self._width]]
        asked = [f"{query} {self._corpus.docs[way.seen[0]].text}" for way in ways]
        if not asked:
            return first
        vectors = self._dense.encoder.encode(asked)
        found = [(way, i, hit) for i, way in enumerate(ways) for hit in self._dense.near(vectors[i], size)]
        return fuse([first, [Hit(hit.position, way.score + hit.score) for way, _, hit in _best(found, size)]], k)


@dataclass(frozen=True, slots=True)
class _Way:
    """Positions found one after the other, and the sum of their scores."""

    seen: tuple[int, ...]
    score: float


def _best(found: Sequence[tuple[_Way, int, Hit]], size: int) -> list[tuple[_Way, int, Hit]]:
    """The best continuation into each passage that its way has not seen, best first."""
    best: dict[int, tuple[_Way, int, Hit]] = {}
    for way, i, hit in found:
        if hit.position in way.seen:
            continue
        kept = best.get(hit.position)
        if kept is None or way.score + hit.score > kept[0].score + kept[2].score:
            best[hit.position] = (way, i, hit)
    return sorted(best.values(), key=lambda f: (-(f[0].score + f[2].score), f[2].position))[:size]


@dataclass(frozen=True, slots=True)
class Jump:
    """A question whose answer needs two passages: from the first the second must be reached. Positions in a corpus."""

    question: str
    first: int
    second: int


def linked_jumps(corpus: Corpus, most: int = 4) -> Iterator[Jump]:
    """Questions made of a corpus' own links: a passage links to another if it names its title.

    The question is the linking sentence with the link's name left out, and a sentence of the linked passage with its
    own name left out: it can be found by the first passage, and answered only by the second. At most `most` for each
    linking passage.
    """
    names = {doc.title: i for i, doc in enumerate(corpus.docs) if len(doc.title) >= SHORTEST}
    if not names:
        return
    words = sorted(names, key=len, reverse=True)
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, words)) + r")(?!\w)")
    for i, doc in enumerate(corpus.docs):
        given = 0
        for sentence in SENTENCE.split(doc.text):
            for match in pattern.finditer(sentence):
                target = names[match[0]]
                if target == i or given >= most:
                    continue
                given += 1
                told = SENTENCE.split(corpus.docs[target].text)
                about = told[min(1, len(told) - 1)] if given % 2 else told[0]
                question = f"{doc.title}: {sentence.replace(match[0], 'it')} {about.replace(match[0], 'it')}"
                yield Jump(question, i, target)
