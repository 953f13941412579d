"""Retrieval measured: indexing and asking 50,000 passages, recall of each retriever, TreeHop against rewriting.

Passages are invented, so that anybody can repeat it. $TREEWRIGHT_QA may name a folder with corpus.jsonl and
questions.jsonl (with supporting_titles); recall is then measured on these too. `treewright bench worlds` runs it among
others, `python -m treewright.benchmarks.retrieval docs/retrieval.json` by itself.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from treewright.envs.errors import TreewrightError
from treewright.envs.retrieval.almanac import almanac
from treewright.envs.retrieval.corpus import Corpus, Doc, Question, load_corpus, load_questions
from treewright.envs.retrieval.dense import DenseIndex, Vectors
from treewright.envs.retrieval.encoders import SentenceEncoder
from treewright.envs.retrieval.hybrid import fuse
from treewright.envs.retrieval.hypergraph import HypergraphIndex
from treewright.envs.retrieval.index import Hit, LexicalIndex
from treewright.envs.retrieval.opening import cache_folder
from treewright.envs.retrieval.treehop import RewriteIndex, TreeHopIndex, linked_jumps

__all__ = ["figures", "recall"]

Figures = dict[str, tuple[float, str]]
FOLDER = "TREEWRIGHT_QA"
K = 5


class Ranker(Protocol):
    def rank(self, query: str, k: int) -> list[Hit]: ...


def figures(quick: bool = False) -> Figures:
    """Everything; without an encoder only what is lexical, and a message says so."""
    out = _lexical(5_000 if quick else 50_000)
    try:
        encoder = SentenceEncoder("minilm")
    except TreewrightError as error:
        print(f"dense retrieval and TreeHop were not measured: {error}")
        return out
    corpus, questions = almanac(300 if quick else 1500)
    out |= _recalls("almanac", corpus, questions[: 100 if quick else 500], encoder)
    out["treehop_recall5_over_rewrite"] = out["almanac_treehop_over_rewrite"]
    if folder := os.environ.get(FOLDER):
        home = Path(folder)
        given = load_corpus(home / "corpus.jsonl"), load_questions(home / "questions.jsonl")
        out |= _recalls("given", *given, encoder)
        out |= _headlines("given", out) | _among(*given) | _transfer(corpus, *given, encoder)
    else:
        out |= _headlines("almanac", out)
    return out


def _headlines(name: str, out: Figures) -> Figures:
    """Recall of the hypergraph, and against both rankings fused: on the given questions if there are any."""
    linked, fused = out[f"{name}_hypergraph_recall{K}"][0], out[f"{name}_hybrid_recall{K}"][0]
    return {f"hypergraph_recall{K}": (linked, "1"), "hypergraph_over_hybrid": (linked / fused, "1")}


def _transfer(learnt: Corpus, corpus: Corpus, questions: Sequence[Question], encoder: SentenceEncoder) -> Figures:
    """Recall of a gate that learnt the links of another corpus, and against one hop."""
    from treewright.training.treehop import train_gate

    gate = train_gate(DenseIndex(learnt, encoder, cache=cache_folder()), list(linked_jumps(learnt)))
    dense = DenseIndex(corpus, encoder, cache=cache_folder())
    found, plain = recall(TreeHopIndex(dense, gate), corpus, questions), recall(dense, corpus, questions)
    return {f"treehop_elsewhere_recall{K}": (found, "1"), "treehop_elsewhere_over_dense": (found / plain, "1")}


def _among(corpus: Corpus, questions: Sequence[Question], count: int = 10_000) -> Figures:
    """Recall when the passages stand among invented ones, `count` in all."""
    others, _ = almanac(count)
    docs = [*corpus.docs, *(Doc(f"invented {doc.id}", doc.title, doc.text) for doc in others.docs)][:count]
    rankers: dict[str, Ranker] = {"lexical": LexicalIndex(docs), "hypergraph": HypergraphIndex(docs)}
    whole = Corpus(docs)
    return {f"among10k_{kind}_recall{K}": (recall(one, whole, questions), "1") for kind, one in rankers.items()}


def recall(ranker: Ranker, corpus: Corpus, questions: Sequence[Question], k: int = K) -> float:
    """Mean share of a question's supporting passages among the first k hits."""
    shares = []
    for question in questions:
        found = {corpus.docs[hit.position].id for hit in ranker.rank(question.text, k)}
        shares.append(len(found & set(question.support)) / len(set(question.support)))
    return sum(shares) / len(shares)


def _lexical(count: int) -> Figures:
    """Words drawn as in language, few of them often; 100 to a passage."""
    rng = random.Random(0)
    words = [f"w{int(rng.paretovariate(0.6)) % 50_000}" for _ in range(200_000)]
    docs = [Doc(f"{i}", f"passage {i}", " ".join(rng.choices(words, k=100))) for i in range(count)]
    began = time.perf_counter()
    index = LexicalIndex(docs)
    built, name = time.perf_counter() - began, f"index_{count // 1000}k_s"
    p95 = _p95(index, [" ".join(rng.choices(words, k=6)) for _ in range(500)])
    return {name: (built, "s"), "query_ms_p95": (p95, "ms"), **_linked(count)}


def _linked(count: int) -> Figures:
    """The hypergraph over as many invented passages that name each other."""
    corpus, questions = almanac(count)
    began = time.perf_counter()
    index = HypergraphIndex(corpus.docs)
    built, name = time.perf_counter() - began, f"hypergraph_index_{count // 1000}k_s"
    asked = [question.text for question in questions[:500]]
    return {name: (built, "s"), "hypergraph_query_ms_p95": (_p95(index, asked), "ms")}


def _p95(ranker: Ranker, queries: Sequence[str]) -> float:
    """Milliseconds in which 95 % of the queries are answered."""
    times = []
    for query in queries:
        began = time.perf_counter()
        ranker.rank(query, K)
        times.append(time.perf_counter() - began)
    return 1000 * sorted(times)[int(0.95 * len(times))]


class _Hybrid:
    def __init__(self, *rankers: Ranker) -> None:
        self._rankers = rankers

    def rank(self, query: str, k: int) -> list[Hit]:
        return fuse([one.rank(query, 50) for one in self._rankers], k)


def _recalls(name: str, corpus: Corpus, questions: Sequence[Question], encoder: SentenceEncoder) -> Figures:
    from treewright.training.treehop import train_gate

    counted = _Counted(encoder)
    dense = DenseIndex(corpus, encoder, cache=cache_folder())
    gate = train_gate(dense, list(linked_jumps(corpus)))
    dense.encoder = counted
    lexical, rewrite, hop = LexicalIndex(corpus.docs), RewriteIndex(dense, corpus), TreeHopIndex(dense, gate)
    rankers: dict[str, Ranker] = {
        "lexical": lexical, "dense": dense, "hybrid": _Hybrid(lexical, dense), "rewrite": rewrite, "treehop": hop,
        "hypergraph": HypergraphIndex(corpus.docs),
    }  # fmt: skip
    out: Figures = {}
    for kind, ranker in rankers.items():
        counted.texts, began = 0, time.perf_counter()
        out[f"{name}_{kind}_recall{K}"] = (recall(ranker, corpus, questions), "1")
        out[f"{name}_{kind}_ms"] = (1000 * (time.perf_counter() - began) / len(questions), "ms")
        out[f"{name}_{kind}_encoded"] = (counted.texts / len(questions), "texts a question")
    ratio = out[f"{name}_treehop_recall{K}"][0] / out[f"{name}_rewrite_recall{K}"][0]
    return {**out, f"{name}_treehop_over_rewrite": (ratio, "1")}


class _Counted:
    """An encoder that counts its texts."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        self._encoder, self.name, self.texts = encoder, encoder.name, 0

    def encode(self, texts: Sequence[str]) -> Vectors:
        self.texts += len(texts)
        return self._encoder.encode(texts)

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        self.texts += len(texts)
        return self._encoder.encode_queries(texts)


if __name__ == "__main__":
    import sys

    from treewright.agent.runs.figures import write_figures

    write_figures(Path(sys.argv[1]), figures())
