"""Which blocks of queries meet which blocks of keys: the lists that tiled kernels walk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["BlockColumns", "BlockRows", "block_columns", "block_rows"]

IntArray = npt.NDArray[np.int64]


class Spans(Protocol):
    """What of a `TreePlan` the lists are made from: the end of each key's subtree, the depths of keys and queries."""

    @property
    def end(self) -> Tensor: ...

    @property
    def depth(self) -> Tensor: ...

    @property
    def q_offset(self) -> int: ...

    @property
    def n_queries(self) -> int: ...

    @property
    def n_keys(self) -> int: ...

    @property
    def key_depth(self) -> Tensor: ...

    @property
    def device(self) -> torch.device: ...


@dataclass(frozen=True, slots=True)
class BlockRows:
    """For each block of queries the key blocks it needs, as two CSR lists (int32).

    Block i must mask the key blocks ``partial[partial_ptr[i]:partial_ptr[i + 1]]`` and may take
    ``full[full_ptr[i]:full_ptr[i + 1]]`` without a mask. Both lists rise within a row.
    """

    block_q: int
    block_k: int
    partial_ptr: Tensor
    partial: Tensor
    full_ptr: Tensor
    full: Tensor


@dataclass(frozen=True, slots=True)
class BlockColumns:
    """Work items of the pass over keys (int32), heaviest first: a key block and the query blocks [first, stop) that
    see any of it, of which [full_first, full_stop) see all of it.

    A key block whose range is longer than the split occurs several times; ``split`` says whether any does, and then
    the items' gradients must be added up. Windows are not taken into account: with one, no block is full.
    """

    block_q: int
    block_k: int
    key_block: Tensor
    first: Tensor
    stop: Tensor
    full_first: Tensor
    full_stop: Tensor
    split: bool


def _block_ranges(plan: Spans, block_q: int, block_k: int) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Per key block: query blocks [low, high) that see any of it, [full_low, full_high) that see all of it."""
    end = plan.end.cpu().numpy().astype(np.int64)
    n, offset, total = plan.n_keys, plan.q_offset, plan.n_queries
    start = np.arange(0, n, block_k)
    stop = np.minimum(start + block_k, n)
    largest, smallest = np.maximum.reduceat(end, start), np.minimum.reduceat(end, start)
    low = np.maximum(start - offset, 0) // block_q
    high = -(-np.maximum(largest - offset, 0) // block_q)
    full_low = -(-np.maximum(stop - 1 - offset, 0) // block_q)
    # The last query block may be ragged: it is full when its last real query is.
    reach = np.where(smallest - offset >= total, -(-total // block_q), np.maximum(smallest - offset, 0) // block_q)
    whole = stop - start == block_k  # a ragged key block is never full
    full_high = np.where(whole, np.maximum(reach, full_low), full_low)
    return low, np.maximum(high, low), np.minimum(full_low, high), np.minimum(full_high, high)


def block_rows(plan: Spans, block_q: int, block_k: int, low_depth: Tensor | None) -> BlockRows:
    """The lists of the passes over queries; see `TreePlan.rows`."""
    low, high, full_low, full_high = _block_ranges(plan, block_q, block_k)
    count = high - low
    key = np.repeat(np.arange(len(low)), count)
    query = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count) + low[key]
    full = (query >= full_low[key]) & (query < full_high[key])
    if low_depth is not None:
        near, inside = _near_blocks(plan, block_q, block_k, low_depth, query, key)
        key, query, full = key[near], query[near], (full & inside)[near]
    n_rows = -(-plan.n_queries // block_q)
    lists = []
    for chosen in (~full, full):
        order = np.argsort(query[chosen], kind="stable")
        pointer = np.append(0, np.cumsum(np.bincount(query[chosen], minlength=n_rows)))
        lists += [_int32(pointer, plan), _int32(key[chosen][order], plan)]
    return BlockRows(block_q, block_k, *lists)


def _near_blocks(
    plan: Spans, block_q: int, block_k: int, low_depth: Tensor, query: IntArray, key: IntArray
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Per block pair: some key may be deep enough for some query; every key is for every query."""
    at, above = low_depth.cpu().numpy(), plan.key_depth.cpu().numpy()
    q_start, k_start = np.arange(0, len(at), block_q), np.arange(0, len(above), block_k)
    q_min, q_max = np.minimum.reduceat(at, q_start)[query], np.maximum.reduceat(at, q_start)[query]
    k_min, k_max = np.minimum.reduceat(above, k_start)[key], np.maximum.reduceat(above, k_start)[key]
    return k_max >= q_min, k_min >= q_max


def block_columns(plan: Spans, block_q: int, block_k: int, split: int | None) -> BlockColumns:
    """The work items of the pass over keys; see `TreePlan.columns`."""
    low, high, full_low, full_high = _block_ranges(plan, block_q, block_k)
    length = high - low
    pieces = np.ones_like(length) if split is None else np.maximum(-(-length // split), 1)
    key = np.repeat(np.arange(len(low)), pieces)
    piece = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    first = low[key] + piece * length[key] // pieces[key]
    stop = low[key] + (piece + 1) * length[key] // pieces[key]
    order = np.argsort(first - stop, kind="stable")
    key, first, stop = key[order], first[order], stop[order]
    full_first = np.clip(full_low[key], first, stop)
    full_stop = np.clip(full_high[key], full_first, stop)
    return BlockColumns(
        block_q=block_q,
        block_k=block_k,
        key_block=_int32(key, plan),
        first=_int32(first, plan),
        stop=_int32(stop, plan),
        full_first=_int32(full_first, plan),
        full_stop=_int32(full_stop, plan),
        split=bool((pieces > 1).any()),
    )


def _int32(values: IntArray, plan: Spans) -> Tensor:
    return torch.from_numpy(values.astype(np.int32)).to(plan.device)
