"""A trie of token ids that grows by whole stretches: what rows share is found by comparing arrays, not one by one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["TokenTrie"]

Positions = NDArray[np.int64]


class TokenTrie:
    """Equal continuations of the same token are stored once. A position is the index of a token in order of coming.

    What one `extend` adds lies at consecutive positions: a run. A token is followed by the next of its run, and by the
    first tokens of the runs that branch off after it.
    """

    def __init__(self) -> None:
        self._ids, self._parent, self._stop = (np.zeros(256, np.int64) for _ in range(3))
        self._size = 0
        self._starts: list[int] = []
        self._branches: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return self._size

    @property
    def ids(self) -> NDArray[np.int64]:
        """[T] token ids by position."""
        return self._ids[: self._size]

    @property
    def parent(self) -> Positions:
        """[T] position of the token before each one, −1 for a first token."""
        return self._parent[: self._size]

    def extend(self, path: Sequence[int] | Positions, tokens: Iterable[int] | NDArray[np.int64]) -> Positions:
        """Positions of `tokens` after the last of `path` (positions; empty = a new root)."""
        at = int(path[-1]) if len(path) else -1
        new = np.asarray(tokens if isinstance(tokens, (np.ndarray, tuple, list)) else list(tokens), np.int64)
        out: list[Positions] = []
        done = 0
        while done < len(new):
            stop = min(int(self._stop[at]), at + 1 + len(new) - done) if at >= 0 else 0
            if stop > at + 1 and self._ids[at + 1] == new[done]:
                differ = self._ids[at + 1 : stop] != new[done : done + stop - at - 1]
                same = int(differ.argmax()) if differ.any() else len(differ)
                first = at + 1
            else:
                found = self._branches.get((at, int(new[done])))
                if found is None:
                    out.append(self._grow(at, new[done:]))
                    break
                first, same = found, 1
            out.append(np.arange(first, first + same))
            at, done = first + same - 1, done + same
        return np.concatenate(out) if out else np.zeros(0, np.int64)

    def _grow(self, after: int, tokens: NDArray[np.int64]) -> Positions:
        start, stop = self._size, self._size + len(tokens)
        if stop > len(self._ids):
            room = max(stop, 2 * len(self._ids)) - len(self._ids)
            self._ids, self._parent, self._stop = (
                np.concatenate([x, np.zeros(room, np.int64)]) for x in (self._ids, self._parent, self._stop)
            )
        where = np.arange(start, stop)
        self._ids[start:stop], self._parent[start:stop], self._stop[start:stop] = tokens, where - 1, stop
        self._parent[start] = after
        self._branches[after, int(tokens[0])] = start
        self._starts.append(start)
        self._size = stop
        return where

    def preorder(self) -> Positions:
        """[T] positions in depth-first order, continuations in the order they came."""
        inner = {at + 1 for at, _ in self._branches if at >= 0 and at + 1 < self._stop[at]}
        starts = sorted(inner | set(self._starts))
        stops = [*starts[1:], self._size]
        children: dict[int, list[int]] = {}
        for segment, start in enumerate(starts):
            children.setdefault(int(self._parent[start]), []).append(segment)
        order, stack = [], children.get(-1, [])[::-1]
        while stack:
            segment = stack.pop()
            order.append(np.arange(starts[segment], stops[segment]))
            stack.extend(reversed(children.get(stops[segment] - 1, [])))
        return np.concatenate(order) if order else np.zeros(0, np.int64)
