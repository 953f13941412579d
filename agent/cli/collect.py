"""`treewright collect`: one tree per task into the run's store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treewright.agent.cli.after import after_collecting, tell_of_invalid, valid_share
from treewright.agent.cli.options import (
    TASKS,
    ConfigFile,
    CorpusFile,
    JsonFile,
    Name,
    PolicySpec,
    QuestionFile,
    RewardName,
    Sets,
    Suites,
    TasksFile,
    bar,
    console,
    go,
    read_config,
    resumable,
    say,
)
from treewright.agent.cli.telling import Notes, brief, tell_of_cost
from treewright.agent.config import store_settings
from treewright.envs.errors import TreewrightError

if TYPE_CHECKING:
    from treewright.agent.config import Config
    from treewright.agent.runs.collect import World
    from treewright.envs.types import Task
    from treewright.search.tree import Tree


__all__ = ["collect", "tasks_of", "tell_of_faults"]

SAMPLE = 64  # newest trees that the line to type next goes by


def collect(
    name: Name = None,
    tasks: Annotated[int, typer.Option(min=1, help="Tasks per suite.")] = TASKS,
    batch: Annotated[int, typer.Option(min=0, help="Which batch of that many tasks: 0 begins with the first.")] = 0,
    split: Annotated[str, typer.Option(help="train or test")] = "train",
    workers: Annotated[
        str | None, typer.Option(help="Processes that lease tasks from --url: a number, or ray://HOST:PORT?workers=N.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="With --workers: postgresql://USER@HOST/NAME.")] = None,
    suites: Suites = None,
    corpus: CorpusFile = None,
    questions: QuestionFile = None,
    tasks_file: TasksFile = None,
    reward: RewardName = None,
    policy: PolicySpec = None,
    config: ConfigFile = None,
    set_: Sets = None,
    json: JsonFile = None,
) -> None:
    """Grow one tree per task into runs/NAME/trees.sqlite. The same line again resumes what was interrupted.

    treewright collect --name first --suites kg,stdlib --tasks 100
    """
    from treewright.agent.policies.propose import open_proposer
    from treewright.agent.runs.collect import collect as grow
    from treewright.agent.runs.collect import open_worlds, suites_of
    from treewright.agent.runs.loop import budget_of, evaluator_of, evidence_of, rates_of, rule_of, settings_of
    from treewright.agent.runs.newest import acting_config, serve_newest
    from treewright.search.meter import metering
    from treewright.search.store import TreeStore

    cfg = read_config(name, config, set_, suites, policy, corpus, questions, tasks_file, reward, store=url)
    found, rule = suites_of(cfg), rule_of(cfg.search, rates_of(cfg))
    if workers is not None or url is not None:  # a shared store in the configuration does without --url
        if json is not None:
            raise TreewrightError("--json tells what this process spent; with --workers leave it out")
        _collect_by_workers(cfg, workers, tasks, batch, split)
        return
    acts = acting_config(cfg, say)

    async def work() -> None:
        async with open_worlds(found, cfg.worlds.sessions or None, cfg.worlds.deadline) as worlds:
            todo, rounds = batch_of(worlds, split, batch, tasks)
            with TreeStore.open(cfg.store_at) as store, bar("collecting", len(todo)) as advance, metering() as spent:
                store_settings(cfg)
                actor = open_proposer(acts.policy)
                try:
                    await serve_newest(cfg, actor)
                    trees = await grow(
                        todo, worlds, actor, rule=rule, budget=budget_of(cfg.search),
                        settings=settings_of(cfg.search, run=cfg.name, seed=cfg.seed, peers=True),
                        evaluator=evaluator_of(cfg.search, actor), evidence=evidence_of(cfg.search), store=store,
                        concurrency=cfg.search.trees, on_tree=advance, rounds=rounds,
                    )  # fmt: skip
                finally:
                    await actor.close()
        _summarise(trees)
        tell_of_cost(spent.total(), json, trees=len(trees), run=cfg.name)
        _tell_of_others(trees, rule.name)
        Notes(trees).tell()
        tell_of_faults(trees, anew=True)
        say(f"stored in {cfg.store_at}; next: {after_collecting(cfg, trees)}")

    go(work)


def _collect_by_workers(cfg: Config, workers: str | None, tasks: int, batch: int, split: str) -> None:
    from treewright.agent.runs.newest import acting_config
    from treewright.agent.runs.workers import collect_with_workers
    from treewright.search.store import TreeStore

    url = cfg.store
    if workers is None or url is None or "://" not in url:
        raise TreewrightError(
            "--workers needs a store that many processes share: --workers 8 --url postgresql://USER@HOST/NAME, or "
            "store = 'postgresql://…' in the configuration"
        )
    store_settings(cfg)
    acts = acting_config(cfg, say)
    with resumable("tasks that were finished are stored, the others go on where they were acknowledged"):
        counts = collect_with_workers(
            acts, url, workers, tasks=tasks, batch=batch, split=split, lease_seconds=cfg.loop.lease
        )
    say("  ".join(f"{name} {count}" for name, count in counts.items()))
    with TreeStore.open(url, read_only=True) as store:
        rows = store.trees(run=cfg.name, split=split, status="done")[-SAMPLE:]
        trees = [store.load(row.tree_id) for row in rows]
    tell_of_faults(trees, anew=True)
    say(f"stored in {url}; next: {after_collecting(cfg, trees)}")


def _summarise(trees: list[Any]) -> None:
    from rich.table import Table

    from treewright.agent.runs.evaluate import any_solved

    table = Table("suite", "trees", "exact", "nodes", "valid draws", "tokens", "steps", "solved by some leaf")
    unknown: dict[str, int] = {}
    for suite in dict.fromkeys(t.task.suite for t in trees):
        mine = [t for t in trees if t.task.suite == suite]
        solved = [found for t in mine if (found := any_solved(t)) is not None]
        if nobody_knows := sum(any_solved(t) is None and not t.lost for t in mine):
            unknown[suite] = nobody_knows
        valid = valid_share(mine)
        table.add_row(
            suite,
            f"{len(mine)}",
            f"{sum(t.exact for t in mine)}",
            f"{sum(map(len, mine))}",
            "–" if valid != valid else f"{100 * valid:.0f} %",
            f"{sum(t.spent.policy_tokens + t.spent.closing_tokens for t in mine)}",
            f"{sum(t.spent.env_steps + t.spent.closing_steps for t in mine)}",
            f"{100 * sum(solved) / len(solved):.0f} %" if solved else "–",
        )
    console.print(table)
    for suite, count in unknown.items():
        console.print(
            f"{suite}: of {count} trees no reward is known that says whether a leaf solves them", soft_wrap=True
        )
    tell_of_invalid(trees)


def tasks_of(worlds: Mapping[str, World], split: str, batch: int, many: int) -> list[Task]:
    """The tasks asked for, each once: a suite that has fewer begins again. Raises TreewrightError for a wrong split."""
    return batch_of(worlds, split, batch, many)[0]


def batch_of(worlds: Mapping[str, World], split: str, batch: int, many: int) -> tuple[list[Task], list[int]]:
    """`tasks_of`, and for each how often it was in batches before: a small suite is attempted anew in each."""
    from treewright.agent.runs.setup import rounds_for

    try:
        found = rounds_for(worlds, split, batch, many)
    except ValueError as error:
        raise TreewrightError(f"no tasks: {error}; name another split with --split, or fewer suites") from error
    once: dict[tuple[str, str], tuple[Task, int]] = {}
    for task, earlier in found:
        once.setdefault((task.suite, task.id), (task, earlier))
    return [task for task, _ in once.values()], [earlier for _, earlier in once.values()]


def _tell_of_others(trees: Sequence[Tree], rule: str) -> None:
    """Finished trees are not grown again; that is said where they were grown by another rule than this line's."""
    others = Counter(name for t in trees if (name := str(t.header.settings.get("rule"))) != rule)
    for name, count in others.items():
        told = f"{count} of these trees were there already, grown by {name}; for trees by {rule} use another --name"
        console.print(told, markup=False, highlight=False, soft_wrap=True)


def tell_of_faults(trees: Sequence[Tree], anew: bool = False) -> None:
    """What kept worlds from coming up. Raises TreewrightError if none came up.

    anew  also what kept episodes from ending: the same line grows those trees once more
    """
    from treewright.agent.runs.evaluate import tally

    never = [f"{t.task.suite}: {brief(t.fault[0])}" for t in trees if t.fault[0] is not None]
    lines = [f"{count} of {len(trees)} trees never began, {cause}" for cause, count in tally(never)]
    ended = [t for t in trees if t.lost and t.fault[0] is None] if anew else []
    causes = [f"{t.task.suite}: {brief(next(f for f in t.fault if f is not None))}" for t in ended]
    lines += [f"{count} of {len(trees)} trees have no result, {cause}" for cause, count in tally(causes)]
    if not lines:
        return
    if anew:
        lines.append("mend that and type the same line again: these trees are grown anew")
    told = "\n".join(lines)
    if len(never) + len(ended) == len(trees):
        raise TreewrightError(told)
    console.print(told, markup=False, highlight=False, soft_wrap=True)
