"""Packing of whole rows by array operations: for credit of tokens, and for many long answers to one prompt.

It gives what `pack_trees` gives for the same coefficients, continuations ordered by token id instead of by arrival.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treewright.search.tree import Tree
from treewright.search.types import Origin
from treewright.training.credit.row_trie import flat_rows, row_trie
from treewright.training.packed import PackedBatch, checked_logprobs, filled
from treewright.training.routed import ID_BITS, row_routes, token_of

__all__ = ["TokenDraw", "pack_draws", "pack_token_credit"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TokenDraw:
    """A prompt and what was drawn from it: `coef` f64 for each token of `response`.

    behaviour  log-probs when it was drawn, () if unknown;  mass  of the draw in its tree;  mode  a `loss.Mode`
    marks      i64, for each token of context and response its row in a table of routes; None: the first
    imitate  what the best path earned that the draw lies on
    """

    context: Sequence[int]
    response: Sequence[int]
    coef: NDArray[np.float64]
    behaviour: Sequence[float] = ()
    mass: float = 1.0
    mode: int
    marks: NDArray[np.int64] | None = None
    imitate: float = 0.0


def pack_draws(
    draws: Sequence[TokenDraw],
    *,
    trees: int = 1,
    terms: str = "token",
    table: NDArray[np.int16] | None = None,
) -> PackedBatch:
    """One pack of the draws, what they share stored once. Terms as in `pack_trees`: token or draw.

    table  i16 [U, L, K] routes by mark; tokens of different marks stand apart
    """
    symbols, offset = flat_rows([[*draw.context, *draw.response] for draw in draws])
    if table is not None:
        sizes = np.diff(offset)
        given = [np.zeros(n, np.int64) if d.marks is None else d.marks for d, n in zip(draws, sizes, strict=True)]
        symbols = symbols | (np.concatenate(given) << ID_BITS)
    trie = row_trie(symbols, offset)
    count = np.asarray([len(draw.response) for draw in draws], np.int64)
    ends = np.cumsum(count)
    inside = np.arange(int(count.sum())) - np.repeat(ends - count, count)
    where = trie.position[np.repeat(offset[1:] - count, count) + inside]
    known = [np.asarray(d.behaviour or np.full(len(d.response), np.nan), np.float64) for d in draws]
    coef = np.concatenate([np.asarray(d.coef, np.float64) for d in draws]) if draws else np.empty(0)
    held = np.zeros(len(trie), np.bool_)
    held[where] = True
    target = np.flatnonzero(held)
    place = (np.cumsum(held) - 1)[where]
    first = np.empty(len(target), np.int64)
    first[place[::-1]] = np.arange(len(where))[::-1]  # the last write stays: the first draw of each token
    total = np.asarray(np.bincount(place, coef, len(target)), np.float64)
    mass = np.asarray(np.bincount(place, np.repeat([d.mass for d in draws], count), len(target)), np.float64)
    best = np.asarray(np.bincount(place, np.repeat([d.imitate for d in draws], count), len(target)), np.float64)
    token = terms == "token"
    return PackedBatch(
        ids=trie.symbol if table is None else token_of(trie.symbol),
        parent=trie.parent.astype(np.int32),
        target=target,
        coef=total,
        behaviour=np.concatenate(known)[first] if draws else np.empty(0),
        trees=trees,
        weight=mass,
        mode=np.repeat(np.asarray([d.mode for d in draws], np.int64), count)[first],
        term=np.arange(len(target)) if token else place,
        term_coef=total if token else coef,
        sequence=np.full(len(target), -1) if token else np.repeat(np.arange(len(draws)), count),
        routes=None if table is None else table[trie.symbol >> ID_BITS],
        imitate=best,
    )


def pack_token_credit(
    trees: Sequence[Tree],
    tokens: Sequence[NDArray[np.float64]],
    mode: NDArray[np.int64],
    trained: NDArray[np.bool_],
    max_tokens: int,
    terms: str = "token",
    imitate: NDArray[np.float64] | None = None,
    replay: bool = True,
    share: bool = True,
) -> list[PackedBatch]:
    """Packs of trees of at most `max_tokens` tokens, a tree never cut, with a coefficient for every token.

    tokens, mode, trained, imitate  by node of the trees, one tree after the other
    replay  packs hold their trees' routes;  share  as in `pack_trees`
    Raises TreewrightError for a draw without exact log-probs.
    """
    parts: list[PackedBatch | None] = []
    start = 0
    for tree in trees:
        draws = []
        routes = row_routes(tree, trained[start : start + len(tree)]) if replay else None
        for node in np.flatnonzero(trained[start : start + len(tree)]).tolist():
            own = tree.origin[node] is Origin.POLICY
            draws.append(
                TokenDraw(
                    context=tree.context_ids(tree.parent[node]),
                    response=tree.ids[node],
                    coef=tokens[start + node],
                    behaviour=checked_logprobs(tree, node, len(tree.ids[node])) if own else (),
                    mass=tree.mass[tree.parent[node]] * tree.share[node],
                    mode=int(mode[start + node]),
                    marks=None if routes is None else routes.of(tree, node),
                    imitate=0.0 if imitate is None else float(imitate[start + node]),
                )
            )
        start += len(tree)
        table = None if routes is None else routes.table
        parts.append(pack_draws(draws, terms=terms, table=table) if draws else None)
    return filled(parts, max_tokens, share)
