"""What the commands say of their trees beside the table: draws that were cut, faults of worlds and policies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treewright.agent.cli.options import say
from treewright.search.types import NodeStatus

if TYPE_CHECKING:
    from treewright.search.meter import Meter
    from treewright.search.tree import Tree

__all__ = ["Notes", "brief", "tell_of_cost"]

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
            say(f"{told}; more: --set search.max_tokens={2 * tokens}")


class Faults:
    """Counts what worlds, rewards and policies failed with below the roots, and in how many trees."""

    def __init__(self) -> None:
        self.trees = 0
        self.steps: Counter[str] = Counter()  # by cause
        self.hit: Counter[str] = Counter()  # trees, by cause

    def add(self, tree: Tree) -> None:
        self.trees += 1
        causes = Counter(
            f"{tree.task.suite}: {brief(fault)}"
            for fault, status in zip(tree.fault[1:], tree.status[1:], strict=True)
            if fault is not None and status is NodeStatus.FAULT
        )
        self.steps.update(causes)
        self.hit.update(causes.keys())

    def tell(self) -> None:
        for cause, count in self.steps.most_common(MOST):
            steps = "1 step" if count == 1 else f"{count} steps"
            say(f"{steps} in {self.hit[cause]} of {self.trees} trees failed and are masked; {cause}")
        if len(self.steps) > MOST:
            say(f"and {len(self.steps) - MOST} other faults; treewright show TREE prints them where they are")


class Notes:
    """Both, over the trees of a run as they come."""

    def __init__(self, trees: Iterable[Tree] = ()) -> None:
        self.cuts, self.faults = Cuts(), Faults()
        for tree in trees:
            self.add(tree)

    def add(self, tree: Tree) -> None:
        self.cuts.add(tree)
        self.faults.add(tree)

    def tell(self) -> None:
        self.cuts.tell()
        self.faults.tell()


def brief(fault: str) -> str:
    """The first line of a fault: a browser's goes on with its whole log."""
    from treewright.agent.view.report import clean

    text = clean(fault)
    return next((line.strip()[:300] for line in text.splitlines() if line.strip()), text)


def tell_of_cost(cost: Meter, path: Path | None, **figures: Any) -> None:
    """The meter in a line; with a path also as JSON, beside `figures`."""
    say(cost.told())
    if path is not None:
        from treewright.agent.runs.figures import write_result

        write_result(path, {**figures, "meter": cost.as_dict()})
