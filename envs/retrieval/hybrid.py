"""Several rankings as one."""

from __future__ import annotations

from collections.abc import Sequence

from treewright.envs.retrieval.index import Hit, Retriever
from treewright.envs.waiting import together

__all__ = ["HybridIndex", "fuse"]

CONSTANT = 60
DEPTH = 50


def fuse(rankings: Sequence[Sequence[Hit]], k: int, constant: int = CONSTANT) -> list[Hit]:
    """Reciprocal rank fusion (Cormack, Clarke & Büttcher, SIGIR 2009): the sum of 1 / (constant + rank), rank from 1.

    At most k hits, best first; those of equal sum in corpus order.
    """
    sums: dict[int, float] = {}
    for ranking in rankings:
        for rank, hit in enumerate(ranking, start=1):
            sums[hit.position] = sums.get(hit.position, 0.0) + 1.0 / (constant + rank)
    best = sorted(sums.items(), key=lambda item: (-item[1], item[0]))[:k]
    return [Hit(position, score) for position, score in best]


class HybridIndex:
    """Retrievers over one corpus, their rankings fused; `depth` hits are taken from each."""

    def __init__(self, retrievers: Sequence[Retriever], depth: int = DEPTH) -> None:
        self.retrievers, self._depth = tuple(retrievers), depth

    async def search(self, query: str, k: int) -> list[Hit]:
        asked = [one.search(query, max(k, self._depth)) for one in self.retrievers]
        return fuse(await together(asked), k)
