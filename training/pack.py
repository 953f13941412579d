"""From credited trees to packed batches: every distinct token once, in depth-first order.

The pack is the trie of identical tokens: contexts that share a prefix share its tokens, whether the policy's window
moved or not, and siblings share what they have in common before they differ. A token's log-probability is predicted
by its parent in the trie, never by its neighbour in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treewright.envs.errors import TreewrightError
from treewright.search.tree import Tree
from treewright.training.credit.arrays import Credit, TreeArrays
from treewright.training.credit.rows import LeafRows
from treewright.training.loss import Mode
from treewright.training.pack_flat import pack_token_credit
from treewright.training.packed import PackedBatch, behaviour_of, checked_logprobs, filled, join_packs, masses
from treewright.training.routed import ID_BITS, RowRoutes, needed_nodes, row_routes, token_of
from treewright.training.trie import TokenTrie

__all__ = [
    "TERMS",
    "PackedBatch",
    "TokenRow",
    "TokenTrie",
    "checked_logprobs",
    "filled",
    "join_packs",
    "pack_rows",
    "pack_trees",
    "rows_of",
]

TERMS = ("token", "draw", "row")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """A prompt and a response to be packed: `context` is laid down, `response` is trained on with `coef` per token.

    behaviour  the response's log-probs when it was drawn; () if unknown.  mass  of the draw in its tree
    Arrays are laid down fastest.
    """

    context: tuple[int, ...] | NDArray[np.int64]
    response: tuple[int, ...] | NDArray[np.int64]
    coef: float = 1.0
    behaviour: tuple[float, ...] | NDArray[np.float64] = ()
    mass: float = 1.0
    mode: int = Mode.PG


def _positions(tree: Tree, trie: TokenTrie, trained: NDArray[np.bool_]) -> dict[int, NDArray[np.int64]]:
    """Trie positions of every trained node's response. Contexts above them are laid as the policy received them."""
    context = {0: trie.extend((), tree.delta[0])}
    response: dict[int, NDArray[np.int64]] = {}
    for i in needed_nodes(tree, trained):
        above = context[tree.parent[i]]
        response[i] = trie.extend(above, tree.ids[i])
        if tree.children[i]:
            kept = np.concatenate([above, response[i]])[: tree.keep[i]]
            context[i] = np.concatenate([kept, trie.extend(kept, tree.delta[i])])
    return response


def _routed_positions(tree: Tree, trie: TokenTrie, routes: RowRoutes) -> dict[int, NDArray[np.int64]]:
    """`_positions` where tokens that were routed differently stand apart: the trie is one of (route, token)."""
    where = {0: np.zeros(0, np.int64)}
    response: dict[int, NDArray[np.int64]] = {}
    for node, marks in routes.marks.items():
        above, begin = where[tree.parent[node]], routes.begin[node]
        again = above[begin : len(above) if tree.parent[node] == 0 else tree.keep[tree.parent[node]]]
        ids = np.concatenate([token_of(trie.ids[again]), tree.delta[tree.parent[node]], tree.ids[node]])
        new = trie.extend(above[:begin], (marks << ID_BITS) | ids.astype(np.int64))
        where[node] = np.concatenate([above[:begin], new])
        response[node] = where[node][len(where[node]) - len(tree.ids[node]) :]
    return response


@dataclass(frozen=True, slots=True)
class _Draw:
    """One response in the trie: where its tokens stand, and the coefficients of the terms that it is in."""

    where: NDArray[np.int64]
    behaviour: Sequence[float] | NDArray[np.float64]
    mass: float
    mode: int
    coefs: Sequence[float]
    imitate: float = 0.0


def _laid(
    trie: TokenTrie, draws: Sequence[_Draw], terms: str, trees: int, routes: RowRoutes | None = None
) -> PackedBatch:
    """The trie in preorder with the draws' tokens as targets; with `routes` it is one of (route, token)."""
    where = np.concatenate([draw.where for draw in draws])
    sizes = [len(draw.where) for draw in draws]
    known = np.concatenate(
        [draw.behaviour if len(draw.behaviour) else np.full(len(draw.where), math.nan) for draw in draws]
    )
    if len(known) != len(where):
        raise ValueError(f"{len(where)} tokens with {len(known)} log-probs")
    held, first, token = np.unique(where, return_index=True, return_inverse=True)

    def summed(values: list[float]) -> NDArray[np.float64]:
        return np.bincount(token, np.repeat(np.asarray(values, np.float64), sizes), len(held)).astype(np.float64)

    order = trie.preorder()
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    up = trie.parent[order]
    by = np.argsort(rank[held])
    place = np.empty_like(by)
    place[by] = np.arange(len(by))
    coef = summed([math.fsum(draw.coefs) for draw in draws])[by]
    term, term_coef, owner = np.arange(len(by)), coef, np.full(len(by), -1)
    if terms != "token":
        ends = np.cumsum(sizes)
        own = [token[end - size : end] for draw, end, size in zip(draws, ends, sizes, strict=True) for _ in draw.coefs]
        lengths = [len(x) for x in own]
        term = place[np.concatenate(own)] if own else np.zeros(0, np.int64)
        term_coef = np.repeat(np.asarray([c for draw in draws for c in draw.coefs], np.float64), lengths)
        owner = np.repeat(np.arange(len(own)), lengths)
    return PackedBatch(
        ids=trie.ids[order] if routes is None else token_of(trie.ids[order]),
        parent=np.where(up >= 0, rank[up], -1).astype(np.int32),
        target=rank[held][by],
        coef=coef,
        behaviour=known[first][by].astype(np.float64),
        trees=trees,
        weight=summed([draw.mass for draw in draws])[by],
        mode=np.repeat(np.asarray([draw.mode for draw in draws], np.int64), sizes)[first][by],
        term=term.astype(np.int64),
        term_coef=term_coef,
        sequence=owner.astype(np.int64),
        routes=None if routes is None else routes.table[trie.ids[order] >> ID_BITS],
        imitate=summed([draw.imitate for draw in draws])[by],
    )


def _one(
    tree: Tree,
    trained: NDArray[np.bool_],
    coefs: Sequence[Sequence[float]],
    mode: NDArray[np.int64],
    terms: str,
    importance: NDArray[np.float64],
    imitate: NDArray[np.float64] | None,
    replay: bool,
) -> PackedBatch:
    trie = TokenTrie()
    routes = row_routes(tree, trained) if replay else None
    laid = _positions(tree, trie, trained) if routes is None else _routed_positions(tree, trie, routes)
    draws, mass = [], masses(tree, importance)
    for node, where in laid.items():
        if not trained[node]:
            continue
        behaviour = behaviour_of(tree, node, len(where), float(importance[node]))
        best = 0.0 if imitate is None else float(imitate[node])
        draws.append(_Draw(where, behaviour, mass[node], int(mode[node]), coefs[node], best))
    return _laid(trie, draws, terms, 1, routes)


def pack_trees(
    trees: Sequence[Tree],
    arrays: TreeArrays,
    credit: Credit,
    max_tokens: int = 16384,
    *,
    terms: str = "token",
    rows: LeafRows | None = None,
    mode: NDArray[np.int64] | None = None,
    every: bool = False,
    tokens: Sequence[NDArray[np.float64]] | None = None,
    replay: bool = True,
    imitate: NDArray[np.float64] | None = None,
    share: bool = True,
) -> list[PackedBatch]:
    """Packs of at most `max_tokens` tokens (one longer tree makes a pack of its own; a tree is never cut).

    terms  token: one loss term for each unique token, with the sum of its draws' coefficients; draw: one for each
           (draw, token); row: one for each (leaf, token) of `rows`, for losses that clip each row by itself
    mode   [N] a `Mode` for each node; None: the policy gradient for what the policy drew, nothing for the rest
    every  draws without credit are targets too, for penalties on all that was drawn
    tokens  by node, a coefficient for each of its tokens, instead of one for the node
    replay  packs hold the routes that their trees were drawn with, and tokens that were routed differently stand apart
    imitate  [N] what the best path earned that the node lies on, see `best_paths`
    share  trees of a pack that follow each other store what they begin with once, such as a suite's instructions

    Trees without any credit cost nothing, but `trees` over all packs sums to the number generated: the surrogate
    divides by it. Raises TreewrightError if the arrays do not belong to the trees, ValueError for unknown terms.
    """
    if terms not in TERMS or (terms == "row") != (rows is not None):
        raise ValueError(f"terms = {terms!r} with rows {'given' if rows is not None else 'missing'}; one of {TERMS}")
    sizes = [len(t) for t in trees]
    if sum(sizes) != len(arrays):
        raise TreewrightError(f"{len(arrays)} credited nodes, but the trees have {sum(sizes)}: credit the same trees")
    if mode is None:
        mode = np.where(arrays.trainable, Mode.PG, Mode.NONE)
    coefs: list[list[float]] = [[c] for c in credit.coef.tolist()]
    if rows is not None:
        coefs = [[] for _ in range(len(arrays))]
        for node, one in zip(rows.node.tolist(), rows.coef.tolist(), strict=True):
            coefs[node].append(one)
    credited = np.asarray([any(c) for c in coefs], np.bool_)
    if tokens is not None:
        credited = np.asarray([bool(np.any(c)) for c in tokens], np.bool_)
    trained = (mode != Mode.NONE) & (credited | (every & arrays.trainable))
    if imitate is not None:
        trained |= (mode != Mode.NONE) & (imitate != 0)
    if tokens is not None:
        return pack_token_credit(trees, tokens, mode, trained, max_tokens, terms, imitate, replay, share)
    parts: list[PackedBatch | None] = []
    start = 0
    for tree, size in zip(trees, sizes, strict=True):
        mine = slice(start, start + size)
        start += size
        best = None if imitate is None else imitate[mine]
        own = (coefs[mine], mode[mine], terms, arrays.importance[mine], best, replay)
        parts.append(_one(tree, trained[mine], *own) if trained[mine].any() else None)
    return filled(parts, max_tokens, share)


def pack_rows(groups: Sequence[Sequence[TokenRow]], max_tokens: int = 16384) -> list[PackedBatch]:
    """Groups of rows as packs with terms by draw; a group is never cut, and what rows share is stored once.

    `trees` counts the groups of a pack, `sequence` its rows in the order given. Raises TreewrightError for a row
    without context, whose first token nothing would predict, or without response.
    """
    packs, trie, held = [], TokenTrie(), list[_Draw]()
    count, last = 0, np.zeros(0, np.int64)
    for group in groups:
        if any(not len(row.context) or not len(row.response) for row in group):
            raise TreewrightError("a row has no context or no response: there is nothing to predict; leave it out")
        size, last = _at_most(group, last)
        if held and len(trie) + size > max_tokens:
            packs.append(_laid(trie, held, "draw", count))
            trie, held, count = TokenTrie(), [], 0
        for row in group:
            where = trie.extend(trie.extend((), row.context), row.response)
            held.append(_Draw(where, row.behaviour, row.mass, row.mode, [row.coef]))
        count += 1
    return [*packs, _laid(trie, held, "draw", count)] if held else packs


def _at_most(rows: Sequence[TokenRow], before: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
    """No fewer tokens than the rows add to a trie that holds the row `before`, where each shares with the one before it
    what both begin with: the steps of one episode are counted once, not each with all that went before. And the last
    row."""
    size = 0
    for row in rows:
        ids = np.concatenate([row.context, row.response]).astype(np.int64)
        most = min(len(before), len(ids))
        differ = before[:most] != ids[:most]
        size += len(ids) - (int(differ.argmax()) if differ.any() else most)
        before = ids
    return size, before


def rows_of(pack: PackedBatch) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """The plain way, as a reference: one row per trained token's path.

    Yields (path [L] of pack indices from the first token to a leaf, positions [m] in that row of the targets that no
    earlier row held, and their indices [m] into `pack.target`).
    """
    has_child = np.zeros(len(pack), bool)
    has_child[pack.parent[pack.parent >= 0]] = True
    index = {int(t): i for i, t in enumerate(pack.target)}
    done: set[int] = set()
    for leaf in np.flatnonzero(~has_child):
        path, at = [], int(leaf)
        while at >= 0:
            path.append(at)
            at = int(pack.parent[at])
        path.reverse()
        fresh = [i for i, t in enumerate(path) if t in index and t not in done]
        done.update(path[i] for i in fresh)
        if fresh:
            yield (
                np.asarray(path, np.int64),
                np.asarray(fresh, np.int64),
                np.asarray([index[path[i]] for i in fresh], np.int64),
            )
