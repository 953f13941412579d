"""`treewright run`: search one task, print the tree, commit what is approved in a live world."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treewright.agent.cli.options import (
    ConfigFile,
    Name,
    PolicySpec,
    Sets,
    console,
    go,
    read_config,
)
from treewright.envs.errors import TreewrightError

if TYPE_CHECKING:
    from treewright.agent.config import Config


__all__ = ["run"]


def run(
    task: Annotated[str, typer.Argument(help="SUITE/INDEX or SUITE/ID, e.g. kg/3; own/INDEX with worlds.tasks_file.")],
    expansions: Annotated[
        int | None,
        typer.Option(help="Expansions of the search; 0 lets the policy act alone. search.expansions, or 12."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split an INDEX counts in: train or test.")] = "test",
    approve: Annotated[str, typer.Option(help="In a live world: never | ask | module:function.")] = "never",
    policy: PolicySpec = None,
    config: ConfigFile = None,
    set_: Sets = None,
    name: Name = None,
) -> None:
    """Search one task and print the tree.

    The chosen path is marked; the reward is what the world's own check said, which the search did not see. In a live
    world the chosen path is then executed, irreversible actions only as far as --approve lets them.

      treewright run kg/3
      treewright run maze/0 --policy scripted:mymodule:walker
    """
    from treewright.agent.policies.propose import open_proposer
    from treewright.agent.runs.collect import open_worlds, suites_of
    from treewright.agent.runs.loop import acting_rule_of
    from treewright.envs.spelling import split_task

    suite, which = split_task(task)
    chosen = None if any("worlds.suites" in s for s in set_ or ()) else [suite]
    settings = read_config(name, config, set_, chosen, policy)
    suites = suites_of(settings)
    acting_rule_of(settings.search)  # a misspelt rule is told before a model is loaded
    if expansions is None:
        told = settings.search.expansions if "expansions" in settings.search.model_fields_set else None
        expansions = 12 if told is None else told

    async def work() -> None:
        async with open_worlds(suites, settings.worlds.sessions or None, settings.worlds.deadline) as w:
            world = next(iter(w.values()))
            chosen_task = _find_task(world.suite, split, which)
            actor = open_proposer(settings.policy)
            try:
                async with world.pool.lease("") as session:
                    live = not session.env.sandboxed
                await (_run_live if live else _run_searched)(settings, world, chosen_task, actor, expansions, approve)
            finally:
                await actor.close()

    go(work)


async def _run_searched(cfg: Config, world: Any, task: Any, actor: Any, expansions: int, approve: str) -> None:
    from treewright.agent.runs.evaluate import evaluate
    from treewright.agent.runs.loop import acting_rule_of, budget_of, evaluator_of, evidence_of, settings_of

    evaluator = evaluator_of(cfg.search, actor)
    _, trees = await evaluate(
        [task], {world.suite.name: world}, actor, rule=acting_rule_of(cfg.search, evaluator), evaluator=evaluator,
        budget=budget_of(cfg.search, expansions), evidence=evidence_of(cfg.search),
        settings=settings_of(cfg.search, run=cfg.name, seed=cfg.seed, acting=True, peers=True),
    )  # fmt: skip
    for tree in trees:
        _print_tree(tree)


async def _run_live(cfg: Config, world: Any, task: Any, actor: Any, expansions: int, approve: str) -> None:
    """The journal needs a store: runs/NAME/trees.sqlite, a run of its own for every call."""
    import time

    from treewright.agent.runs.episode import run_episode
    from treewright.agent.runs.loop import acting_rule_of, budget_of, evaluator_of, evidence_of, settings_of
    from treewright.search.store import TreeStore

    evaluator = evaluator_of(cfg.search, actor)
    settings = settings_of(cfg.search, run=f"{cfg.name} {time.time_ns()}", seed=cfg.seed, acting=True, peers=True)
    if cfg.search.max_tokens is None:
        settings = replace(settings, max_tokens=world.suite.max_tokens)
    with TreeStore.open(cfg.store_at) as store:
        episode = await run_episode(
            task, world.pool, actor, journal=store.journal, approve=approve,
            rule=acting_rule_of(cfg.search, evaluator), evaluator=evaluator,
            budget=budget_of(cfg.search, expansions), store=store, settings=settings, evidence=evidence_of(cfg.search),
        )  # fmt: skip
    for tree in episode.trees:
        _print_tree(tree)
    for done in episode.commits:
        console.print(f"commit: {done.next.value}: {done.reason}", markup=False, highlight=False)
        for key in done.approved:
            console.print(f"  approved: {key}", markup=False, highlight=False)


def _print_tree(tree: Any) -> None:
    from treewright.agent.view.report import render_text

    console.print(render_text(tree, console.width), markup=False, highlight=False)


def _find_task(suite: Any, split: str, which: str) -> Any:
    if which.isdigit():
        try:
            found = suite.tasks(split, int(which) + 1)
        except ValueError as error:
            raise TreewrightError(f"no task {which} in the split {split!r}: {error}") from error
        if len(found) <= int(which):
            raise TreewrightError(
                f"{suite.name} has {len(found)} tasks in the split {split!r}; there is no task {which}"
            )
        return found[int(which)]
    for kind in ("test", "train"):
        for count in (64, 1024):
            try:
                tasks = suite.tasks(kind, count)
            except ValueError:
                continue
            for task in tasks:
                if task.id == which:
                    return task
    raise TreewrightError(f"suite {suite.name!r} has no task {which!r}; give an index such as {suite.name}/0")
