"""Trees of agent behaviour: grown, restored, kept. `await treewright.search(task, env, policy)` grows one.

The package is callable, so that the front door has the name one expects; its modules import as usual.
"""

from __future__ import annotations

import functools
import sys
import warnings
from types import ModuleType
from typing import Any

from treewright.search.engine import Settings
from treewright.search.engine import search as _grow
from treewright.search.restore import Pool
from treewright.search.rules import RULES, Rule, best_first, rule
from treewright.search.rules.plan_memory import PlanMemory
from treewright.search.tree import Node, Tree
from treewright.search.types import Budget, Completion, Evaluator, NodeStatus, Proposer, Score, Spent

__all__ = [
    "RULES",
    "Budget",
    "Completion",
    "Evaluator",
    "Node",
    "NodeStatus",
    "PlanMemory",
    "Pool",
    "Proposer",
    "Rule",
    "Score",
    "Settings",
    "Spent",
    "Tree",
    "best_first",
    "rule",
    "search",
]


@functools.wraps(_grow)
async def search(*args: Any, **kwargs: Any) -> Tree:
    tree = await _grow(*args, **kwargs)
    if tree.fault[0] is not None:  # said at once: a tree of a root alone looks like a task that nobody could solve
        task = tree.task
        warnings.warn(
            f"{task.suite}/{task.id}: the search never began ({tree.fault[0]}); the tree holds its root alone",
            RuntimeWarning, stacklevel=2,
        )  # fmt: skip
    return tree


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return search(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
