"""The demo: the whole line on the seedling, and a table that says what it gained.

before: held-out success of the frozen seedling, alone and with search → loop: trees by best-first search on training
tasks, stored, credited, trained on → after: the same held-out tasks again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from treewright.agent.config import Config
from treewright.agent.judges.judge import Likelihood
from treewright.agent.runs.collect import Failure, World, open_worlds
from treewright.agent.runs.evaluate import Evaluation, evaluate, paired_gain
from treewright.agent.runs.figures import write_figures
from treewright.agent.runs.loop import (
    Learner,
    Round,
    make_trainer,
    model_folder,
    run_loop,
)
from treewright.agent.runs.shared import shared_model
from treewright.envs.errors import TreewrightError
from treewright.envs.registry import suite as find_suite
from treewright.search.tree import Tree
from treewright.training.track import open_metrics

__all__ = [
    "PLAN",
    "QUICK",
    "DemoPlan",
    "Stage",
    "demo_config",
    "fresh",
    "measure",
    "open_suites",
    "progress_bar",
    "run_demo",
]


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """Held-out tasks per suite for the policy alone and with search, and the search's expansions."""

    alone: dict[str, int]
    searched: dict[str, int]
    expansions: int = 10


PLAN = DemoPlan(
    alone={"kg": 200, "stdlib": 200, "workbench": 200, "market": 100},
    searched={"kg": 60, "stdlib": 60, "workbench": 30, "market": 12},
)


WEB = frozenset({"market", "bazaar", "miniwob"})
"""Suites that the packaged model for the web learns on, where the policy is the seedling."""


@dataclass(slots=True)
class Stage:
    """Evaluations of one policy."""

    alone: dict[str, Evaluation] = field(default_factory=dict)
    searched: dict[str, Evaluation] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@contextmanager
def progress_bar(console: Console, what: str, total: int) -> Any:
    columns = (
        TextColumn("{task.description:<34}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        job = progress.add_task(what, total=total)

        yield lambda _=None: progress.update(job, advance=1)


async def measure(
    console: Console, what: str, worlds: dict[str, World], policy: Any, plan: DemoPlan, stage: str
) -> tuple[Stage, list[Tree]]:
    out, trees = Stage(), list[Tree]()
    for counts, expansions, word in ((plan.alone, 0, "policy alone"), (plan.searched, plan.expansions, "with search")):
        if not counts:
            continue
        began = time.monotonic()
        tasks = [t for name, w in worlds.items() for t in w.suite.tasks("test", counts.get(name, 0))]
        with progress_bar(console, f"{what}: {word}", len(tasks)) as advance:
            found, trees = await evaluate(
                tasks,
                worlds,
                policy,
                expansions=expansions,
                evaluator=Likelihood(),
                run=f"{stage} {word}",
                concurrency=128,
                on_tree=advance,
            )
        out.seconds[word] = time.monotonic() - began
        if expansions:
            out.searched = found
        else:
            out.alone = found
    return out, trees


def open_suites(console: Console, names: Sequence[str]) -> list[str]:
    """The suites that can be had here; says which one is skipped and why."""
    usable = []
    for name in names:
        try:
            found = find_suite(name)
            if found.available is not None:
                found.available()
            usable.append(name)
        except TreewrightError as error:
            console.print(f"{name} is skipped: {error}", style="yellow", markup=False, highlight=False)
    return usable


async def run_demo(
    config: Config,
    plan: DemoPlan = PLAN,
    console: Console | None = None,
    known: Mapping[str, tuple[float, str]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Runs the demo into config.home (store, checkpoints, figures.json, report.html) and returns the figures, with
    those that are `known` before."""
    from treewright.agent.policies.opening import open_policy
    from treewright.agent.view.report import write_report
    from treewright.search.store import TreeStore

    console = console or Console(emoji=False, markup=False)
    began = time.monotonic()
    names = open_suites(console, config.worlds.suites)
    before, after = Stage(), Stage()
    rounds: dict[str, list[dict[str, Any]]] = {}
    frozen: dict[str, str] = {}
    done, shown, decode = list[Round](), list[Tree](), dict[str, Any]()
    store = TreeStore.open(config.store_at)
    try:
        for part, mine in parts_of(config, names):
            word = "seedling" if part.policy.spec == config.policy.spec else "seedling_web"
            source = model_folder(part.policy.spec)
            folder = config.home / ("checkpoints" if word == "seedling" else "checkpoints-web")
            learner = Learner(make_trainer(part, source), folder, part.loop.checkpoints)
            shared = shared_model(part, learner.trainer)
            given = {} if shared is None else {"model": shared}
            policy = open_policy(part.policy.spec, **part.policy.options, **given)
            frozen[word] = policy.version
            try:
                async with open_worlds(mine, part.worlds.sessions or None, part.worlds.deadline) as worlds:
                    _add(before, (await measure(console, "before", worlds, policy, plan, f"{config.name} before"))[0])
                    last = await _learn(console, part, worlds, policy, learner, store)
                    found, searched = await measure(console, "after", worlds, policy, plan, f"{config.name} after")
                    _add(after, found)
            finally:
                await policy.close()
            rounds["rounds" if word == "seedling" else "web_rounds"] = [_told(r) for r in learner.rounds]
            done += learner.rounds
            samples = [t for group in (last, searched) for t in _samples(group)]
            shown += samples
            decode |= dict.fromkeys((t.tree_id for t in samples), policy.tokenizer.decode)  # type: ignore[attr-defined]
    finally:
        store.close()
    table = _success_table(before, after)
    console.print(table)
    console.print(_cost_table(before, after, done))
    figures = {**known, **_figures(before, after)}
    figures["seconds"] = (time.monotonic() - began, "s")
    write_figures(config.home / "figures.json", figures, **frozen, **rounds)
    write_report(
        config.home / "report.html", shown, "treewright demo", _plain(table), advantages=_advantages(shown),
        decode=decode,
    )  # fmt: skip
    console.print(f"figures: {config.home / 'figures.json'}   report: {config.home / 'report.html'}")
    return {name: value for name, (value, _) in figures.items()}


def parts_of(config: Config, names: Sequence[str]) -> list[tuple[Config, list[str]]]:
    """Suites and the policy that learns on them: web pages are learned by a packaged model of their own."""
    web = [name for name in names if name.partition(":")[0] in WEB] if config.policy.spec == "seedling" else []
    rest = [name for name in names if name not in web]
    policy = config.policy.model_copy(update={"spec": "seedling:web"})
    both = [(config, rest), (config.model_copy(update={"policy": policy}), web)]
    return [(part, mine) for part, mine in both if mine]


def _add(stage: Stage, more: Stage) -> None:
    stage.alone |= more.alone
    stage.searched |= more.searched
    for word, seconds in more.seconds.items():
        stage.seconds[word] = stage.seconds.get(word, 0.0) + seconds


def _told(done: Round) -> dict[str, Any]:
    return {name: getattr(done, name) for name in ("drawn_by", "trained", "success", "stats", "seconds")}


async def _learn(
    console: Console, config: Config, worlds: dict[str, World], policy: Any, learner: Learner, store: Any
) -> list[Tree]:
    """The trees of the last round."""
    newest: deque[list[Tree]] = deque(maxlen=1)
    each = sum(config.loop.suite_tasks.get(name, config.loop.tasks) for name in worlds)
    with progress_bar(console, "explore, credit, train", each * config.loop.iterations) as advance:

        def note(done: Round) -> None:
            found = "  ".join(f"{name} {100 * value:.0f}%" for name, value in done.success.items())
            console.print(f"round {done.index + 1}: sampled success of its trees {found}   ({done.seconds:.1f} s)")
            metrics.log(done.update(learner.trainer.steps))

        def grown(tree: Tree | Failure) -> None:
            advance()

        with open_metrics(config.home, config.name) as metrics:
            await run_loop(config, worlds, policy, learner, store, on_tree=grown, on_round=note, on_trees=newest.append)
    return newest[-1] if newest else []


def _advantages(trees: Sequence[Tree]) -> dict[str, list[float]]:
    """The credit of every node of the exact trees, as the trainer computed it."""
    from treewright.training.credit import estimate
    from treewright.training.credit.trees import tree_arrays

    return {t.tree_id: estimate("split_loo", tree_arrays([t])).coef.tolist() for t in trees if t.exact}


def _samples(trees: Sequence[Tree]) -> list[Tree]:
    """One solved tree of each suite, the largest; any tree where none is solved."""
    out = []
    for name in dict.fromkeys(t.task.suite for t in trees):
        mine = [t for t in trees if t.task.suite == name]
        solved = [t for t in mine if any(t.outcome_of(i) > 0 for i in t.leaves())]
        out.append(max(solved or mine, key=len))
    return out


def _success_table(before: Stage, after: Stage) -> Table:
    table = Table(title="held-out success, %", caption="b → a: before and after training; same tasks in each pair")
    table.add_column("suite")
    for column in (
        "policy b → a",
        "gain (95 %)",
        "search b → a",
        "oracle pick b → a",
    ):
        table.add_column(column, justify="right")
    for name, b in before.alone.items():
        a = after.alone[name]
        gain, low, high = paired_gain(b, a)
        row = [f"{name} ({len(a.tasks)})", _pair(b.rate, a.rate), f"{gain:+.1f} ({low:+.0f} … {high:+.0f})"]
        sb, sa = before.searched.get(name), after.searched.get(name)
        row += [_pair(sb.rate, sa.rate), _pair(sb.oracle_pick, sa.oracle_pick)] if sb and sa else ["–", "–"]
        table.add_row(*row)
    return table


def _pair(before: float, after: float) -> str:
    return f"{100 * before:.1f} → {100 * after:.1f}"


def _cost_table(before: Stage, after: Stage, rounds: Sequence[Round]) -> Table:
    """What everything cost, closing rollouts and replays included."""
    table = Table(title="cost")
    for column in ("stage", "trees", "sampled tokens", "env steps", "seconds"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for word, stage in (("before", before), ("after", after)):
        for kind, found in (("policy alone", stage.alone), ("with search", stage.searched)):
            count = sum(len(e.tasks) for e in found.values())
            tokens, steps = sum(e.tokens for e in found.values()), sum(e.env_steps for e in found.values())
            table.add_row(f"{word}: {kind}", f"{count}", f"{tokens}", f"{steps}", f"{stage.seconds.get(kind, 0):.0f}")
    if rounds:
        total = {k: sum(r.stats.get(k, 0.0) for r in rounds) for k in ("trees", "sampled_tokens", "env_steps")}
        seconds = f"{sum(r.seconds for r in rounds):.0f}"
        table.add_row(
            f"training: {len(rounds)} rounds", f"{total['trees']:.0f}", f"{total['sampled_tokens']:.0f}",
            f"{total['env_steps']:.0f}", seconds,
        )  # fmt: skip
    return table


def _plain(table: Table) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table as text, for the report."""
    columns = [list(c.cells) for c in table.columns]
    rows = [[str(cell) for cell in row] for row in zip(*columns, strict=True)]
    return [str(c.header) for c in table.columns], rows


def _figures(before: Stage, after: Stage) -> dict[str, tuple[float, str]]:
    out: dict[str, tuple[float, str]] = {}
    gains: dict[str, float] = {}
    for name, b in before.alone.items():
        a = after.alone[name]
        gain, low, high = paired_gain(b, a)
        gains[name] = gain
        out[f"{name}.policy_before"] = (100 * b.rate, "%")
        out[f"{name}.policy_after"] = (100 * a.rate, "%")
        out[f"{name}.policy_gain_points"] = (gain, "points")
        out[f"{name}.policy_gain_low"] = (low, "points")
        out[f"{name}.policy_gain_high"] = (high, "points")
        out[f"{name}.tasks"] = (float(len(a.tasks)), "tasks")
        for word, stage in (("before", before), ("after", after)):
            if name in stage.searched:
                out[f"{name}.search_{word}"] = (100 * stage.searched[name].rate, "%")
                out[f"{name}.oracle_pick_{word}"] = (100 * stage.searched[name].oracle_pick, "%")
            out[f"{name}.tokens_{word}"] = (float(stage.alone[name].tokens), "tokens")
            out[f"{name}.env_steps_{word}"] = (float(stage.alone[name].env_steps), "steps")
    others = [gains[n] for n in ("stdlib", "workbench") if n in gains]
    if others:
        out["best_other.policy_gain_points"] = (max(others), "points")
    return out


@dataclass(frozen=True, slots=True)
class _Quick:
    plan: DemoPlan
    settings: tuple[str, ...]


_FEW = {"kg": 16, "stdlib": 16, "workbench": 8, "market": 4}
QUICK = _Quick(
    DemoPlan(alone=_FEW, searched=dict.fromkeys(_FEW, 4), expansions=4),
    ("loop.iterations=2", "loop.tasks=4"),
)
"""A demo that ends within a minute, to see that everything works."""


def demo_config(home: Path, settings: Sequence[str] = ()) -> Config:
    """The configuration of the demo: the defaults, in a folder of its own."""
    from treewright.agent.config import load_config

    return load_config(None, [f"folder={home}", "name=demo", "loop.iterations=18", *settings])


def fresh(folder: Path) -> None:
    """Removes what an earlier demo left in its own folder, so that its trees are not taken for this one's."""
    import shutil

    if folder.exists():
        shutil.rmtree(folder)
