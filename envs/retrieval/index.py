"""Finding documents by words: BM25 over titles and texts, by tantivy."""

from __future__ import annotations

import os
import shutil
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import repeat
from pathlib import Path
from typing import Protocol

import tantivy

from treewright.envs.retrieval.corpus import Doc
from treewright.envs.retrieval.rows import clean
from treewright.envs.retrieval.words import Analysis, guessed, sample_of, spread

__all__ = ["Hit", "LexicalIndex", "Retriever"]

TITLE_BOOST = 0.25
_MOST_WORDS = 128
_HEAP_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class Hit:
    """One found document: its position in the corpus and its score, higher is better."""

    position: int
    score: float


class Retriever(Protocol):
    """Anything that ranks documents for a query; a remote one may wait, so it is a coroutine."""

    async def search(self, query: str, k: int) -> list[Hit]:
        """At most k hits, best first, the same for the same query every time."""


class LexicalIndex:
    """BM25 (Robertson & Zaragoza 2009) over title and text together, plus `title_boost` times that of the title alone.

    Words are those of `Analysis`. Hits of equal score stand in corpus order.

    title_boost  0.25 was chosen on HotpotQA: more recall than none, 0.5, 1 and 2 or as much, from 2 to 20 passages
    joint        False searches titles and texts as two fields that know nothing of each other
    stemming     'auto' (by the function words of the documents), 'none', or a language of STEMMERS
    folder       where the index is kept; one that is there already is opened, not built; None builds it in memory

    Raises TreewrightError for an unknown language.
    """

    def __init__(
        self,
        docs: Sequence[Doc],
        title_boost: float = TITLE_BOOST,
        folder: Path | None = None,
        *,
        joint: bool = True,
        stemming: str = "auto",
    ) -> None:
        sample = sample_of(doc.text for doc in docs)
        self.stemming = guessed(sample) if stemming == "auto" else stemming
        self._words = Analysis(self.stemming, sample)
        builder = tantivy.SchemaBuilder()
        builder.add_text_field("title", tokenizer_name="words")
        builder.add_text_field("text", tokenizer_name="words")
        builder.add_integer_field("position", stored=True)
        self._schema = builder.build()
        self._size, self._boost, self._joint = len(docs), title_boost, joint
        self._searcher = self._opened(docs, folder).searcher()
        self._positions: defaultdict[int, array[int]] = defaultdict(lambda: array("q"))  # by segment; -1: not known

    def _opened(self, docs: Sequence[Doc], folder: Path | None) -> tantivy.Index:
        if folder is None:
            return self._filled(tantivy.Index(self._schema), docs)
        if not folder.is_dir():
            draft = folder.with_name(f".{folder.name}.{os.getpid()}")
            draft.mkdir(parents=True, exist_ok=True)
            self._filled(tantivy.Index(self._schema, path=str(draft)), docs)
            try:
                draft.replace(folder)
            except OSError:  # somebody else was faster
                shutil.rmtree(draft)
        return tantivy.Index(self._schema, path=str(folder))

    def _filled(self, index: tantivy.Index, docs: Sequence[Doc]) -> tantivy.Index:
        index.register_tokenizer("words", self._words.analyzer)
        # One thread keeps documents in order and the number of segments small.
        writer = index.writer(heap_size=_HEAP_BYTES, num_threads=1)
        for i, doc in enumerate(docs):
            title, text = spread(doc.title), spread(doc.text)
            writer.add_document(
                tantivy.Document(title=title, text=f"{title}\n{text}" if self._joint else text, position=i)
            )
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        return index

    async def search(self, query: str, k: int) -> list[Hit]:
        return self.rank(query, k)

    def rank(self, query: str, k: int) -> list[Hit]:
        """`search` for code that is not a coroutine; takes well below a millisecond on small corpora."""
        words = list(dict.fromkeys(self._words(clean(query))))
        if not words or k <= 0:
            return []
        parsed = self._parse(words[:_MOST_WORDS])
        limit = min(self._size, k + 16)
        while True:
            hits = self._searcher.search(parsed, limit, count=False).hits
            # Equal scores may be cut anywhere, so fetch on until the k-th score is not the last one seen.
            if len(hits) < limit or limit == self._size or hits[k - 1][0] > hits[-1][0]:
                break
            limit = min(self._size, 4 * limit)
        least = hits[min(k, len(hits)) - 1][0] if hits else 0.0
        found = [(-score, self._position(at)) for score, at in hits if score >= least]
        return [Hit(position, -score) for score, position in nsmallest(k, found)]

    def _position(self, at: tantivy.DocAddress) -> int:
        """Which document it is. Asked of the index once for each, as ties bring thousands of them."""
        doc: int = at.doc
        known = self._positions[at.segment_ord]
        if doc >= len(known):
            known.extend(repeat(-1, doc + 1 - len(known)))
        if known[doc] < 0:
            known[doc] = int(self._searcher.doc(at)["position"][0])
        return known[doc]

    def _parse(self, words: Sequence[str]) -> tantivy.Query:
        should = []
        for word in words:
            title = tantivy.Query.term_query(self._schema, "title", word)
            if self._boost:
                should.append((tantivy.Occur.Should, tantivy.Query.boost_query(title, self._boost)))
            should.append((tantivy.Occur.Should, tantivy.Query.term_query(self._schema, "text", word)))
        return tantivy.Query.boolean_query(should)
