"""Finding documents by words: BM25 over titles and texts, by tantivy."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import tantivy

from treewright.envs.retrieval.corpus import Doc

__all__ = ["Hit", "LexicalIndex", "Retriever"]

_WORD = re.compile(r"[^\W_]+")
_LONGEST_WORD = 40  # the analyser drops longer words, so no query needs them
_MOST_WORDS = 64
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
    """BM25 (Robertson & Zaragoza 2009) over title and text, `title_boost` times heavier in the title.

    Words are runs of letters and digits, lower-cased. Hits of equal score stand in corpus order.

    folder  where the index is kept; one that is there already is opened, not built; None builds it in memory
    """

    def __init__(self, docs: Sequence[Doc], title_boost: float = 2.0, folder: Path | None = None) -> None:
        builder = tantivy.SchemaBuilder()
        builder.add_text_field("title")
        builder.add_text_field("text")
        builder.add_integer_field("position", stored=True)
        self._schema = builder.build()
        self._size, self._boost = len(docs), title_boost
        if folder is None:
            self._searcher = _fill(tantivy.Index(self._schema), docs).searcher()
            return
        if not folder.is_dir():
            draft = folder.with_name(f".{folder.name}.{os.getpid()}")
            draft.mkdir(parents=True, exist_ok=True)
            _fill(tantivy.Index(self._schema, path=str(draft)), docs)
            try:
                draft.replace(folder)
            except OSError:  # somebody else was faster
                shutil.rmtree(draft)
        self._searcher = tantivy.Index(self._schema, path=str(folder)).searcher()

    async def search(self, query: str, k: int) -> list[Hit]:
        return self.rank(query, k)

    def rank(self, query: str, k: int) -> list[Hit]:
        """`search` for code that is not a coroutine; takes well below a millisecond on small corpora."""
        words = [word for word in dict.fromkeys(_WORD.findall(query.lower())) if len(word) < _LONGEST_WORD]
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
        found = [Hit(int(self._searcher.doc(at)["position"][0]), float(score)) for score, at in hits]
        return sorted(found, key=lambda hit: (-hit.score, hit.position))[:k]

    def _parse(self, words: Sequence[str]) -> tantivy.Query:
        should = []
        for word in words:
            title = tantivy.Query.term_query(self._schema, "title", word)
            should.append((tantivy.Occur.Should, tantivy.Query.boost_query(title, self._boost)))
            should.append((tantivy.Occur.Should, tantivy.Query.term_query(self._schema, "text", word)))
        return tantivy.Query.boolean_query(should)


def _fill(index: tantivy.Index, docs: Sequence[Doc]) -> tantivy.Index:
    # One thread keeps documents in order and the number of segments small.
    writer = index.writer(heap_size=_HEAP_BYTES, num_threads=1)
    for i, doc in enumerate(docs):
        writer.add_document(tantivy.Document(title=doc.title, text=doc.text, position=i))
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    return index
