"""Best-first search over goals that fall into parts: ALL-nodes beside choices.

    result = await solve("start ada, then boss, then rival. who is it ?", solver)

A goal is a choice among options: a direct `Answer` with a confidence, or `Parts`, an ALL-node whose goals are all
needed. A later part may name an earlier one's answer as #1, #2, …, as in ProbTree (2311.13982), and is asked once that
answer is there. Combine rules of an ALL-node:

- all     every part must be right: the product of the confidences, the last part's answer
- max     the most confident part answers, as ProbTree chooses between closed book, open book and sub-questions
- mean    every part must be right, and the last one answers; the geometric mean of the confidences and of that in the
          decomposition, as ProbTree weighs an answer from sub-questions
- reduce  a function of all answers, as in map-reduce

Open goals are taken to be certain (or what `estimate` says), so the search always works on the part that the most
promising whole plan needs next, and stops when no other plan can be more confident: AO* on an AND/OR tree (Nilsson,
Principles of Artificial Intelligence, 1980), with products for sums. That plan is the most confident one if no estimate
is too low and combine functions never gain from a less confident part.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, Task, seed_of
from treewright.search.planning.drawn import hang
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import Expansion, NodeKind, NodeStatus, Outcome

__all__ = ["Answer", "Option", "Parts", "Solution", "Solver", "as_tree", "majority", "solve"]

REFERENCE = re.compile(r"#(\d+)")
RULES = ("all", "max", "mean", "reduce")
TURN = 0.005  # seconds after which other tasks get their turn


@dataclass(frozen=True, slots=True)
class Answer:
    """What a goal was answered with and the probability that it is right, by the solver's own estimate."""

    text: str
    confidence: float = 1.0


@dataclass(frozen=True, slots=True)
class Parts:
    """Goals that are all needed, and how their answers make one; `reduce` is needed by the rule of that name.

    confidence  that these are the right parts, for the rule 'mean'
    """

    goals: tuple[str, ...]
    combine: str = "all"
    reduce: Callable[[Sequence[Answer]], Answer] | None = None
    confidence: float = 1.0

    def __post_init__(self) -> None:
        if self.combine not in RULES or not self.goals:
            raise TreewrightError(f"parts need goals and one of {', '.join(RULES)}, not {self.combine!r}")
        if (self.combine == "reduce") != (self.reduce is not None):
            raise TreewrightError("the rule 'reduce' needs a function of the answers, the other rules take none")
        for i, goal in enumerate(self.goals):
            if any(not 1 <= int(number) <= i for number in REFERENCE.findall(goal)):
                raise TreewrightError(f"part {i + 1}, {goal!r}, may only name the answers of parts before it")


Option = Answer | Parts
Solver = Callable[[str], Awaitable[Sequence[Option]]]
"""The options of a goal: ways to answer it, in order of preference among equally promising ones."""


@dataclass(slots=True, eq=False)
class _Goal:
    text: str
    parent: _All | None
    bound: float
    options: list[Answer | _All] | None = None
    answer: Answer | None = None
    asked: int = -1


@dataclass(slots=True, eq=False)
class _All:
    parts: Parts
    parent: _Goal
    goals: list[_Goal] = field(default_factory=list)
    bound: float = 1.0
    answer: Answer | None = None


@dataclass(frozen=True, slots=True)
class Solution:
    """The most confident answer (None: every plan failed or the budget ran out) and the search behind it.

    bound  confidence that no plan exceeds;  asked  how many goals the solver was asked for
    """

    answer: Answer | None
    bound: float
    asked: int
    root: _Goal = field(repr=False)


async def solve(
    goal: str,
    solver: Solver,
    *,
    estimate: Callable[[str], float] = lambda goal: 1.0,
    budget: int = 1000,
    looks: int | None = None,
) -> Solution:
    """Asks `solver` for one goal after another, at most `budget` of them; the same goal is never asked twice.

    A goal that needs itself, parts below, is no way to answer it: that part has no answer. Other tasks get their turn
    every few milliseconds. Graphs with costs and without references: `treewright.search.planning.and_or`.

    estimate  confidence to hope for at a goal that was not asked yet
    looks     most goals that are looked at, wherever they stand; None is 100 for each of the budget
    """
    root, known = _Goal(goal, None, estimate(goal)), dict[str, Sequence[Option]]()
    looked, most, turn = 0, 100 * budget if looks is None else looks, time.monotonic() + TURN
    while root.answer is None and root.bound > 0 and len(known) < budget and looked < most:
        looked += 1
        if time.monotonic() > turn:
            await asyncio.sleep(0)
            turn = time.monotonic() + TURN
        at = _most_promising(root)
        if at.text not in known:
            known[at.text] = tuple(await solver(at.text))
        at.asked = len(known)
        at.options = [o if isinstance(o, Answer) else _All(o, at) for o in known[at.text]]
        for option in at.options:
            if isinstance(option, _All):
                _settle_parts(option, estimate)
        _update(at, estimate)
    return Solution(root.answer, root.bound, len(known), root)


def majority(answers: Sequence[Answer]) -> Answer:
    """The answer whose voters are most likely to be all wrong only together; for `reduce`.

    Votes are taken as independent: an answer's odds are the product of its voters' odds, normalised with one wrong
    answer for each that was given. Ties go to the first.
    """
    odds: dict[str, float] = {}
    for answer in answers:
        p = min(max(answer.confidence, 1e-6), 1 - 1e-6)
        odds[answer.text] = odds.get(answer.text, 1.0) * p / (1 - p)
    best = max(odds, key=lambda text: odds[text])
    return Answer(best, odds[best] / (1.0 + sum(odds.values())))


# -- the search -----------------------------------------------------------------------------------------------------


def _most_promising(goal: _Goal) -> _Goal:
    """The open goal that the plan with the highest bound needs first."""
    while goal.options is not None:
        best = max((o for o in goal.options if isinstance(o, _All)), key=lambda o: o.bound)
        goal = next(part for part in best.goals if part.answer is None and part.bound > 0)
    return goal


def _update(goal: _Goal | None, estimate: Callable[[str], float]) -> None:
    """Bounds and answers from `goal` up to the root."""
    while goal is not None:
        options = goal.options or []
        best = max(options, key=_bound, default=None)
        goal.bound = _bound(best) if best is not None else 0.0
        goal.answer = best if isinstance(best, Answer) else best.answer if best is not None else None
        above = goal.parent
        if above is None:
            return
        _settle_parts(above, estimate)
        goal = above.parent


def _bound(option: Answer | _All) -> float:
    return option.confidence if isinstance(option, Answer) else option.bound


def _settle_parts(node: _All, estimate: Callable[[str], float]) -> None:
    """Makes the goals whose references are answered by now, and combines what is there."""
    parts = node.parts
    while len(node.goals) < len(parts.goals):
        text = parts.goals[len(node.goals)]
        named = [int(n) - 1 for n in REFERENCE.findall(text)]
        if any(node.goals[i].answer is None for i in named):
            break
        filled = REFERENCE.sub(lambda m: _text(node.goals[int(m[1]) - 1]), text)
        circle = _above(node, filled)
        node.goals.append(_Goal(filled, node, 0.0 if circle else estimate(filled), [] if circle else None))
    bounds = [goal.bound for goal in node.goals]
    answers = [goal.answer for goal in node.goals if goal.answer is not None]
    whole = len(answers) == len(parts.goals)
    if parts.combine == "all":
        node.bound = math.prod(bounds)
        node.answer = Answer(answers[-1].text, node.bound) if whole else None
    elif parts.combine == "mean":
        node.bound = math.prod([parts.confidence, *bounds]) ** (1.0 / (len(parts.goals) + 1))
        node.answer = Answer(answers[-1].text, node.bound) if whole else None
    elif parts.combine == "max":
        node.bound = max(bounds) if len(bounds) == len(parts.goals) else 1.0
        best = max(answers, key=lambda a: a.confidence, default=None)
        node.answer = best if best is not None and best.confidence >= node.bound else None
    elif whole and parts.reduce is not None:
        node.answer = parts.reduce(answers)
        node.bound = node.answer.confidence
    else:
        node.bound = 0.0 if 0.0 in bounds else 1.0


def _above(node: _All | None, text: str) -> bool:
    """The parts are needed, perhaps steps above, to answer this very goal."""
    while node is not None:
        if node.parent.text == text:
            return True
        node = node.parent.parent
    return False


def _text(goal: _Goal) -> str:
    return goal.answer.text if goal.answer is not None else ""


# -- as a tree ------------------------------------------------------------------------------------------------------


def as_tree(
    solution: Solution,
    task: Task,
    run: str,
    reward: Callable[[str, Answer], float] | None = None,
    attempt: int = 0,
    made: list[Expansion] | None = None,
) -> Tree:
    """The search as a stored tree is: goals are CHOICE nodes, ALL nodes have the kind ALL, answers are leaves.

    made    takes the expansions, to store the tree by
    reward  of a direct answer to a goal, where the suite knows it; the credit of ALL-nodes starts from these
    Goals that were never asked stay open: such a tree is inexact. Solvers' options are no policy's draws, so it is
    inexact for training in any case; draws of a policy are credited by `training.credit.all_nodes`.
    """
    root = Outcome(Observation(solution.root.text), NodeStatus.OPEN)
    tree = Tree.start(
        TreeHeader(
            run=run,
            task=task,
            attempt=attempt,
            seed=seed_of(task.seed, run),
            policy_version="solver",
            settings={"rule": "all_nodes", "max_tokens": 0},
            root=root,
        )
    )
    waiting: list[tuple[int, _Goal]] = [(0, solution.root)]
    for node, goal in waiting:
        if goal.options:
            new = _grow(tree, node, [_option(goal, o, reward) for o in goal.options], made)
            for child, option in zip(new, goal.options, strict=True):
                if isinstance(option, _All):
                    tree.kind[child] = NodeKind.ALL
                    parts = _grow(
                        tree, child, [(g.text, "part", NodeStatus.OPEN, 0.0, g.bound) for g in option.goals], made
                    )
                    waiting += zip(parts, option.goals, strict=True)
    tree.inexact("options of a solver, not draws of a policy")
    tree.reveal()
    return tree


def _option(
    goal: _Goal, option: Answer | _All, reward: Callable[[str, Answer], float] | None
) -> tuple[str, str, NodeStatus, float, float]:
    if isinstance(option, _All):
        return f"parts ({option.parts.combine})", "parts", NodeStatus.OPEN, 0.0, option.bound
    earned = reward(goal.text, option) if reward is not None else math.nan
    return option.text, "answer", NodeStatus.TERMINAL, earned, option.confidence


def _grow(
    tree: Tree,
    node: int,
    rows: Sequence[tuple[str, str, NodeStatus, float, float]],
    made: list[Expansion] | None,
) -> range:
    seen = [(Observation(t, "", provenance=what), status, earned, score) for t, what, status, earned, score in rows]
    return hang(tree, node, seen, [] if made is None else made)
