"""Rows of symbols joined where they begin alike: one sort, then array operations.

Rows in lexicographic order are a depth-first walk of their trie: each row shares its beginning with the row before it
and nothing else, so the trie follows from how long that beginning is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["RowTrie", "flat_rows", "row_trie"]

Array = NDArray[np.int64]
LONG = 64  # symbols a row, from which on pairs of rows are compared one after the other


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowTrie:
    """A forest of T symbols in depth-first order, and where the N symbols of the R rows stand in it.

    position  i64 [N] index into the trie of each symbol, rows one after the other
    symbol    i64 [T];  parent i64 [T], the symbol before on its path, −1 for the first
    order     i64 [R] the rows in the order of the walk
    last      i64 [R] index of each row's last symbol, −1 for a row without one
    """

    position: Array
    symbol: Array
    parent: Array
    order: Array
    last: Array

    def __len__(self) -> int:
        return len(self.symbol)


def flat_rows(rows: Sequence[Sequence[int] | Array]) -> tuple[Array, Array]:
    """(symbols of all rows [N], where each row begins and the last one ends [R+1])."""
    lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
    parts = [np.asarray(row, np.int64) for row in rows]
    flat = np.concatenate(parts) if parts else np.empty(0, np.int64)
    return flat, np.concatenate(([0], np.cumsum(lengths)))


def row_trie(
    symbols: Array, offset: Array, group: Array | None = None, starts: NDArray[np.bool_] | None = None
) -> RowTrie:
    """The trie of R rows; rows of different groups share nothing.

    symbols  i64 [N] of all rows, one row after the other;  offset i64 [R+1] where rows begin
    group    i64 [R], None: one group
    starts   bool [N], where a unit begins: then rows share whole units only. None: every symbol is a unit
    """
    offset = np.asarray(offset, np.int64)
    length, rows = np.diff(offset), len(offset) - 1
    of = np.zeros(rows, np.int64) if group is None else np.asarray(group, np.int64)
    order = _sorted(symbols, offset, of)
    shared = _shared(symbols, offset, order, of)
    if starts is not None:
        shared = _whole(shared, offset, order, length, starts)
    position = np.empty(len(symbols), np.int64)
    begin, ends = offset[order], offset[order + 1]
    fresh = length[order] - shared
    base = np.cumsum(fresh) - fresh  # the first new symbol of each row, in walking order
    new = np.repeat(begin + shared - base, fresh) + np.arange(int(fresh.sum()))
    position[new] = np.arange(len(new))
    which = np.flatnonzero(shared > 0)
    copied = zip(begin[which].tolist(), begin[which - 1].tolist(), shared[which].tolist(), strict=True)
    for here, above, many in copied:
        position[here : here + many] = position[above : above + many]
    parent = np.arange(len(new), dtype=np.int64) - 1
    starting = fresh > 0
    hung = shared[starting] > 0
    onto = np.full(int(starting.sum()), -1, np.int64)
    onto[hung] = position[(begin + shared - 1)[starting][hung]]
    parent[base[starting]] = onto
    last = np.full(rows, -1, np.int64)
    full = length[order] > 0
    last[order[full]] = position[ends[full] - 1]
    return RowTrie(position=position, symbol=symbols[new], parent=parent, order=order, last=last)


def _sorted(symbols: Array, offset: Array, group: Array) -> Array:
    """Rows by group, then by their symbols; equal rows in the order given."""
    low = int(symbols.min(initial=0))
    wide = int(symbols.max(initial=0)) - low >= 2**31
    kind = np.dtype(">u8" if wide else ">u4")
    text = (symbols - low).astype(kind).tobytes()
    at = (offset * kind.itemsize).tolist()
    keys = [text[a:b] for a, b in pairwise(at)]
    of = group.tolist()
    return np.asarray(sorted(range(len(keys)), key=lambda i: (of[i], keys[i])), np.int64).reshape(-1)


def _shared(symbols: Array, offset: Array, order: Array, group: Array) -> Array:
    """[R] in walking order: how many symbols a row has in common with the row before it."""
    out = np.zeros(len(order), np.int64)
    if len(order) < 2:
        return out
    length = np.diff(offset)
    a, b = order[:-1], order[1:]
    most = np.where(group[a] == group[b], np.minimum(length[a], length[b]), 0)
    if len(symbols) > LONG * len(order):
        pairs = zip(offset[a].tolist(), offset[b].tolist(), most.tolist(), strict=True)
        out[1:] = [_common(symbols[i : i + n], symbols[j : j + n]) for i, j, n in pairs]
        return out
    start = np.cumsum(most) - most
    within = np.arange(int(most.sum())) - np.repeat(start, most)
    same = symbols[np.repeat(offset[a], most) + within] == symbols[np.repeat(offset[b], most) + within]
    off = np.flatnonzero(~same)
    first = np.searchsorted(off, start)
    ends = np.append(off, len(same))[first] - start
    out[1:] = np.minimum(ends, most)
    return out


def _common(a: Array, b: Array) -> int:
    """How many symbols two equally long rows begin with alike."""
    off = a != b
    first = int(off.argmax()) if len(off) else 0
    return first if len(off) and off[first] else len(off)


def _whole(shared: Array, offset: Array, order: Array, length: Array, starts: NDArray[np.bool_]) -> Array:
    """The shared lengths, cut back to whole units of both rows."""
    index = np.arange(len(starts))
    begun = np.maximum.accumulate(np.where(starts, index, 0)) if len(starts) else index
    out = shared.copy()
    out[1:] = np.minimum(
        _ended(shared[1:], offset[order[1:]], length[order[1:]], starts, begun),
        _ended(shared[1:], offset[order[:-1]], length[order[:-1]], starts, begun),
    )
    return out


def _ended(shared: Array, begin: Array, length: Array, starts: NDArray[np.bool_], begun: Array) -> Array:
    """The most symbols, up to `shared`, after which a row's unit is over."""
    at = begin + shared
    inside = shared < length
    cut = np.where(inside, at, 0)
    whole = ~inside | starts[cut] if len(starts) else ~inside
    return np.asarray(np.where(whole, shared, np.maximum(begun[cut] - begin, 0)))
