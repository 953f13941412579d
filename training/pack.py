"""From credited trees to packed batches: every distinct token once, in depth-first order.

The pack is the trie of identical tokens: contexts that share a prefix share its tokens, whether the policy's window
moved or not, and siblings share what they have in common before they differ. A token's log-probability is predicted
by its parent in the trie, never by its neighbour in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from treewright.envs.errors import TreewrightError
from treewright.kernels.tree_plan import TreePlan
from treewright.search.tree import Tree
from treewright.search.types import Origin
from treewright.training.credit.arrays import Credit, TreeArrays
from treewright.training.credit.rows import LeafRows
from treewright.training.loss import Mode

__all__ = ["TERMS", "PackedBatch", "TokenRow", "TokenTrie", "pack_rows", "pack_trees", "rows_of"]

TERMS = ("token", "draw", "row")


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedBatch:
    """A forest of tokens in preorder.

    ids        i64 [T] token ids
    parent     i32 [T] index of the token before this one on its path, −1 for the first token of a tree
    target     i64 [M] indices of the tokens that are trained on; none is a first token
    coef       f64 [M] sum over the draws that share the token of the estimator's coefficient for their edge
    behaviour  f64 [M] log-prob under the distribution the token was drawn from; NaN where no policy drew it
    trees      how many trees were generated for this batch, those without any credit included
    weight     f64 [M] sum over the draws that share the token of their mass in the tree
    mode       i64 [M] a `treewright.training.loss.Mode`
    term       i64 [P] which of the M targets a loss term is about, and  term_coef  f64 [P] its coefficient
    sequence   i64 [P] which draw, or which leaf's row and draw, a term belongs to; −1 where terms are tokens
    """

    ids: NDArray[np.int64]
    parent: NDArray[np.int32]
    target: NDArray[np.int64]
    coef: NDArray[np.float64]
    behaviour: NDArray[np.float64]
    trees: int
    weight: NDArray[np.float64]
    mode: NDArray[np.int64]
    term: NDArray[np.int64]
    term_coef: NDArray[np.float64]
    sequence: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def plan(self) -> TreePlan:
        """Mask, positions and predictors of the pack: made when they are first asked for, and once."""
        return TreePlan.from_parents(self.parent)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """A prompt and a response to be packed: `context` is laid down, `response` is trained on with `coef` per token.

    behaviour  the response's log-probs when it was drawn; () if unknown.  mass  of the draw in its tree
    """

    context: tuple[int, ...]
    response: tuple[int, ...]
    coef: float = 1.0
    behaviour: tuple[float, ...] = ()
    mass: float = 1.0
    mode: int = Mode.PG


class TokenTrie:
    """A growing trie of token ids; equal continuations of the same token are stored once."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.parent: list[int] = []
        self._next: dict[tuple[int, int], int] = {}

    def extend(self, path: Sequence[int], tokens: Iterable[int]) -> list[int]:
        """Positions of `tokens` after the last of `path` (positions; empty = a new root)."""
        at = path[-1] if path else -1
        out = []
        for token in tokens:
            key = (at, token)
            found = self._next.get(key)
            if found is None:
                found = self._next[key] = len(self.ids)
                self.ids.append(token)
                self.parent.append(at)
            out.append(found)
            at = found
        return out

    def preorder(self) -> NDArray[np.int64]:
        """[T] positions in depth-first order, continuations in the order they came."""
        children: list[list[int]] = [[] for _ in self.ids]
        roots: list[int] = []
        for i, above in enumerate(self.parent):
            (children[above] if above >= 0 else roots).append(i)
        order, stack = [], roots[::-1]
        while stack:
            i = stack.pop()
            order.append(i)
            stack.extend(reversed(children[i]))
        return np.asarray(order, np.int64)


def _positions(tree: Tree, trie: TokenTrie, trained: NDArray[np.bool_]) -> dict[int, list[int]]:
    """Trie positions of every trained node's response. Contexts above them are laid as the policy received them."""
    context: dict[int, list[int]] = {0: trie.extend([], tree.delta[0])}
    response: dict[int, list[int]] = {}
    needed = np.zeros(len(tree), bool)
    for i in range(len(tree) - 1, 0, -1):
        needed[i] |= bool(trained[i])
        needed[tree.parent[i]] |= needed[i]
    for i in range(1, len(tree)):
        if not needed[i]:
            continue
        above = context[tree.parent[i]]
        response[i] = trie.extend(above, tree.ids[i])
        if tree.children[i]:
            kept = (above + response[i])[: tree.keep[i]]
            context[i] = kept + trie.extend(kept, tree.delta[i])
    return response


@dataclass(frozen=True, slots=True)
class _Draw:
    """One response in the trie: where its tokens stand, and the coefficients of the terms that it is in."""

    where: Sequence[int]
    behaviour: Sequence[float]
    mass: float
    mode: int
    coefs: Sequence[float]


def _laid(trie: TokenTrie, draws: Sequence[_Draw], terms: str, trees: int) -> PackedBatch:
    """The trie in preorder with the draws' tokens as targets."""
    coef: dict[int, float] = {}
    mass: dict[int, float] = {}
    behaviour: dict[int, float] = {}
    mode: dict[int, int] = {}
    pairs: list[tuple[int, float, int]] = []
    sequence = 0
    for draw in draws:
        known = draw.behaviour or (math.nan,) * len(draw.where)
        for position, logp in zip(draw.where, known, strict=True):
            coef[position] = coef.get(position, 0.0) + math.fsum(draw.coefs)
            mass[position] = mass.get(position, 0.0) + draw.mass
            behaviour.setdefault(position, logp)
            mode.setdefault(position, draw.mode)
        for one in draw.coefs:
            pairs += [(position, one, sequence) for position in draw.where]
            sequence += 1
    order = trie.preorder()
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    up = np.asarray(trie.parent, np.int64)[order]
    held = np.fromiter(coef, np.int64, len(coef))
    by = np.argsort(rank[held])
    place = {int(held[j]): i for i, j in enumerate(by)}
    if terms == "token":
        term, term_coef = np.arange(len(by)), np.fromiter(coef.values(), np.float64, len(coef))[by]
        owner = np.full(len(by), -1)
    else:
        term = np.asarray([place[p] for p, _, _ in pairs], np.int64)
        term_coef = np.asarray([c for _, c, _ in pairs], np.float64)
        owner = np.asarray([q for _, _, q in pairs], np.int64)
    return PackedBatch(
        ids=np.asarray(trie.ids, np.int64)[order],
        parent=np.where(up >= 0, rank[up], -1).astype(np.int32),
        target=rank[held][by],
        coef=np.fromiter(coef.values(), np.float64, len(coef))[by],
        behaviour=np.fromiter(behaviour.values(), np.float64, len(coef))[by],
        trees=trees,
        weight=np.fromiter(mass.values(), np.float64, len(coef))[by],
        mode=np.fromiter(mode.values(), np.int64, len(coef))[by],
        term=term.astype(np.int64),
        term_coef=term_coef,
        sequence=owner.astype(np.int64),
    )


def _one(
    tree: Tree,
    trained: NDArray[np.bool_],
    coefs: Sequence[Sequence[float]],
    mode: NDArray[np.int64],
    terms: str,
) -> PackedBatch:
    trie = TokenTrie()
    draws = []
    for node, where in _positions(tree, trie, trained).items():
        if not trained[node]:
            continue
        own = tree.origin[node] is Origin.POLICY
        if own and len(tree.logprobs[node]) != len(where):
            raise TreewrightError(
                f"node {node} of tree {tree.tree_id} has {len(where)} tokens and {len(tree.logprobs[node])} log-probs; "
                "only completions with exact log-probs can be trained on"
            )
        if own and not all(map(math.isfinite, tree.logprobs[node])):
            raise TreewrightError(f"node {node} of tree {tree.tree_id} has log-probs that are not finite")
        # Only what a policy drew is corrected by its log-probs; stored and demonstrated tokens are given.
        behaviour = tree.logprobs[node] if own else ()
        mass = tree.mass[tree.parent[node]] * tree.share[node]
        draws.append(_Draw(where, behaviour, mass, int(mode[node]), coefs[node]))
    return _laid(trie, draws, terms, 1)


def _join(parts: Sequence[PackedBatch], trees: int) -> PackedBatch:
    starts = np.cumsum([0] + [len(p) for p in parts])
    targets = np.cumsum([0] + [len(p.target) for p in parts])
    draws = np.cumsum([0] + [int(p.sequence.max(initial=-1)) + 1 for p in parts])
    return PackedBatch(
        ids=np.concatenate([p.ids for p in parts]),
        parent=np.concatenate(
            [np.where(p.parent >= 0, p.parent + s, -1) for p, s in zip(parts, starts, strict=False)]
        ).astype(np.int32),
        target=np.concatenate([p.target + s for p, s in zip(parts, starts, strict=False)]),
        coef=np.concatenate([p.coef for p in parts]),
        behaviour=np.concatenate([p.behaviour for p in parts]),
        trees=trees,
        weight=np.concatenate([p.weight for p in parts]),
        mode=np.concatenate([p.mode for p in parts]),
        term=np.concatenate([p.term + s for p, s in zip(parts, targets, strict=False)]),
        term_coef=np.concatenate([p.term_coef for p in parts]),
        sequence=np.concatenate(
            [np.where(p.sequence >= 0, p.sequence + s, -1) for p, s in zip(parts, draws, strict=False)]
        ),
    )


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
) -> list[PackedBatch]:
    """Packs of at most `max_tokens` tokens (one longer tree makes a pack of its own; a tree is never cut).

    terms  token: one loss term for each unique token, with the sum of its draws' coefficients; draw: one for each
           (draw, token); row: one for each (leaf, token) of `rows`, for losses that clip each row by itself
    mode   [N] a `Mode` for each node; None: the policy gradient for what the policy drew, nothing for the rest
    every  draws without credit are targets too, for penalties on all that was drawn

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
    trained = (mode != Mode.NONE) & (credited | (every & arrays.trainable))
    parts: list[PackedBatch | None] = []
    start = 0
    for tree, size in zip(trees, sizes, strict=True):
        mine = slice(start, start + size)
        start += size
        parts.append(_one(tree, trained[mine], coefs[mine], mode[mine], terms) if trained[mine].any() else None)
    return _filled(parts, max_tokens)


def pack_rows(groups: Sequence[Sequence[TokenRow]], max_tokens: int = 16384) -> list[PackedBatch]:
    """Groups of rows as packs with terms by draw; a group is never cut, and what rows share is stored once.

    `trees` counts the groups of a pack, `sequence` its rows in the order given. Raises TreewrightError for a row
    without context, whose first token nothing would predict, or without response.
    """
    packs, trie, held = [], TokenTrie(), list[_Draw]()
    count = 0
    for group in groups:
        if any(not row.context or not row.response for row in group):
            raise TreewrightError("a row has no context or no response: there is nothing to predict")
        size = sum(len(row.context) + len(row.response) for row in group)
        if held and len(trie.ids) + size > max_tokens:
            packs.append(_laid(trie, held, "draw", count))
            trie, held, count = TokenTrie(), [], 0
        for row in group:
            where = trie.extend(trie.extend([], row.context), row.response)
            held.append(_Draw(where, row.behaviour, row.mass, row.mode, [row.coef]))
        count += 1
    return [*packs, _laid(trie, held, "draw", count)] if held else packs


def _filled(parts: Sequence[PackedBatch | None], max_tokens: int) -> list[PackedBatch]:
    """Packs in order; the last one counts the trees that are in none."""
    packs: list[list[PackedBatch]] = []
    room = 0
    for part in parts:
        if part is None:
            continue
        if not packs or len(part) > room:
            packs.append([])
            room = max_tokens
        packs[-1].append(part)
        room -= len(part)
    counts = [len(p) for p in packs]
    if counts:
        counts[-1] += len(parts) - sum(counts)
    return [_join(p, n) for p, n in zip(packs, counts, strict=True)]


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
