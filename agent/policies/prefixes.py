"""Keys and values of recent prompts as a trie: what prompts have in common is computed and stored once."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import dataclass, field

from torch import Tensor

from treewright.kernels.decode import Path, Stretch

__all__ = ["PrefixCache"]


@dataclass(slots=True, eq=False)
class _Node:
    """A stretch of prompts. logits [V] after its last token, where somebody asked for them."""

    ids: tuple[int, ...]
    stretch: Stretch
    parent: _Node | None
    logits: Tensor | None = None
    children: dict[int, _Node] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return self.stretch.nbytes + (0 if self.logits is None else _nbytes(self.logits))


class PrefixCache:
    """Prompts with what was computed for them, least recently used out first, down to `limit` bytes at each `trim`.

    size  bytes of keys, values and logits held
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._children: dict[int, _Node] = {}
        self._nodes: OrderedDict[_Node, None] = OrderedDict()  # a node always stands behind all below it

    def longest(self, ids: tuple[int, ...]) -> tuple[list[Stretch], Tensor | None]:
        """The path of the longest held beginning of `ids`, and the logits after it where they are known."""
        nodes = self._walk(ids)
        return [node.stretch for node in nodes], nodes[-1].logits if nodes else None

    def put(self, ids: tuple[int, ...], stretch: Stretch, logits: Tensor | None) -> None:
        """Adds the last tokens of `ids`, computed behind what `longest` gave, and the logits after them if wanted."""
        nodes = self._walk(ids)
        length = sum(len(node.ids) for node in nodes)
        if length < len(ids):
            parent = nodes[-1] if nodes else None
            node = _Node(ids[length:], stretch, parent)
            (parent.children if parent else self._children)[ids[length]] = node
            self.size += node.nbytes
            self._nodes[node] = None
            nodes.append(node)
            self._touch(nodes)
        if logits is not None and nodes[-1].logits is None:
            nodes[-1].logits = logits
            self.size += _nbytes(logits)

    def path(self, ids: tuple[int, ...]) -> Path:
        """The stretches of a prompt that was put; equal beginnings give the same objects until the next `put`."""
        return [node.stretch for node in self._walk(ids)]

    def trim(self) -> None:
        """Drops what was unused longest until `limit` holds."""
        while self.size > self.limit:
            node, _ = self._nodes.popitem(last=False)
            del (node.parent.children if node.parent else self._children)[node.ids[0]]
            self.size -= node.nbytes

    def clear(self) -> None:
        """Holds nothing any more; it is free at once, though nodes name each other."""
        for node in self._nodes:
            node.parent = None
            node.children.clear()
        self._nodes.clear()
        self._children.clear()
        self.size = 0

    def _walk(self, ids: tuple[int, ...]) -> list[_Node]:
        """The nodes that spell the longest held beginning of `ids`; one that agrees only in part is split."""
        nodes: list[_Node] = []
        at, children = 0, self._children
        while at < len(ids) and (node := children.get(ids[at])) is not None:
            part = ids[at : at + len(node.ids)]
            if part != node.ids:
                pairs = enumerate(itertools.zip_longest(part, node.ids))
                node = self._split(node, next(i for i, (a, b) in pairs if a != b))
            nodes.append(node)
            at, children = at + len(node.ids), node.children
        self._touch(nodes)
        return nodes

    def _touch(self, nodes: list[_Node]) -> None:
        for node in reversed(nodes):
            self._nodes.move_to_end(node)

    def _split(self, node: _Node, at: int) -> _Node:
        """Cuts a node after `at` tokens; what was one becomes the lower part, and the upper part is returned."""
        first, rest = node.stretch.split(at)
        upper = _Node(node.ids[:at], first, node.parent, children={node.ids[at]: node})
        (node.parent.children if node.parent else self._children)[node.ids[0]] = upper
        node.ids, node.stretch, node.parent = node.ids[at:], rest, upper
        self._nodes[upper] = None
        return upper


def _nbytes(x: Tensor) -> int:
    return x.numel() * x.element_size()
