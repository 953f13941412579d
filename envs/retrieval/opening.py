"""A corpus and a question file of somebody's own as a suite, without code.

suite = open_suite("own", corpus="passages.jsonl", questions="questions.jsonl", retriever="hybrid")
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from treewright.envs.errors import TreewrightError
from treewright.envs.retrieval.corpus import Corpus, load_corpus, load_questions
from treewright.envs.retrieval.hypergraph import HypergraphIndex
from treewright.envs.retrieval.index import LexicalIndex, Retriever
from treewright.envs.retrieval.linked import LinkedWorld
from treewright.envs.retrieval.multihop import has_passages, load_multihop
from treewright.envs.retrieval.world import RetrievalWorld, make_suite
from treewright.envs.types import Suite

__all__ = ["RETRIEVERS", "cache_folder", "make_retriever", "open_suite"]

RETRIEVERS = ("lexical", "dense", "hybrid", "hypergraph", "treehop")
FORM = 2  # of a lexical index; raised when words are cut or fields are made in another way
KEPT = 20_000  # documents from which on a lexical index is kept; smaller ones are built in a fraction of a second


def open_suite(
    name: str,
    *,
    questions: str | Path,
    corpus: str | Path | None = None,
    retriever: str = "lexical",
    encoder: str = "minilm",
    stemming: str = "auto",
    reward: Literal["exact", "f1"] = "exact",
) -> Suite:
    """A retrieval suite over files; see `load_corpus`, `load_questions` and `load_multihop` for what they may be.

    corpus     None takes the passages that the question file brings (HotpotQA, 2WikiMultihopQA, MuSiQue)
    retriever  one of RETRIEVERS ('treehop:FOLDER' with a trained gate), or the http address of a server that
               speaks Search-R1's protocol
    encoder    of 'dense' and 'hybrid': 'minilm', or a folder or name of a sentence-transformers encoder
    stemming   of 'lexical' and 'hybrid': 'auto', 'none' or a language, see `LexicalIndex`

    Raises CorpusError for a bad file and TreewrightError for an unknown retriever or a missing package.
    """
    origin = {"reward": reward}
    if retriever.startswith(("http://", "https://")):
        from treewright.envs.retrieval.remote import make_remote_suite

        return replace(make_remote_suite(name, retriever, load_questions(questions), reward=reward), origin=origin)
    if corpus is None and not has_passages(questions):
        raise TreewrightError(
            f"{questions} brings no passages of its own: name a corpus too, --corpus FILE.jsonl or a folder of texts"
        )
    docs, asked = load_multihop(questions) if corpus is None else (load_corpus(corpus), load_questions(questions))
    ranks = make_retriever(docs, retriever, encoder, stemming)
    world = LinkedWorld if isinstance(ranks, HypergraphIndex) else RetrievalWorld
    return replace(make_suite(name, docs, asked, retriever=ranks, reward=reward, world=world), origin=origin)


def make_retriever(corpus: Corpus, kind: str, encoder: str = "minilm", stemming: str = "auto") -> Retriever:
    """One of RETRIEVERS over a corpus, 'treehop:FOLDER' with its gate; what is slow is kept in `cache_folder()`."""
    kind, _, gate = kind.partition(":")
    if kind not in RETRIEVERS:
        raise TreewrightError(f"no retriever {kind!r}; there are {', '.join(RETRIEVERS)}:FOLDER and http addresses")
    if kind == "treehop" and not gate:
        raise TreewrightError("treehop needs the folder of its gate: worlds.retriever=treehop:FOLDER")
    folder = cache_folder() / f"lexical-{FORM}-{stemming}-{corpus.digest}" if len(corpus) >= KEPT else None
    if kind == "hypergraph":
        return HypergraphIndex(corpus.docs, folder=folder, stemming=stemming)
    lexical = LexicalIndex(corpus.docs, folder=folder, stemming=stemming) if kind in ("lexical", "hybrid") else None
    if kind == "lexical" and lexical is not None:
        return lexical
    from treewright.envs.retrieval.dense import DenseIndex
    from treewright.envs.retrieval.encoders import SentenceEncoder
    from treewright.envs.retrieval.hybrid import HybridIndex

    dense = DenseIndex(corpus, SentenceEncoder(encoder), cache=cache_folder())
    if kind == "treehop":
        from treewright.envs.retrieval.treehop import Gate, TreeHopIndex

        return TreeHopIndex(dense, Gate.load(Path(gate)))
    return dense if lexical is None else HybridIndex([lexical, dense])


def cache_folder() -> Path:
    """Where indices are kept: $TREEWRIGHT_CACHE, or treewright under the user's cache folder."""
    if named := os.environ.get("TREEWRIGHT_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "treewright"
