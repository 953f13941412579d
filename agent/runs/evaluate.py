"""Success of a policy, alone and with search, on tasks it has not seen. Search never sees the reward."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from treewright.agent.judges.judge import Likelihood
from treewright.agent.judges.uncertainty import Entropy
from treewright.agent.runs.collect import UNLIMITED, World, collect
from treewright.envs.types import Task
from treewright.search.engine import Keeper, Settings
from treewright.search.evidence import Evidence
from treewright.search.rules import Rule, chains, rule
from treewright.search.store.ending import result_of
from treewright.search.tree import Tree
from treewright.search.types import Budget, Evaluator, Proposer

__all__ = ["Evaluation", "acting_rule", "any_solved", "evaluate", "paired_gain", "tally", "without_result"]

SOLVED = 1.0 - 1e-6


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One suite under one policy.

    tasks        ids in order;  success  [n] 1.0 where the chosen leaf's truth reward reaches 1
    oracle_pick  share of tasks where any finished leaf does: picked by truth, never a result
    tokens, env_steps  spent in all;  faults  tasks whose tree met a lasting fault
    lost         of those, where no episode came to an end;  unknown  tasks whose chosen end has a reward that nobody
                 knows: both are not among `tasks`
    """

    suite: str
    tasks: tuple[str, ...]
    success: tuple[float, ...]
    oracle_pick: float
    tokens: int
    env_steps: int
    faults: int
    lost: int = 0
    unknown: int = 0

    @property
    def rate(self) -> float:
        return float(np.mean(self.success)) if self.success else float("nan")

    def figures(self) -> dict[str, float | None]:
        """For JSON: how many tasks, and the shares."""
        known = len(self.tasks) > 0
        return {
            "tasks": len(self.tasks), "success": self.rate if known else None,
            "oracle_pick": self.oracle_pick if known else None, "faults": self.faults, "lost": self.lost,
            "unknown": self.unknown,
        }  # fmt: skip


def _summary(suite: str, trees: Sequence[Tree]) -> Evaluation:
    known = [t for t in trees if result_of(t)[1] is not None]
    solved = [bool(result_of(t)[1]) for t in known]
    any_leaf = [found for t in trees if (found := any_solved(t)) is not None]
    lost = sum(t.lost for t in trees)
    return Evaluation(
        suite,
        tuple(t.task.id for t in known),
        tuple(map(float, solved)),
        float(np.mean(any_leaf)) if any_leaf else float("nan"),
        sum(t.spent.policy_tokens + t.spent.closing_tokens for t in trees),
        sum(t.spent.env_steps + t.spent.closing_steps for t in trees),
        sum("a fault persisted" in t.reasons for t in trees),
        lost,
        len(trees) - len(known) - lost,
    )


def any_solved(tree: Tree) -> bool | None:
    """Whether a finished leaf returns at least 1; None where none is known to, and some return is not known."""
    if tree.lost:
        return None
    ends = [tree.outcome_of(leaf) for leaf in tree.leaves()]
    if any(end >= SOLVED for end in ends):
        return True
    return None if any(map(math.isnan, ends)) else False


def tally(causes: Iterable[str], most: int = 5) -> list[tuple[str, int]]:
    """The commonest causes, each with how often it was met; those that differ in numbers only are one."""
    found, shown = Counter[str](), dict[str, str]()
    for cause in causes:
        kind = re.sub(r"\d+", "#", cause)
        found[kind] += 1
        shown.setdefault(kind, cause)
    return [(shown[kind], count) for kind, count in found.most_common(most)]


def without_result(trees: Sequence[Tree]) -> list[str]:
    """A line for each suite and cause of trees in which faults kept every episode from ending."""
    lines = []
    for suite in dict.fromkeys(t.task.suite for t in trees):
        mine = [t for t in trees if t.task.suite == suite]
        faults = [next((f for f in t.fault if f is not None), "a fault") for t in mine if t.lost]
        for cause, count in tally(f.strip().partition("\n")[0][:400] for f in faults):
            lines.append(f"{suite}: {count} of {len(mine)} tasks have no result, {cause}")
    return lines


def acting_rule(evaluator: Evaluator | None, draws: int = 2, root_draws: int = 4, **options: Any) -> Rule:
    """The rule `score_first`, to act by where none is named: best first by the evaluator's estimate alone.

    An evaluator that knows something of its own chooses the end: the highest score. Without one, or with the policy's
    own likelihood, that would be the end that was likeliest to be drawn, which says less than what several draws agree
    on: there equal answers are pooled by mass times score.
    """
    own = evaluator is None or isinstance(evaluator, (Likelihood, Entropy))
    given = {"draws": draws, "root_draws": root_draws, "pick": "mass" if own else "score"}
    return rule("score_first", **{**given, **options})


async def evaluate(
    tasks: Sequence[Task],
    worlds: Mapping[str, World],
    policy: Proposer,
    *,
    expansions: int = 0,
    draws: int = 2,
    root_draws: int = 4,
    rule: Rule | None = None,
    evaluator: Evaluator | None = None,
    seed: int = 0,
    run: str = "eval",
    store: Keeper | None = None,
    concurrency: int = 64,
    peers: int = 0,
    budget: Budget | None = None,
    settings: Settings | None = None,
    evidence: Evidence | None = None,
    on_tree: Callable[[object], None] | None = None,
) -> tuple[dict[str, Evaluation], list[Tree]]:
    """Success by suite, and the trees. `expansions=0` is the policy alone: one sampled rollout for each task.

    peers  most other branches that a prompt tells of, with search
    budget, settings  all ceilings and settings of a tree, in place of `expansions`, `seed`, `run` and `peers`

    With search and without a `rule`, `acting_rule` says what is expanded and chosen.
    """
    budget = budget or Budget(expansions=expansions)
    settings = settings or Settings(run=run, seed=seed, max_tokens=UNLIMITED, peers=peers)
    alone = budget.expansions == 0
    trees = await collect(
        tasks,
        worlds,
        policy,
        rule=chains(1) if alone else rule or acting_rule(evaluator, draws, root_draws),
        budget=budget,
        settings=replace(settings, close=True, peers=0) if alone else settings,
        evaluator=None if alone else evaluator,
        evidence=evidence,
        store=store,
        concurrency=concurrency,
        on_tree=on_tree,
    )
    by_suite: dict[str, list[Tree]] = defaultdict(list)
    for tree in trees:
        by_suite[tree.task.suite].append(tree)
    return {name: _summary(name, group) for name, group in by_suite.items()}, trees


def paired_gain(before: Evaluation, after: Evaluation, samples: int = 10_000) -> tuple[float, float, float]:
    """Gain in points (percent) on the tasks both have, with the paired bootstrap's 95 % interval (low, high)."""
    b, a = dict(zip(before.tasks, before.success, strict=True)), dict(zip(after.tasks, after.success, strict=True))
    diff = np.asarray([a[t] - b[t] for t in before.tasks if t in a])
    if not len(diff):
        return float("nan"), float("nan"), float("nan")
    draws = np.random.default_rng(0).integers(0, len(diff), (samples, len(diff)))
    low, high = np.percentile(diff[draws].mean(1), [2.5, 97.5])
    return 100 * float(diff.mean()), 100 * float(low), 100 * float(high)
