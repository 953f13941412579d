"""What the configuration makes of itself: rule, budget, settings, evaluator and the tasks of a batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from treewright.agent.config import Config, SearchSection
from treewright.agent.judges.entailment import open_entailment
from treewright.agent.judges.judge import open_evaluator
from treewright.agent.runs.collect import UNLIMITED, World
from treewright.agent.runs.evaluate import acting_rule
from treewright.envs.doors import call
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Task
from treewright.search.engine import Settings
from treewright.search.evidence import Evidence
from treewright.search.rules import Rule, rule_with
from treewright.search.segments import Segments
from treewright.search.temper import Temperatures
from treewright.search.types import Budget, Evaluator
from treewright.training.manifest import BEGUN
from treewright.training.sections import LoopSection

__all__ = [
    "acting_rule_of",
    "budget_of",
    "evaluator_of",
    "evidence_of",
    "rates_of",
    "rule_of",
    "segments_of",
    "settings_of",
    "size_of",
    "tasks_for",
    "temperatures_of",
]


def rule_of(section: SearchSection, rates: Mapping[str, float] | None = None) -> Rule:
    """The rule named in the configuration with its options, and the draws it takes. `chains` has no inner draws.

    rates  running success rate by suite, for the rule that adapts to it
    """
    name = "best_first" if section.rule == "auto" else section.rule
    draws = section.root_draws if name == "chains" else section.draws
    return rule_with(name, section.options, draws=draws, root_draws=section.root_draws, rates=rates)


def rates_of(config: Config) -> dict[str, float]:
    """The success by suite that the run's newest checkpoint knows; {} before the first."""
    newest = sorted((config.home / "checkpoints").glob("step-*/manifest.json"))
    known = json.loads(newest[-1].read_text())["baselines"] if newest else {}
    return {suite: rate for suite, rate in known.items() if not suite.endswith(BEGUN)}


def acting_rule_of(section: SearchSection, evaluator: Evaluator | None = None) -> Rule:
    """The rule to act by (run, eval): what the configuration names, `acting_rule` for auto."""
    if section.rule == "auto":
        acting_rule(None, **section.options)  # a wrong option is told before anything is opened
        return acting_rule(evaluator, section.draws, section.root_draws, **section.options)
    return rule_of(section)


def budget_of(section: SearchSection, expansions: int | None = None) -> Budget:
    """The ceilings of one tree; `expansions` replaces the configuration's."""
    return Budget(
        expansions=section.expansions if expansions is None else expansions,
        policy_tokens=section.policy_tokens,
        judge_tokens=section.judge_tokens,
        env_steps=section.env_steps,
        seconds=section.seconds,
        money=section.money,
    )


def settings_of(
    section: SearchSection, *, run: str, seed: int, attempt: int = 0, acting: bool = False, peers: bool = False
) -> Settings:
    """How trees of a run are grown.

    acting  for run and eval, where open nodes stay open unless search.close says otherwise
    peers   let prompts tell of other branches as search.peers says, which training cannot use
    Draws are as long as search.max_tokens says; else `collect` takes what each task's suite suggests.
    """
    return Settings(
        run=run, attempt=attempt, seed=seed, in_flight=section.in_flight, stop=section.stop,
        max_tokens=section.max_tokens or UNLIMITED,
        close=not acting if section.close is None else section.close, answers=section.answers, retries=section.retries,
        repairs=section.repairs, share_results=section.share_results, merge=section.merge,
        peers=section.peers if peers else 0, segments=segments_of(section),
        temperature_by_depth=temperatures_of(section),
    )  # fmt: skip


def segments_of(section: SearchSection) -> Segments | None:
    """How responses are cut; None where search.segments is empty. Raises TreewrightError for an option it has not."""
    return call(Segments, section.segments, "search.segments") if section.segments else None


def temperatures_of(section: SearchSection) -> Temperatures | None:
    """What draws are made at by depth; None where nothing is set. Raises TreewrightError for an option it has not."""
    given = section.temperature_by_depth
    return call(Temperatures, given, "search.temperature_by_depth") if given else None


def evaluator_of(section: SearchSection, policy: Any = None) -> Evaluator | None:
    """The evaluator named in the configuration, see `open_evaluator`; `policy` is asked by those that need one."""
    return open_evaluator(section.evaluator, policy, section.evaluator_options)


def evidence_of(section: SearchSection) -> Evidence | None:
    """What drafts must quote: nothing, or the tools that search.evidence names, or all of them."""
    if section.evidence is None:
        return None
    names = tuple(name.strip() for name in section.evidence.split(",") if name.strip())
    judge = open_entailment(section.evidence_judge) if section.evidence_judge is not None else None
    return Evidence(None if names == ("all",) else names, judge)


def tasks_of_round(worlds: Mapping[str, World], section: LoopSection, index: int) -> list[Task]:
    """The training tasks of a loop's round `index`. Raises TreewrightError where loop.skip_tasks leaves none."""
    every = rounds_for(worlds, "train", index, section.tasks, section.suite_tasks, section.skip_tasks)
    return [task for task, _ in every]


def tasks_for(
    worlds: Mapping[str, World], split: str, index: int, count: int, other: Mapping[str, int] | None = None
) -> list[Task]:
    """Batch `index` of `count` tasks of every suite, or of `other[suite]`; a suite that runs out begins again."""
    return [task for task, _ in rounds_for(worlds, split, index, count, other)]


def rounds_for(
    worlds: Mapping[str, World],
    split: str,
    index: int,
    count: int,
    other: Mapping[str, int] | None = None,
    skip: Mapping[str, int] | None = None,
) -> list[tuple[Task, int]]:
    """`tasks_for`, each with how often its suite has begun again: another attempt at the same task.

    skip  by suite, how many tasks are left out, from the first
    """
    out: list[tuple[Task, int]] = []
    for name, world in worlds.items():
        many, skipped = (other or {}).get(name, count), (skip or {}).get(name, 0)
        start = index * many
        every = _first(world, split, skipped + start + many)
        if skipped and len(every) <= skipped:
            raise TreewrightError(
                f"loop.skip_tasks.{name} = {skipped} leaves none of its {len(every)} {split} tasks; give fewer"
            )
        if every := every[skipped:]:
            out += [(every[i % len(every)], i // len(every)) for i in range(start, start + many)]
    return out


def left_out(worlds: Mapping[str, World], imitated: int) -> dict[str, int]:
    """loop.skip_tasks for a policy that imitated so many training tasks of each suite; suites without others are not
    among them: their loop has to take the same."""
    return {name: imitated for name, world in worlds.items() if len(_first(world, "train", imitated + 1)) > imitated}


def _first(world: World, split: str, count: int) -> Sequence[Task]:
    """The first tasks of a split, all of them where there are no more."""
    tasks = world.suite.tasks
    try:
        return tasks(split, count)
    except (ValueError, TreewrightError):
        return tasks(split, size_of(tasks, split))


def size_of(tasks: Callable[[str, int], Sequence[Task]], split: str) -> int:
    """How many tasks a finite suite has: the largest count it gives without an error, by bisection."""
    low, high = 1, 1 << 20
    while low < high:
        middle = (low + high + 1) // 2
        try:
            tasks(split, middle)
            low = middle
        except (ValueError, TreewrightError):
            high = middle - 1
    return low
