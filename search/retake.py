"""Which steps of a growing tree must be taken again, and when: the engine's part of repair.

A replay that arrives at another state than recorded, or an event that the world announces, invalidates the step into
one node. That step is taken again from its parent before anything else is popped: a new node in the same slot, which
supersedes the old one; what hung on the old one becomes UNREACHABLE, the rest of the frontier stays as it is. Below the
new node the old drafts are taken up again without asking the policy wherever the prompt is the same as then.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from treewright.search.tree import Tree
from treewright.search.types import Expansion, NodeStatus

__all__ = ["Repairs", "diverged_at", "is_repair"]

_DIVERGED = re.compile(r"Divergence: replay diverged at step (\d+):")


def diverged_at(fault: str | None) -> int | None:
    """Depth of the node at which a replay found another state, from a recorded fault; None for other trouble."""
    found = _DIVERGED.match(fault or "")
    return int(found[1]) if found else None


def is_repair(tree: Tree, expansion: Expansion) -> bool:
    """The pop took a step again: one child, no draws, at a node that had drawn its children before."""
    drew = expansion.drawn or expansion.closing or len(expansion.drafts) != 1
    return not drew and expansion.outcome is None and tree.drawn[expansion.node] > 0


@dataclass(slots=True)
class Repairs:
    """limit   how often one step may be taken again;  changes  nodes whose steps the world changed, asked per pop
    of_pop  pops under way that repair: sequence number → the child whose step is taken again."""

    limit: int
    changes: Callable[[Tree], Iterable[int]] | None = None
    of_pop: dict[int, int] = field(default_factory=dict)
    _waiting: deque[int] = field(default_factory=deque)
    _known: set[int] = field(default_factory=set)

    def look(self, tree: Tree, expansion: Expansion, new: range) -> None:
        """Notes what one applied pop has shown to be broken, and what the world says has changed."""
        fault = tree.fault
        for node in (expansion.node, *new):
            if fault[node] is None:
                continue
            depth = diverged_at(fault[node])
            path = [i for i in tree.path(expansion.node) if not tree.in_turn(i)] if depth else []
            if depth is not None and 0 < depth < len(path):
                self.add(tree, path[depth])
        if self.changes is not None:
            for node in self.changes(tree):
                self.add(tree, node)

    def add(self, tree: Tree, node: int) -> None:
        """The step into `node` is to be taken again, unless it is already or was too often. The root has no step."""
        if node <= 0 or node in self._known or tree.action[node] is None or tree.observation[node] is None:
            return
        twins = [c for c in tree.children[tree.parent[node]] if tree.slot[c] == tree.slot[node]]
        if tree.status[node] is not NodeStatus.UNREACHABLE and len(twins) <= self.limit:
            self._known.add(node)
            self._waiting.append(node)

    def next(self, tree: Tree, seq: int, stored: Expansion | None) -> int | None:
        """The node whose step pop `seq` takes again, or None; for a stored pop, what it did then."""
        if stored is not None:
            if not is_repair(tree, stored):
                return None
            slot = stored.drafts[0].slot
            broken = max(c for c in tree.children[stored.node] if tree.slot[c] == slot)
            self._known.add(broken)
            if broken in self._waiting:
                self._waiting.remove(broken)
            return broken
        while self._waiting:
            node = self._waiting.popleft()
            if tree.status[node] is not NodeStatus.UNREACHABLE:  # a step above it was taken again meanwhile
                self.of_pop[seq] = node
                return node
        return None
