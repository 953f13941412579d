"""Two runs on the same tasks: success, task by task, with an interval."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from treewright.search.store.errors import StoreError
from treewright.search.store.reading import TreeRow

__all__ = ["Comparison", "compare"]

SAMPLES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Success of two runs on the tasks that both have finished, in shares of 1.

    suite      'all' for every suite together
    tasks      how many are paired; a task with several trees counts with their mean
    gain       second − first; low, high: its 95 % interval by the paired bootstrap over tasks
    only_first, only_second   tasks solved (in the mean, more than half) by one of the two
    tokens     policy tokens spent on these tasks by the first and the second
    """

    suite: str
    tasks: int
    first: float
    second: float
    gain: float
    low: float
    high: float
    only_first: int
    only_second: int
    tokens: tuple[int, int]


def compare(first: Sequence[TreeRow], second: Sequence[TreeRow], seed: int = 0) -> list[Comparison]:
    """By suite, and for all of them together if there are several. Only finished trees count, and none that begin at
    stored nodes.

    The interval resamples tasks with replacement, keeping pairs together (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13). Raises StoreError if no task was finished in both.
    """
    a, b = _by_task(first), _by_task(second)
    both = sorted(a.keys() & b.keys())
    if not both:
        raise StoreError(
            f"no task is finished in both: the first has {len(a)} finished tasks, the second {len(b)}; "
            "collect the same tasks in both"
        )
    suites = sorted({suite for suite, _ in both})
    groups = [[task for task in both if task[0] == suite] for suite in suites]
    out = [_one(suite, group, a, b, seed) for suite, group in zip(suites, groups, strict=True)]
    return out if len(out) == 1 else [*out, _one("all", both, a, b, seed)]


Task = tuple[str, str]


def _by_task(rows: Sequence[TreeRow]) -> dict[Task, list[TreeRow]]:
    out: dict[Task, list[TreeRow]] = defaultdict(list)
    run_of = {row.tree_id: row.run for row in rows}
    for row in rows:
        # What goes on from a commit is of the same run; from a node of another run's tree no whole episode begins.
        whole = row.continues is None or run_of.get(row.continues[0]) == row.run
        if row.status == "done" and row.success is not None and whole:
            out[row.suite, row.task_id].append(row)
    return out


def _one(
    suite: str, tasks: Sequence[Task], a: dict[Task, list[TreeRow]], b: dict[Task, list[TreeRow]], seed: int
) -> Comparison:
    x, y = (np.array([np.mean([bool(row.success) for row in rows[t]]) for t in tasks]) for rows in (a, b))
    gain = y - x
    draws = np.random.default_rng(seed).integers(0, len(gain), (SAMPLES, len(gain)))
    low, high = np.percentile(gain[draws].mean(1), [2.5, 97.5])
    tokens = tuple(
        sum(r.spent.policy_tokens + r.spent.closing_tokens for t in tasks for r in rows[t]) for rows in (a, b)
    )
    only = (int(((x > 0.5) & (y <= 0.5)).sum()), int(((y > 0.5) & (x <= 0.5)).sum()))
    return Comparison(
        suite=suite,
        tasks=len(tasks),
        first=float(x.mean()),
        second=float(y.mean()),
        gain=float(gain.mean()),
        low=float(low),
        high=float(high),
        only_first=only[0],
        only_second=only[1],
        tokens=(tokens[0], tokens[1]),
    )
