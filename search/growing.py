"""What a pop does to nodes that were there before it: the state machine behind `Tree.apply` and the store's arrays."""

from __future__ import annotations

from collections.abc import Sequence

from treewright.search.types import NodeStatus

__all__ = ["Growing"]

DRAFT, EXPANDED, FAULT, LOST = NodeStatus.DRAFT, NodeStatus.EXPANDED, NodeStatus.FAULT, NodeStatus.UNREACHABLE


class Growing:
    """Columns indexed by node id that pops change; the new nodes of a pop stand in them already, as they were born.

    Statuses are NodeStatus members or their texts. `_slots` and `_below` (each node's children, oldest first) are asked
    for only where draws come to a node that has drawn before, so a store need not read them for most trees.
    """

    parent: list[int]
    mult: list[int]
    share: list[float]
    drawn: list[int]
    status: list[NodeStatus]

    def _slots(self) -> Sequence[int]:
        raise NotImplementedError

    def _below(self) -> Sequence[Sequence[int]]:
        raise NotImplementedError

    def _superseded(self, node: int) -> None:
        """Told of a node whose step was taken again; it and all below it are UNREACHABLE now."""

    def _pooled(self, node: int) -> None:
        """Told of a node that drew once more; all its draws share its mass alike now."""

    def _pop(
        self, node: int, closing: bool, draws: int, first: int, drafts: int, seen: NodeStatus | None, fault: bool
    ) -> None:
        """One pop: `node` popped, `draws` made, `drafts` nodes from id `first` on.

        seen   status that executing the popped draft gave, None if it was not executed;  fault  the policy failed
        """
        status, drawn = self.status, self.drawn
        lost = status[node] == LOST
        if seen is not None and seen != DRAFT:
            status[node] = seen
        before = drawn[node]
        if closing or before:
            self._hang(first, first + drafts, closing)
        if draws:
            drawn[node], status[node] = before + draws, EXPANDED
            if before:
                self._pool(node, first + drafts)
        if fault:
            status[first + drafts - 1 if drafts else node] = FAULT
        if lost:  # the step into `node` or above it was taken again while this pop was under way
            self._lose(node, first + drafts)

    def _hang(self, first: int, end: int, closing: bool) -> None:
        """New nodes of a closing chain, or of a node that has drawn before: there one may take an older one's slot."""
        for new in range(first, end):
            above = self.parent[new]
            if self.drawn[above]:
                slots = self._slots()
                for older in self._below()[above]:
                    if older < new and slots[older] == slots[new]:
                        self._lose(older, new)
            elif closing:
                self.drawn[above], self.status[above] = 1, EXPANDED

    def _pool(self, node: int, end: int) -> None:
        """All draws of `node` share its mass alike, though some were made after others had been looked at."""
        for child in self._below()[node]:
            if child < end:
                self.share[child] = self.mult[child] / self.drawn[node]
        self._pooled(node)

    def _lose(self, node: int, end: int) -> None:
        """Everything from `node` down, as far as it was there before `end`, hangs on a step that leads elsewhere."""
        children, waiting = self._below(), [node]
        while waiting:
            at = waiting.pop()
            self.status[at] = LOST
            waiting += [child for child in children[at] if child < end]
        self._superseded(node)
