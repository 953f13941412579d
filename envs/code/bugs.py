"""A programmer who errs: the reference solution with one small mistake, by chance. For tests and benchmarks of search.

A mistake is what people make: a comparison off by its edge, a constant off by one, plus for minus, `and` for `or`, a
forgotten special case.
"""

from __future__ import annotations

import ast
import copy
import json
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from treewright.envs.code.world import PROBLEMS, share_passed
from treewright.envs.types import Task

__all__ = ["Programmer", "bugs"]

_SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.And: ast.Or, ast.Or: ast.And, ast.FloorDiv: ast.Mult,
}  # fmt: skip


@lru_cache(maxsize=256)
def bugs(source: str) -> tuple[str, ...]:
    """All programs that differ from `source` by one small mistake, in a fixed order."""
    tree = ast.parse(source)
    found: dict[str, None] = {}
    for i in range(sum(1 for _ in ast.walk(tree))):
        changed = copy.deepcopy(tree)
        for text in _changes(changed, list(ast.walk(changed))[i]):
            found.setdefault(text)
    found.pop(ast.unparse(tree), None)
    return tuple(found)


def _changes(tree: ast.AST, node: ast.AST) -> Iterator[str]:
    """The program after each mistake that can be made at this node, which is changed back afterwards."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPS:
        node.ops[0] = _SWAPS[type(node.ops[0])]()
        yield ast.unparse(tree)
    elif isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in _SWAPS:
        node.op = _SWAPS[type(node.op)]()
        yield ast.unparse(tree)
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        node.value += 1
        yield ast.unparse(tree)
        node.value -= 2
        yield ast.unparse(tree)
    elif isinstance(node, ast.FunctionDef | ast.For | ast.While) and len(node.body) > 1:
        for i, line in enumerate(node.body):
            if isinstance(line, ast.If) and not line.orelse:
                kept, node.body = node.body, node.body[:i] + node.body[i + 1 :]
                yield ast.unparse(tree)
                node.body = kept


class Programmer:
    """A script for a scripted policy: writes, reads the tests, repairs, submits.

    skill   chance that a first draft is right;  repair  chance that a repair is
    Mistakes are drawn from `bugs`. It submits once the public tests pass, or at the last turn of the task.
    """

    def __init__(self, skill: float = 0.3, repair: float = 0.3) -> None:
        self.skill, self.repair = skill, repair
        self._sources = {problem.name: problem.source for problem in PROBLEMS}

    def __call__(self, task: Task, turns: Sequence[Any], tools: Sequence[Any], rng: random.Random) -> str:
        shares = [s for turn in turns if (s := share_passed(turn.observation.text)) is not None]
        if shares and (shares[-1] == 1.0 or len(turns) >= task.horizon - 1):
            return "submit {}"
        source = self._sources[task.data["problem"]]
        right = rng.random() < (self.repair if shares else self.skill)
        wrong = bugs(source) or (f"def {task.data['problem']}(*arguments):\n    return None",)
        return f"write {json.dumps({'code': source if right else rng.choice(wrong)})}"
