"""Several hops of dense retrieval without a word between them: the next query is computed from vectors.

After TreeHop (Li et al. 2025, arXiv 2504.20114): what a found passage already answers is taken off the query, and what
it adds is put in its place,

    q' = normalise(q − c + g(q, c)),     g(q, c) = tanh([q, c, q·c] W1 + b1) W2 + b2

with the gate g as a small network instead of attention. Nothing is encoded after the question itself. The weights are
made by `treewright.training.treehop`; this is numpy alone.

A passage counts by the better of two scores: its likeness to the question, and the mean likeness along the way that
led to it, times a weight that was chosen on links held back from training. Where the gate finds less alike passages
than it did there, as on a corpus that it does not know, its weight falls.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from treewright.envs.errors import TreewrightError
from treewright.envs.lines import json_value
from treewright.envs.retrieval.corpus import Corpus
from treewright.envs.retrieval.dense import DenseIndex, Vectors, encode_queries, label
from treewright.envs.retrieval.hybrid import fuse
from treewright.envs.retrieval.index import Hit

__all__ = ["Gate", "Jump", "RewriteIndex", "TreeHopIndex", "linked_jumps", "normalise"]

WIDTH = 5  # passages from which a hop goes on
SENTENCE = re.compile(r"(?<=[.!?])\s+")
SHORTEST = 4  # characters of a title that counts as a link


@dataclass(frozen=True, slots=True)
class Gate:
    """The weights: w1 [3 D, H], b1 [H], w2 [H, D], b2 [D], all float32, for vectors of the encoder of that name.

    weight  of what is found by hops, against what is found at once
    sure    likeness of the best passage of a hop from which on hops have their full weight; 0 always
    label   what the encoder was called by who trained the gate
    """

    w1: NDArray[np.float32]
    b1: NDArray[np.float32]
    w2: NDArray[np.float32]
    b2: NDArray[np.float32]
    encoder: str
    weight: float = 1.0
    sure: float = 0.0
    label: str = ""

    def next(self, q: Vectors, c: Vectors) -> Vectors:
        """The queries [N, D] after passages [N, D] were found by queries [N, D]; rows have length 1."""
        inner = np.tanh(np.concatenate([q, c, q * c], axis=-1) @ self.w1 + self.b1)
        return normalise(q - c + inner @ self.w2 + self.b2)

    def save(self, folder: Path) -> Path:
        """Writes FOLDER/treehop.npz."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "treehop.npz"
        told = {"encoder": self.encoder, "weight": self.weight, "sure": self.sure, "label": self.label}
        np.savez(path, w1=self.w1, b1=self.b1, w2=self.w2, b2=self.b2, told=np.array(json.dumps(told)))
        return path

    @classmethod
    def load(cls, folder: Path) -> Gate:
        """Raises TreewrightError if the folder holds no gate."""
        path = folder / "treehop.npz" if folder.is_dir() else folder
        try:
            with np.load(path, allow_pickle=False) as kept:
                # Gates of the first form have the encoder's name only.
                told = (
                    json_value(str(kept["told"])) if "told" in kept else {"encoder": json_value(str(kept["encoder"]))}
                )
                return cls(kept["w1"], kept["b1"], kept["w2"], kept["b2"], **told)
        except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
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
        if gate.encoder not in (dense.encoder.name, label(dense.encoder)):
            raise TreewrightError(
                f"the gate was trained on vectors of {gate.label or gate.encoder!r}, the index has those of "
                f"{label(dense.encoder)!r}; name that encoder (worlds.encoder), or train a gate for this one"
            )
        self._dense, self._gate, self._hops, self._width = dense, gate, hops, width

    async def search(self, query: str, k: int) -> list[Hit]:
        return await asyncio.to_thread(self.rank, query, k)

    def rank(self, query: str, k: int) -> list[Hit]:
        """At most k hits, each by the better score of its ways, at once or by hops."""
        if not query.strip() or k <= 0:
            return []
        return self.follow(encode_queries(self._dense.encoder, [query])[0], k)

    def follow(self, question: Vectors, k: int) -> list[Hit]:
        """`rank` for a question that is encoded already, [D]."""
        vectors, size, gate = self._dense.vectors, max(k, self._width), self._gate
        first = self._dense.near(question, size)
        scores = {hit.position: hit.score for hit in first}
        ways, queries = [_Way((hit.position,), hit.score) for hit in first[: self._width]], question[None]
        queries = np.repeat(queries, len(ways), axis=0)
        for hop in range(1, self._hops):
            queries = gate.next(queries, vectors[[way.seen[-1] for way in ways]])
            found = [(way, i, hit) for i, way in enumerate(ways) for hit in self._dense.near(queries[i], size)]
            better = _best(found, size)
            if not better:
                break
            weight = gate.weight * trust(max(hit.score for _, _, hit in better), gate.sure)
            for way, _, hit in better:
                score = weight * (way.score + hit.score) / (hop + 1)
                scores[hit.position] = max(score, scores.get(hit.position, score))
            ways = [_Way((*way.seen, hit.position), way.score + hit.score) for way, _, hit in better[: self._width]]
            queries = queries[[i for _, i, _ in better[: self._width]]]
        best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]
        return [Hit(position, score) for position, score in best]


def trust(best: float, sure: float) -> float:
    """How much a hop counts, 0 to 1, whose best passage is so alike: all from `sure` on, by the square below."""
    return 1.0 if sure <= 0 else min(1.0, max(0.0, best / sure)) ** 2


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
        vectors = encode_queries(self._dense.encoder, asked)
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
