"""What the commands say of their trees beside the table: draws that were cut, faults of worlds and policies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from treewright.agent.cli.options import console
from treewright.search.types import NodeStatus

if TYPE_CHECKING:
    from treewright.search.tree import Tree

__all__ = ["Cuts", "brief", "tell_of_cuts", "tell_of_node_faults"]

MOST = 5  # causes that are told one by one


class Cuts:
    """Counts the draws that reached the most tokens of a draw before they ended."""

    def __init__(self) -> None:
        self.draws = 0
        self.cut: Counter[int] = Counter()  # by the number of tokens

    def add(self, tree: Tree) -> None:
        for node in range(1, len(tree)):
            self.draws += tree.mult[node]
            if tree.finish[node] == "length":
                self.cut[int(tree.header.settings["max_tokens"])] += tree.mult[node]

    def tell(self) -> None:
        for tokens, count in sorted(self.cut.items()):
            told = f"{count} of {self.draws} draws were cut at {tokens} tokens, before their action ended"
            _say(f"{told}; more: --set search.max_tokens={2 * tokens}")


def tell_of_cuts(trees: Iterable[Tree]) -> None:
    cuts = Cuts()
    for tree in trees:
        cuts.add(tree)
    cuts.tell()


def tell_of_node_faults(trees: Sequence[Tree]) -> None:
    """What worlds, rewards and policies failed with below the roots, how often and in how many trees."""
    where: dict[str, set[str]] = {}
    count: Counter[str] = Counter()
    for tree in trees:
        for node in range(1, len(tree)):
            fault = tree.fault[node]
            if fault is not None and tree.status[node] is NodeStatus.FAULT:
                cause = f"{tree.task.suite}: {brief(fault)}"
                where.setdefault(cause, set()).add(tree.tree_id)
                count[cause] += 1
    for cause, nodes in count.most_common(MOST):
        steps = "1 step" if nodes == 1 else f"{nodes} steps"
        _say(f"{steps} in {len(where[cause])} of {len(trees)} trees failed and are masked; {cause}")
    if len(count) > MOST:
        _say(f"and {len(count) - MOST} other faults; treewright show TREE prints them where they are")


def brief(fault: str) -> str:
    """The first line of a fault: a browser's goes on with its whole log."""
    from treewright.agent.view.report import clean

    text = clean(fault)
    return next((line.strip()[:300] for line in text.splitlines() if line.strip()), text)


def _say(told: str) -> None:
    console.print(told, markup=False, highlight=False, soft_wrap=True)
