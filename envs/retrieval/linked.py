"""The retrieval world with tools that follow links: `neighbours` of a passage, and a `bridge` between two.

suite = open_suite("own", corpus="passages.jsonl", questions="questions.jsonl", retriever="hypergraph")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from treewright.envs.errors import InvalidAction
from treewright.envs.retrieval.corpus import Corpus
from treewright.envs.retrieval.hypergraph import Hypergraph, HypergraphIndex, Link
from treewright.envs.retrieval.session import ANSWER, tool
from treewright.envs.retrieval.world import RetrievalWorld
from treewright.envs.types import Call

__all__ = ["LinkedWorld"]


class LinkedWorld(RetrievalWorld):
    """One session over a corpus whose passages are linked by the names in them; options as of `RetrievalWorld`."""

    tools = (
        *(spec for spec in RetrievalWorld.tools if spec is not ANSWER),
        tool("neighbours", "list documents that share names with a document", passage="a document id"),
        tool("bridge", "find documents that link two", a="a document id or a name", b="a document id or a name"),
        ANSWER,
    )

    def __init__(self, corpus: Corpus, retriever: HypergraphIndex, **options: Any) -> None:
        super().__init__(corpus, retriever, **options)
        self._graph: Hypergraph = retriever.graph
        self._looks: dict[str, Callable[[Call], str]] = {"neighbours": self._neighbours, "bridge": self._bridge}

    async def look(self, call: Call, key: int) -> str:
        own = self._looks.get(call.name)
        return await super().look(call, key) if own is None else own(call)

    def _neighbours(self, call: Call) -> str:
        position = self.corpus.position.get(call.arguments["passage"])
        if position is None:
            raise InvalidAction(f"no doc {call.arguments['passage']!r}; search shows ids in brackets")
        return self._listed(self._graph.neighbours(position))

    def _bridge(self, call: Call) -> str:
        ends = [self._end(call.arguments[side]) for side in ("a", "b")]
        return self._listed(self._graph.bridge(*ends))

    def _end(self, given: str) -> frozenset[str]:
        """The names that one end of a bridge stands for: a document's own and those in it, or the name itself."""
        position = self.corpus.position.get(given)
        if position is not None:
            return self._graph.names[position]
        name = self._graph.named(given)
        if name not in self._graph.passages:
            raise InvalidAction(f"no doc and no name {given!r}")
        return frozenset({name})

    def _listed(self, links: Iterable[Link]) -> str:
        shown = [f"{self._line(self.corpus.docs[link.position])} (by {link.name})" for link in links]
        return "\n".join(shown[: self._results]) or "no results"
