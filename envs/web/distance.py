"""How far two pages are apart: a tree edit distance that stops at a bound.

Selkow's distance (1977): nodes are relabelled, whole subtrees are inserted and deleted, each node for 1. It is never
below the distance of Zhang and Shasha (1989), where single inner nodes may be inserted, too; so a page that is taken
for the same by this one is so by that one. Equal subtrees are recognised by number and cost nothing to compare, and
what cannot stay within the bound is given up at once: two pages of 2,000 nodes that differ a little take milliseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

__all__ = ["distance"]

_TABLE = 900  # cells of one table of two rows of children; longer rows are first cut where they agree
_DEEP = 400  # levels that are compared; what is below counts as a whole


@dataclass(slots=True)
class _Tree:
    """Columns of a tree in reading order: children, the number of nodes below and with each, a hash of what is
    there."""

    labels: Sequence[Hashable]
    children: list[list[int]]
    sizes: list[int]
    names: list[int]


def distance(a: Sequence[tuple[int, Hashable]], b: Sequence[tuple[int, Hashable]], bound: int | None = None) -> int:
    """The number of nodes to change, insert or delete that makes one page of the other.

    a, b   (depth, label) in reading order; depths may jump down by any number, up by one
    bound  distances above it are all answered as bound + 1; None for no bound
    """
    limit = len(a) + len(b) if bound is None else bound
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    left, right = Counter([label for _, label in a]), Counter([label for _, label in b])
    extra = sum(n - right.get(label, 0) for label, n in left.items() if n > right.get(label, 0))
    if max(extra, extra + len(b) - len(a)) > limit:  # each change mends one of either
        return limit + 1
    found = _Measure(_tree(a), _tree(b), limit).measured()
    return min(found, limit + 1)


def _tree(rows: Sequence[tuple[int, Hashable]]) -> _Tree:
    count = len(rows)
    labels: list[Hashable] = [None, *(label for _, label in rows)]
    children: list[list[int]] = [[] for _ in range(count + 1)]
    open_nodes, depths = [0], [-1]  # 0 is a root for all
    for index, (depth, _) in enumerate(rows, 1):
        while depths[-1] >= depth:
            depths.pop()
            open_nodes.pop()
        children[open_nodes[-1]].append(index)
        open_nodes.append(index)
        depths.append(depth)
    sizes, names = [1] * (count + 1), [0] * (count + 1)
    for index in range(count, -1, -1):
        below = children[index]
        if below:
            sizes[index] += sum([sizes[child] for child in below])
            names[index] = hash((labels[index], *[names[child] for child in below]))
        else:
            names[index] = hash((labels[index],))
    return _Tree(labels, children, sizes, names)


class _Measure:
    def __init__(self, a: _Tree, b: _Tree, limit: int) -> None:
        self.a, self.b, self.limit = a, b, limit
        self.seen: dict[tuple[int, int], int] = {}

    def measured(self) -> int:
        return self.pair(0, 0, 0)

    def pair(self, i: int, j: int, level: int) -> int:
        """Between two subtrees."""
        a, b = self.a, self.b
        if a.names[i] == b.names[j]:
            return 0
        known = self.seen.get((i, j))
        if known is None:
            changed = a.labels[i] != b.labels[j]
            whole = a.sizes[i] + b.sizes[j] - 2  # everything below taken out and put in
            below = self.rows(a.children[i], b.children[j], level + 1) if level < _DEEP else whole
            known = self.seen[i, j] = changed + min(below, whole)
        return known

    def rows(self, left: Sequence[int], right: Sequence[int], level: int) -> int:
        """Between the children of two nodes."""
        a, b = self.a.names, self.b.names
        start, end = 0, 0
        while start < min(len(left), len(right)) and a[left[start]] == b[right[start]]:
            start += 1
        while end < min(len(left), len(right)) - start and a[left[-1 - end]] == b[right[-1 - end]]:
            end += 1
        left, right = left[start : len(left) - end], right[start : len(right) - end]
        if len(left) * len(right) <= _TABLE:
            return self.table(left, right, level)
        cost, at, to = 0, 0, 0
        matcher = SequenceMatcher(None, [a[i] for i in left], [b[j] for j in right], autojunk=False)
        for i, j, size in matcher.get_matching_blocks():
            cost += self.gap(left[at:i], right[to:j], level)
            if cost > self.limit:
                return cost
            at, to = i + size, j + size
        return cost

    def gap(self, left: Sequence[int], right: Sequence[int], level: int) -> int:
        """Between rows that agree nowhere; one by one where they are too long for a table."""
        if len(left) * len(right) <= _TABLE:
            return self.table(left, right, level)
        short = min(len(left), len(right))
        rest = self.weight(left[short:], self.a) + self.weight(right[short:], self.b)
        cost = rest
        for i, j in zip(left, right, strict=False):
            cost += min(self.pair(i, j, level), self.a.sizes[i] + self.b.sizes[j])
            if cost > self.limit:
                break
        return cost

    def table(self, left: Sequence[int], right: Sequence[int], level: int) -> int:
        """The cheapest way to line up two rows of children."""
        sizes_a, sizes_b = self.a.sizes, self.b.sizes
        if not left or not right:
            return self.weight(left, self.a) + self.weight(right, self.b)
        row = [0]
        for j in right:
            row.append(row[-1] + sizes_b[j])
        for i in left:
            new = [row[0] + sizes_a[i]]
            for k, j in enumerate(right):
                best = min(row[k + 1] + sizes_a[i], new[k] + sizes_b[j])
                apart = abs(sizes_a[i] - sizes_b[j])
                if row[k] + apart < best and row[k] + apart <= self.limit:
                    best = min(best, row[k] + self.pair(i, j, level))
                new.append(best)
            row = new
            if min(row) > self.limit:
                return self.limit + 1
        return row[-1]

    def weight(self, row: Sequence[int], tree: _Tree) -> int:
        return sum(tree.sizes[i] for i in row)
