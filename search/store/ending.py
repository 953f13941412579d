"""How a tree ended: what is kept of it beside its expansions."""

from __future__ import annotations

import json
import math
import time
from typing import Any

from treewright.search.schema import LATE
from treewright.search.store.codec import Encoder
from treewright.search.store.models import SPENT_COLUMNS
from treewright.search.store.values import unescape
from treewright.search.tree import Tree
from treewright.search.types import NodeStatus

__all__ = ["end_values", "restore_end", "result_of"]

GROWN = frozenset(
    {NodeStatus.DRAFT, NodeStatus.OPEN, NodeStatus.EXPANDED, NodeStatus.TERMINAL, NodeStatus.TRUNCATED}
)  # statuses that `apply` alone gives
SET = tuple(f for f in LATE if f.tree != "status")
SOLVED = 1.0 - 1e-6


def result_of(tree: Tree) -> tuple[float | None, bool | None]:
    """(outcome, success) of what search chose; None where that is not known.

    A tree that chose nothing has no outcome and no success; whether one that faults kept from ending, or whose chosen
    end has a reward that nobody knows, would have had any is not known. Raises TreewrightError while sealed.
    """
    if tree.chosen is None:
        return None, None if tree.lost else False
    outcome = tree.outcome_of(tree.chosen)
    return (None, None) if math.isnan(outcome) else (outcome, outcome >= SOLVED)


def end_values(tree: Tree, encoder: Encoder) -> dict[str, Any]:
    """The end columns of a tree."""
    outcome, success = result_of(tree)
    given = [getattr(tree, f.tree) for f in LATE]
    moved = {i for i, status in enumerate(tree.status) if status not in GROWN}
    for f in SET:
        column = getattr(tree, f.tree)
        if column.count(f.default) < len(column):
            moved.update(i for i, value in enumerate(column) if value != f.default)
    late = [(i, *(column[i] for column in given)) for i in sorted(moved)]
    spent = zip(SPENT_COLUMNS, encoder.spent(tree.spent), strict=True)
    return {
        "status": "done",
        "ended": time.time(),
        "chosen": tree.chosen,
        "stopped_by": encoder.maybe(tree.stopped_by),
        "reasons": encoder.text(json.dumps(tree.reasons, ensure_ascii=False)),
        "final": json.dumps(late),
        "outcome": outcome,
        "success": success,
        "count": len(tree),
        **{f"spent_{name}": value for name, value in spent},
    }


def restore_end(tree: Tree, end: Any) -> None:
    """Gives a tree that grew again what its end columns say, and unseals it."""
    for node, *values in json.loads(end.final):
        for f, value in zip(LATE, values, strict=False):  # an older store knew fewer
            getattr(tree, f.tree)[node] = f.type(value)
    tree.chosen = end.chosen
    tree.stopped_by = None if end.stopped_by is None else unescape(end.stopped_by)
    tree.reasons = json.loads(unescape(end.reasons))
    tree.reveal()
