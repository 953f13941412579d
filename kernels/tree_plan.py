"""The layout of a token tree: who sees whom, in one int32 per key.

Tokens lie in depth-first order (preorder). Query i sees key j exactly when ``j <= i < end[j]``, where ``end[j]`` is
where the subtree of j stops; so a query sees itself and its ancestors. Several trees in one pack are a forest. A
padding token is a tree of its own: ``end[j] = j + 1``.

Two facts that everything else rests on. Columns are intervals: the queries that see key block [ks, ke) are
[ks, max(end)), of which [ke - 1, min(end)) see all of it. And cuts are free: of the keys before a cut at a, those that
any later query still sees, ``{j < a: end[j] > a}``, are the root path of token a.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from treewright.kernels.tree_blocks import BlockColumns, BlockRows, block_columns, block_rows

__all__ = ["TreePlan", "preorder"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TreePlan:
    """The mask, positions and predictors of one pack of token trees, or of a rectangular cut of one.

    end       int32 [Tk]; the first query (in key coordinates) after j's subtree
    depth     int64 [Tq]; path depth, the position id of each query; roots have 0
    parent    int32 [Tq]; key coordinate of the token before this one on its path; −1 for roots. The log-probability of
              token t comes from the hidden state of ``parent[t]``, not of t − 1
    q_offset  Tk − Tq; query i stands at key coordinate ``q_offset + i``. 0 unless this is a cut
    n_pairs   visible (query, key) pairs

    A plan is built once per pack and shared by all layers; the block lists it is asked for are kept.
    """

    end: Tensor
    depth: Tensor
    parent: Tensor
    q_offset: int
    n_pairs: int
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_parents(cls, parent: Sequence[int] | npt.ArrayLike | Tensor) -> TreePlan:
        """The plan of a forest given each token's predecessor (−1 for roots), tokens in preorder.

        Raises ValueError if a parent does not come earlier or the order is not depth-first; `preorder` gives one.
        """
        links = np.asarray(parent.cpu() if isinstance(parent, Tensor) else parent, dtype=np.int64).reshape(-1)
        n = len(links)
        starts = np.flatnonzero(links != np.arange(-1, n - 1)) if n else np.zeros(0, np.int64)
        starts = starts if n == 0 or (len(starts) and starts[0] == 0) else np.concatenate([[0], starts])
        _check_parents(links)
        lengths = np.diff(np.append(starts, n))
        first_parent = links[starts] if n else starts
        run_of_parent = np.where(first_parent >= 0, np.searchsorted(starts, first_parent, side="right") - 1, -1)
        depth = _depths(run_of_parent, first_parent - starts[run_of_parent] + 1, starts, lengths)
        return cls._build(links, depth, "token")

    @classmethod
    def from_segments(
        cls, parent_segment: Sequence[int] | npt.ArrayLike, lengths: Sequence[int] | npt.ArrayLike
    ) -> TreePlan:
        """The plan of a forest of segments: segment s continues after the last token of ``parent_segment[s]``.

        parent_segment int [S], −1 for roots; lengths int [S] ≥ 0. Segments must lie in preorder; a segment without
        tokens passes its children on to its parent. Raises ValueError as `from_parents` does.
        """
        up = np.asarray(parent_segment, dtype=np.int64).reshape(-1)
        size = np.asarray(lengths, dtype=np.int64).reshape(-1)
        if up.shape != size.shape:
            raise ValueError(f"{len(up)} parent segments but {len(size)} lengths; give one of each per segment")
        if (size < 0).any():
            raise ValueError(f"segment {int(np.argmax(size < 0))} has a negative length")
        _check_parents(up)
        starts = np.cumsum(size) - size
        filled = _climb(up, (size > 0) | (up < 0))  # nearest segment with tokens, from each segment upwards
        above = np.where(up >= 0, filled[up], -1)
        first_parent = np.where((above >= 0) & (size[above] > 0), starts[above] + size[above] - 1, -1)
        links = np.arange(-1, int(size.sum()) - 1)
        links[starts[size > 0]] = first_parent[size > 0]
        return cls.from_parents(links)

    @classmethod
    def _build(cls, links: IntArray, depth: IntArray, what: str) -> TreePlan:
        end = _subtree_ends(links)
        index = np.arange(len(links))
        inner = links >= 0
        wrong = inner.copy()
        wrong[inner] = index[inner] > end[links[inner]] - 1
        if wrong.any():
            at = int(np.argmax(wrong))
            raise ValueError(
                f"{what} {at} continues {what} {int(links[at])}, whose subtree ended before: the order is not "
                "depth-first. Reorder with order = preorder(parent) first"
            )
        return cls(
            end=torch.from_numpy(end.astype(np.int32)),
            depth=torch.from_numpy(depth),
            parent=torch.from_numpy(links.astype(np.int32)),
            q_offset=0,
            n_pairs=int(depth.sum()) + len(depth),
        )

    @property
    def n_queries(self) -> int:
        return self.depth.shape[0]

    @property
    def n_keys(self) -> int:
        return self.end.shape[0]

    @property
    def device(self) -> torch.device:
        return self.end.device

    @property
    def key_depth(self) -> Tensor:
        """int64 [Tk]; the keys before a cut are a root path, so theirs count up from 0."""
        return torch.cat([torch.arange(self.q_offset, device=self.device), self.depth]) if self.q_offset else self.depth

    def to(self, device: torch.device | str) -> TreePlan:
        """The same plan on another device; kept, so that asking again costs nothing."""
        device = torch.device(device)
        if device == self.device or (device.type == self.device.type and device.index is None):
            return self
        key = ("to", str(device))
        if key not in self.cache:
            self.cache[key] = TreePlan(
                end=self.end.to(device),
                depth=self.depth.to(device),
                parent=self.parent.to(device),
                q_offset=self.q_offset,
                n_pairs=self.n_pairs,
            )
        found: TreePlan = self.cache[key]
        return found

    def pad_to(self, length: int) -> TreePlan:
        """The plan with padding tokens (single-token trees) behind it, up to `length` queries."""
        extra = length - self.n_queries
        if extra < 0:
            raise ValueError(f"cannot pad {self.n_queries} tokens to {length}; give a length that is not smaller")
        tail = torch.arange(self.n_keys + 1, self.n_keys + 1 + extra, dtype=torch.int32, device=self.device)
        zeros = torch.zeros(extra, dtype=torch.int64, device=self.device)
        return TreePlan(
            end=torch.cat([self.end, tail]),
            depth=torch.cat([self.depth, zeros]),
            parent=torch.cat([self.parent, (zeros - 1).int()]),
            q_offset=self.q_offset,
            n_pairs=self.n_pairs + extra,
        )

    def live(self, cut: int) -> Tensor:
        """int64 [P]; keys before query `cut` that it or a later query sees: the root path of that token."""
        before = self.end[: self.q_offset + cut]
        return torch.nonzero(before > self.q_offset + cut).flatten()

    def cut(self, start: int, stop: int) -> TreePlan:
        """The plan of queries [start, stop) against [live(start); own keys]; P = its q_offset = len(live(start))."""
        if not 0 <= start < stop <= self.n_queries:
            raise ValueError(f"cut [{start}, {stop}) does not lie in the plan's {self.n_queries} queries")
        live = self.live(start)
        prefix, a, b = live.shape[0], self.q_offset + start, self.q_offset + stop
        shift = prefix - a
        end = torch.cat([self.end[live], self.end[a:b]]).clamp(max=b) + shift
        depth, parent = self.depth[start:stop], self.parent[start:stop]
        # A parent before the cut is the live key at its own depth, since live keys are a root path.
        linked = torch.where(parent >= a, parent + shift, depth.int() - 1)
        return TreePlan(
            end=end.int(), depth=depth, parent=linked.int(), q_offset=prefix, n_pairs=int(depth.sum()) + stop - start
        )

    def low(self, window: int | None = None, chunk: int | None = None) -> Tensor | None:
        """int64 [Tq]; the least depth of a key that each query sees, None where it sees its whole path.

        window  keys with ``depth[query] − depth[key] < window``;  chunk  keys with the same ``depth // chunk``
        """
        if window is None and chunk is None:
            return None
        key = ("low", window, chunk)
        if key not in self.cache:
            low = torch.zeros_like(self.depth) if window is None else (self.depth - window + 1).clamp(min=0)
            self.cache[key] = low if chunk is None else torch.maximum(low, self.depth // chunk * chunk)
        found: Tensor = self.cache[key]
        return found

    def rows(self, block_q: int, block_k: int, window: int | None = None, chunk: int | None = None) -> BlockRows:
        """Key blocks per query block for the given tile sizes; `window` and `chunk` leave out what `low` hides."""
        key = ("rows", block_q, block_k, window, chunk)
        if key not in self.cache:
            self.cache[key] = block_rows(self, block_q, block_k, self.low(window, chunk))
        found: BlockRows = self.cache[key]
        return found

    def columns(self, block_q: int, block_k: int, split: int | None = None) -> BlockColumns:
        """Query-block ranges per key block, ranges longer than `split` query blocks cut up (None: never)."""
        key = ("columns", block_q, block_k, split)
        if key not in self.cache:
            self.cache[key] = block_columns(self, block_q, block_k, split)
        found: BlockColumns = self.cache[key]
        return found

    def dense_mask(self, window: int | None = None, chunk: int | None = None) -> Tensor:
        """bool [Tq, Tk]; True where the query sees the key. For tests and small packs."""
        query = torch.arange(self.q_offset, self.n_keys, device=self.device)[:, None]
        key = torch.arange(self.n_keys, device=self.device)[None]
        seen = (key <= query) & (query < self.end[None])
        low = self.low(window, chunk)
        return seen if low is None else seen & (self.key_depth[None] >= low[:, None])

    def check_integrity(self) -> None:
        """Raises ValueError, naming the first token, where end, depth, parent, q_offset and n_pairs disagree."""
        end, depth = self.end.cpu().numpy().astype(np.int64), self.depth.cpu().numpy()
        offset, n = self.q_offset, self.n_keys
        if offset != n - self.n_queries or len(self.parent) != self.n_queries:
            raise ValueError(f"{n} keys, {self.n_queries} queries, {len(self.parent)} parents, q_offset {offset}")
        links = np.concatenate([np.arange(-1, offset - 1), self.parent.cpu().numpy()])
        _check_parents(links)
        full_depth = np.concatenate([np.arange(offset), depth])
        expected = np.where(links >= 0, full_depth[links] + 1, 0)
        expected[:offset] = full_depth[:offset]
        _agree("depth", full_depth, expected)
        _agree("end", end, _subtree_ends(links))
        if self.n_pairs != int(depth.sum()) + len(depth):
            raise ValueError(f"n_pairs is {self.n_pairs}, but the depths say {int(depth.sum()) + len(depth)}")


def preorder(parent: Sequence[int] | npt.ArrayLike) -> IntArray:
    """int64 [N]; the order that puts a forest (each parent before its children) depth-first, siblings as they were.

    ``parent`` in the new order is ``rank[parent[order]]`` with ``rank[order] = arange(N)`` (and −1 kept).
    """
    up = np.asarray(parent, dtype=np.int64).reshape(-1)
    _check_parents(up)
    size = np.ones(len(up) + 1, dtype=np.int64)
    for child in range(len(up) - 1, -1, -1):
        size[up[child]] += size[child]  # index −1 collects the roots
    position = np.zeros(len(up), dtype=np.int64)
    free = np.zeros(len(up) + 1, dtype=np.int64)
    for child in range(len(up)):
        position[child] = free[up[child]]
        free[up[child]] += size[child]
        free[child] = position[child] + 1
    return np.argsort(position)


def _agree(name: str, found: IntArray, expected: IntArray) -> None:
    if (found != expected).any():
        at = int(np.argmax(found != expected))
        raise ValueError(f"{name}[{at}] is {int(found[at])}, but the parents say {int(expected[at])}")


def _check_parents(up: IntArray) -> None:
    wrong = (up >= np.arange(len(up))) | (up < -1)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(f"parent[{at}] is {int(up[at])}; a parent must be earlier than its child, or −1 for a root")


def _climb(up: IntArray, stop: npt.NDArray[np.bool_]) -> IntArray:
    """From each node, the nearest one on its path upwards (itself included) where `stop` holds; by pointer doubling."""
    jump = np.where(stop, np.arange(len(up)), up)
    while True:
        further = jump[jump]
        if np.array_equal(further, jump):
            return jump
        jump = further


def _depths(run_parent: IntArray, step: IntArray, starts: IntArray, lengths: IntArray) -> IntArray:
    """Token depths from runs of consecutive tokens; `step` is what a run's first token adds to its parent run's."""
    first = np.where(run_parent >= 0, step, 0)
    jump = run_parent.copy()
    while (jump >= 0).any():
        first = first + np.where(jump >= 0, first[jump], 0)
        jump = np.where(jump >= 0, jump[jump], -1)
    return np.repeat(first - starts, lengths) + np.arange(int(lengths.sum()))


def _subtree_ends(links: IntArray) -> IntArray:
    """Where each token's subtree stops: at the next sibling of the nearest node upwards that has one."""
    n = len(links)
    if n == 0:
        return links
    chain = np.zeros(n, dtype=bool)  # the token's only child is the next token: it ends where that one does
    children = np.bincount(links[links >= 0], minlength=n)
    chain[:-1] = (links[1:] == np.arange(n - 1)) & (children[:-1] == 1)
    nodes = np.flatnonzero(~chain)  # one per segment: its last token
    segment = np.cumsum(~chain) - (~chain)
    first = np.append(0, nodes[:-1] + 1)
    up_token = links[first]
    up = np.where(up_token >= 0, segment[up_token], -1)
    order = np.argsort(up, kind="stable")
    following = np.full(len(nodes), -1)
    same = up[order][1:] == up[order][:-1]
    following[order[:-1][same]] = first[order[1:][same]]
    top = _climb(up, (following >= 0) | (up < 0))
    end: IntArray = np.where(following[top] >= 0, following[top], n)[segment]
    return end
