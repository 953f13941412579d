"""Worked examples: whole solved tasks that stand in front of every task of a suite, as turns of the same conversation.

A model that was never trained on a suite sees in them how an action is written and what follows. They are the same for
all tasks of a suite, so that what a sampler computes for them is computed once.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.envs.lines import json_value
from treewright.envs.whole import write_whole

__all__ = ["Worked", "WorkedStep", "chosen", "load_worked", "save_worked"]


@dataclass(frozen=True, slots=True)
class WorkedStep:
    """An action as the project writes it, `name {"argument": "value"}`, and what it showed."""

    action: str
    observation: str


@dataclass(frozen=True, slots=True)
class Worked:
    """A solved task: its suite, its goal, what was seen first, and the steps to its end."""

    suite: str
    goal: str
    first: str
    steps: tuple[WorkedStep, ...]


def chosen(examples: Sequence[Worked], goals: Iterable[str], count: int) -> list[Worked]:
    """`count` examples of which the goals have one that is as near as can be: each next one is that which brings the
    nearest example of all goals nearer the most (greedy facility location). Nearness is that of the goals' words, and a
    goal is not helped by an example of the very same one; of equally good ones the shorter."""
    todo, picked = sorted(set(goals)), list[Worked]()
    near = [0.0] * len(todo)
    left = sorted(examples, key=lambda one: (len(one.steps), one.goal))
    while left and len(picked) < count:
        gains = [
            sum(max(0.0, _near(one.goal, goal) - before) for goal, before in zip(todo, near, strict=True))
            for one in left
        ]
        best = left.pop(max(range(len(left)), key=gains.__getitem__))
        picked.append(best)
        near = [max(before, _near(best.goal, goal)) for goal, before in zip(todo, near, strict=True)]
    return picked


def _near(one: str, other: str) -> float:
    if one == other:
        return 0.0
    return difflib.SequenceMatcher(None, one.split(), other.split(), autojunk=False).ratio()


def save_worked(file: Path, examples: Iterable[Worked]) -> None:
    """Writes the examples as a JSON list."""
    write_whole(file, json.dumps([asdict(one) for one in examples], indent=1, ensure_ascii=False) + "\n")


def _example(row: Any) -> Worked:
    """Raises ValueError, KeyError or TypeError for what is no example."""
    steps = tuple(WorkedStep(**step) for step in row["steps"])
    made = Worked(row["suite"], row["goal"], row["first"], steps)
    texts = [made.suite, made.goal, made.first, *(text for s in steps for text in (s.action, s.observation))]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("suite, goal, first, action and observation are texts")
    return made


def load_worked(file: str | Path) -> Mapping[str, tuple[Worked, ...]]:
    """The examples of a file by suite. Raises TreewrightError for one that cannot be read, with what makes one."""
    try:
        rows = json_value(Path(file).expanduser().read_bytes())
        found = [_example(row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TreewrightError(
            f"no worked examples in {file} ({type(error).__name__}: {error}); type: treewright model examples --suites "
            "NAME,NAME --out FILE"
        ) from error
    return {suite: tuple(one for one in found if one.suite == suite) for suite in dict.fromkeys(w.suite for w in found)}
