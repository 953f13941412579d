"""A memory of plans that worked, which grows from task to task; what the rule `astar` is guided by.

A plan is a path that earned its reward on a *training* task, with what is particular to the task taken out: a step is
the tool and, for each argument, where its value came from, such as `send_mail to=find_contact topic=goal`. A memory is
immutable: learning gives a new one, so a search depends on the memory it was begun with and on nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.envs.lines import json_value
from treewright.envs.types import Action, Task, digest
from treewright.envs.whole import write_whole
from treewright.search.tree import Tree
from treewright.search.types import Exchange

__all__ = ["Plan", "PlanMemory", "alike", "goal_likeness", "goal_marks", "plan_of", "step_of", "words_of"]

SOLVED = 1.0 - 1e-6
_WORD = re.compile(r"[^\s,;:()\[\]{}\"'<>|]+")


@lru_cache(maxsize=65_536)
def words_of(text: str) -> tuple[str, ...]:
    """The distinct words of a text in their order, without the punctuation around them."""
    return tuple(dict.fromkeys(word.strip(".?!") for word in _WORD.findall(text) if word.strip(".?!")))


@lru_cache(maxsize=65_536)
def _word_set(text: str) -> frozenset[str]:
    return frozenset(words_of(text))


@lru_cache(maxsize=65_536)
def goal_marks(goal: str) -> frozenset[str]:
    """Words and pairs of neighbouring words of a goal, words with digits replaced by '#'."""
    words = ["#" if any(c.isdigit() for c in word) else word.casefold() for word in goal.split()]
    return frozenset([*words, *map(" ".join, pairwise(words))])


def step_of(task: Task, before: Sequence[Exchange], action: Action) -> str:
    """The step that an action is after the turns `before`: tools and origins of their arguments, sorted by name.

    The origin of a value is `goal`, the tool whose answer showed it first, or `new`.
    """
    return " + ".join(
        " ".join([call.name, *(f"{k}={_origin(task, before, v)}" for k, v in sorted(call.arguments.items()))])
        for call in action.calls
    )


def _origin(task: Task, before: Sequence[Exchange], value: Any) -> str:
    said = value if isinstance(value, str) else json.dumps(value)
    if _shows(task.goal, said):
        return "goal"
    for turn in before:
        if turn.action is not None and _shows(turn.observation.text, said):
            return turn.action.name
    return "new"


def _shows(text: str, said: str) -> bool:
    return said in _word_set(text) or (" " in said and said in text)


def alike(one: str, other: str) -> float:
    """1 for equal steps, 0.5 for the same tools with arguments from elsewhere, else 0."""
    if one == other:
        return 1.0
    return 0.5 if one.partition(" ")[0] == other.partition(" ")[0] else 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of one solved task and what its goal looked like."""

    suite: str
    goal: str
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlanMemory:
    """Plans in the order they were learned, each only once."""

    plans: tuple[Plan, ...] = ()

    def __len__(self) -> int:
        return len(self.plans)

    @property
    def digest(self) -> str:
        """Names the content; part of the name of a rule that uses the memory."""
        return digest(*(json.dumps([p.suite, p.goal, p.steps]) for p in self.plans))[:12]

    def learn(self, trees: Iterable[Tree]) -> PlanMemory:
        """With the shortest path of full reward of every tree of a training task; other trees teach nothing.

        Raises TreewrightError for a tree whose rewards are still sealed.
        """
        found = []
        for tree in trees:
            if tree.task.split != "train":
                continue
            solved = [i for i in tree.leaves() if tree.outcome_of(i) >= SOLVED]
            if solved:
                best = min(solved, key=lambda i: (tree.depth[i], i))
                found.append(plan_of(tree.task, tree.exchanges(best)))
        return self.with_plans(found)

    def with_plans(self, plans: Iterable[Plan]) -> PlanMemory:
        """With these plans at the end, those that are known left out."""
        return PlanMemory(tuple(dict.fromkeys((*self.plans, *plans))))

    def near(self, task: Task, count: int) -> tuple[Plan, ...]:
        """The `count` plans of the task's suite whose goals share most words with its own, no two with equal steps;
        all of them for 0. Ties in the order they were learned."""
        here = [plan for plan in self.plans if plan.suite == task.suite]
        ranked = sorted(here, key=lambda plan: -goal_likeness(task.goal, plan.goal))
        first: dict[tuple[str, ...], Plan] = {}
        for plan in ranked:
            first.setdefault(plan.steps, plan)
            if count and len(first) == count:
                break
        return tuple(first.values())

    def likeness(self, task: Task) -> float:
        """How much the goal of the task is like the most similar one of its suite, in [0, 1]; 0 without any."""
        return max((goal_likeness(task.goal, p.goal) for p in self.plans if p.suite == task.suite), default=0.0)

    def save(self, path: str | Path) -> None:
        """One plan per line of JSON."""
        lines = [json.dumps({"suite": p.suite, "goal": p.goal, "steps": p.steps}) for p in self.plans]
        write_whole(path, "".join(f"{line}\n" for line in lines))

    @classmethod
    def load(cls, path: str | Path) -> PlanMemory:
        """What `save` wrote. Raises TreewrightError with the line that cannot be read."""
        try:
            lines = Path(path).read_bytes().splitlines()
        except OSError as error:
            raise TreewrightError(
                f"no plan memory at {path}: {error.strerror}; make one with: treewright plans {path} --name RUN"
            ) from error
        plans = []
        for number, line in enumerate(lines, 1):
            try:
                row = json_value(line)
                plans.append(Plan(str(row["suite"]), str(row["goal"]), tuple(map(str, row["steps"]))))
            except (ValueError, KeyError, TypeError) as error:
                raise TreewrightError(
                    f"{path}, line {number} is not a plan: {error}; delete it, or make the file anew: "
                    f"treewright plans {path} --name RUN"
                ) from error
        return cls(tuple(plans))


def plan_of(task: Task, turns: Sequence[Exchange]) -> Plan:
    """The plan of an episode: its valid actions, as steps."""
    steps = [step_of(task, turns[:i], turn.action) for i, turn in enumerate(turns) if turn.action is not None]
    return Plan(task.suite, task.goal, tuple(steps))


def goal_likeness(one: str, other: str) -> float:
    """Jaccard's index of the marks of two goals."""
    a, b = goal_marks(one), goal_marks(other)
    return len(a & b) / max(len(a | b), 1)
