"""`treewright run`: search one task, print the tree, commit what is approved in a live world."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treewright.agent.cli.collect import tell_of_faults
from treewright.agent.cli.options import (
    ConfigFile,
    CorpusFile,
    Name,
    PolicySpec,
    QuestionFile,
    RewardName,
    Sets,
    TasksFile,
    console,
    go,
    names_a_run,
    read_config,
    say,
)
from treewright.agent.cli.telling import Notes
from treewright.envs.errors import TreewrightError

if TYPE_CHECKING:
    from pathlib import Path

    from treewright.agent.config import Config
    from treewright.envs.types import Suite, Task
    from treewright.search.tree import Tree


__all__ = ["run"]

SPLITS = ("test", "train")
WHOLE_FILE = 1 << 20  # tasks: more than a file of own ones has


def run(
    task: Annotated[str, typer.Argument(help="SUITE/INDEX or SUITE/ID: kg/3, mymodule:Desk/3, own/3 with own tasks.")],
    expansions: Annotated[
        int | None,
        typer.Option(help="Expansions of the search; 0 lets the policy act alone. search.expansions, or 12."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split an INDEX counts in: train or test. test, or train where there is no other."),
    ] = None,
    approve: Annotated[str, typer.Option(help="In a live world: never | ask | module:function.")] = "never",
    in_doubt: Annotated[
        str | None,
        typer.Option(help="What became of a call that was sent and never answered: happened | never. You looked."),
    ] = None,
    corpus: CorpusFile = None,
    questions: QuestionFile = None,
    tasks_file: TasksFile = None,
    reward: RewardName = None,
    policy: PolicySpec = None,
    config: ConfigFile = None,
    set_: Sets = None,
    name: Name = None,
) -> None:
    """Search one task and print the tree.

    The chosen path is marked; the reward is what the world's own check said, which the search did not see. In a live
    world the chosen path is then executed, irreversible actions only as far as --approve lets them. Where that was
    killed after a committed action, the same line goes on from there; nothing committed is sent again.

      treewright run kg/3
      treewright run maze/0 --policy scripted:mymodule:walker
    """
    from treewright.agent.policies.propose import open_proposer
    from treewright.agent.runs.collect import open_worlds, suites_of
    from treewright.agent.runs.loop import acting_rule_of
    from treewright.agent.runs.newest import acting_config, serve_newest
    from treewright.envs.spelling import split_task

    if in_doubt not in (None, "happened", "never"):
        raise TreewrightError(f"--in-doubt {in_doubt!r}: it is happened or never")
    given = (policy, corpus, questions, tasks_file, reward)
    named = names_a_run(name, config, set_)
    settings = read_config(name, config, set_, None, *given, remember=named)
    suite, which = split_task(task, _own_ids(task, settings.worlds.tasks_file))
    own = settings.worlds.tasks_file is not None or settings.worlds.questions is not None
    if not any("worlds.suites" in s for s in set_ or ()) and not (own and suite == "own"):
        settings = read_config(name, config, set_, [suite], *given, remember=named)
    suites = suites_of(settings)
    acting_rule_of(settings.search)  # a misspelt rule is told before a model is loaded
    if expansions is None:
        told = settings.search.expansions if "expansions" in settings.search.model_fields_set else None
        expansions = 12 if told is None else told

    over: list[str] = []

    async def work() -> None:
        async with open_worlds(suites, settings.worlds.sessions or None, settings.worlds.deadline) as w:
            world = next(iter(w.values()))
            chosen_task = _find_task(world.suite, split, which)
            actor = open_proposer((acting_config(settings, say) if named else settings).policy)
            try:
                if named:
                    await serve_newest(settings, actor)
                async with world.pool.lease("") as session:
                    live = not session.env.sandboxed
                if live:
                    await _run_live(settings, world, chosen_task, actor, expansions, approve, in_doubt, over)
                else:
                    await _run_searched(settings, world, chosen_task, actor, expansions)
            finally:
                await actor.close()

    go(work, over=lambda: bool(over))


async def _run_searched(cfg: Config, world: Any, task: Any, actor: Any, expansions: int) -> None:
    import time

    from treewright.agent.runs.evaluate import evaluate, without_result
    from treewright.agent.runs.loop import acting_rule_of, budget_of, evaluator_of, evidence_of, settings_of
    from treewright.search.store import TreeStore

    evaluator = evaluator_of(cfg.search, actor)
    order = acting_rule_of(cfg.search, evaluator)
    run = f"{cfg.name} {time.time_ns()}"  # a run of its own, so that the same line again searches again
    with TreeStore.open(cfg.store_at) as store:
        _, trees = await evaluate(
            [task], {world.suite.name: world}, actor, rule=order, evaluator=evaluator,
            budget=budget_of(cfg.search, expansions), evidence=evidence_of(cfg.search), store=store,
            settings=settings_of(cfg.search, run=run, seed=cfg.seed, acting=True, peers=True),
        )  # fmt: skip
    for tree in trees:
        _print_tree(tree)
        if order.tells is not None and expansions:
            say(order.tells(tree))
        say(f"stored in {cfg.store_at}; to look at it: treewright view {shlex.quote(cfg.store_at)}")
    _tell(trees)
    if causes := without_result(trees):
        raise TreewrightError("\n".join([*causes, "mend that and type the same line again"]))


async def _run_live(
    cfg: Config,
    world: Any,
    task: Any,
    actor: Any,
    expansions: int,
    approve: str,
    in_doubt: str | None,
    over: list[str],
) -> None:
    """The journal needs a store: runs/NAME/trees.sqlite, a run of its own for every episode.

    over  gets the run of an episode that has ended by itself, once all was told
    """
    import time

    from treewright.agent.runs.collect import settings_in
    from treewright.agent.runs.episode import committed_calls, run_episode, settle, unfinished
    from treewright.agent.runs.evaluate import without_result
    from treewright.agent.runs.loop import acting_rule_of, budget_of, evaluator_of, evidence_of, settings_of
    from treewright.search.rules import chains
    from treewright.search.store import TreeStore

    evaluator = evaluator_of(cfg.search, actor)
    with TreeStore.open(cfg.store_at) as store:
        run = unfinished(store, cfg.name, task) or f"{cfg.name} {time.time_ns()}"
        for key in await settle(store, run, None if in_doubt is None else in_doubt == "happened"):
            say(f"sent before and never answered, find out whether it happened; it is not sent again: {key}")
        if committed := committed_calls(store, run):
            say(f"going on after {committed} committed call(s) of an episode that was cut off; they are not made again")
        settings = settings_of(cfg.search, run=run, seed=cfg.seed, acting=True, peers=True)
        settings = settings_in(world.suite, settings)
        alone = expansions == 0
        episode = await run_episode(
            task, world.pool, actor, journal=store.journal, approve=approve,
            rule=chains(1) if alone else acting_rule_of(cfg.search, evaluator),
            evaluator=None if alone else evaluator,
            budget=budget_of(cfg.search, expansions), store=store, evidence=evidence_of(cfg.search),
            settings=replace(settings, close=True, peers=0) if alone else settings,
        )  # fmt: skip
        causes = without_result(episode.trees[-1:])
        doubtful = _print_episode(episode)
        if not causes and not doubtful:
            # First told, then ended: typed again after a kill in between, the line says once more what was done. The
            # other way round it would begin another episode. It is written by the store's own thread, which closing
            # the store waits for, and whoever stops the command from here on has been told all.
            console.file.flush()
            over.append(run)
            await store.end_run(run)
    if causes:
        raise TreewrightError("\n".join([*causes, "mend that and type the same line again"]))


def _print_episode(episode: Any) -> bool:
    """The trees of a live episode and what was committed. True if a call is in doubt, with the words that settle it."""
    from treewright.search.commit import Next

    for tree in episode.trees:
        _print_tree(tree)
    Notes(episode.trees).tell()
    for done in episode.commits:
        console.print(f"commit: {done.next.value}: {done.reason}", markup=False, highlight=False)
        for key in done.approved:
            console.print(f"  approved: {key}", markup=False, highlight=False)
    if not episode.commits or episode.commits[-1].next is not Next.SETTLE:
        return False
    for entry in episode.commits[-1].in_doubt:
        console.print(f"  in doubt: {entry.action_key}", markup=False, highlight=False)
    say("find out whether it happened, then type the same line with --in-doubt happened, or --in-doubt never")
    return True


def _tell(trees: Sequence[Tree]) -> None:
    """What is to be said of trees beside themselves. Raises TreewrightError if the world never came up."""
    Notes(trees).tell()
    tell_of_faults(trees)


def _print_tree(tree: Any) -> None:
    from treewright.agent.view.report import render_text

    console.print(render_text(tree, console.width), markup=False, highlight=False)


def _own_ids(task: str, tasks_file: Path | None) -> list[str]:
    """Ids of the tasks file, where SUITE is a command: without them nobody can tell where it ends."""
    from treewright.envs.custom import load_tasks

    if tasks_file is None or not task.startswith(("agent:", "mcp:")):
        return []
    return [one.id for one in load_tasks(tasks_file, "own")]


def _find_task(suite: Suite, split: str | None, which: str) -> Task:
    """The task of that id, or of that index in the split (test, or train where there is no other).

    Where tasks are somebody's own, an id that is a number goes before the index, in the split if one is named. Ids of
    own questions may be written as their file has them, but for numbers, which may be those of its lines. Raises
    TreewrightError where there is no such task.
    """
    refused: list[TreewrightError] = []
    if which.isdigit():
        if _is_own(suite) and (found := _of_id(suite, (split,) if split else SPLITS, which, refused)) is not None:
            return found
        try:
            return _at(suite, split or "test", int(which))
        except TreewrightError:
            if split is not None or not _has(suite, "train") or _has(suite, "test"):
                raise
            return _at(suite, "train", int(which))
    if (found := _of_id(suite, SPLITS, which, refused)) is not None:
        return found
    if len(refused) == 2:  # it has no tasks at all, and says why
        raise refused[0]
    raise TreewrightError(f"suite {suite.name!r} has no task {which!r}; give an index such as {suite.name}/0")


def _is_own(suite: Suite) -> bool:
    """Its tasks come from a file or a module of the user's: their ids are, too."""
    from treewright.envs.registry import BUILT_IN, SCHEMES

    scheme = suite.name.partition(":")[0]
    return bool(suite.origin) or scheme == "web" or scheme not in {*BUILT_IN, *SCHEMES}


def _of_id(suite: Suite, splits: Sequence[str], which: str, refused: list[TreewrightError]) -> Task | None:
    """The task of that id; of own questions also by the id that their file has. `refused` gets what has no tasks."""
    theirs: Task | None = None
    for kind in splits:
        for count in (WHOLE_FILE,) if suite.origin else (64, 1024):
            try:
                tasks = _listed(suite, kind, count)
            except ValueError:
                continue
            except TreewrightError as error:
                refused.append(error)
                break
            for task in tasks:
                if task.id == which:
                    return task
                if theirs is None and suite.origin and not which.isdigit() and task.id == f"{suite.name}-{which}":
                    theirs = task
    return theirs


def _listed(suite: Suite, split: str, count: int) -> Sequence[Task]:
    """The first tasks of a split, all of them where there are fewer."""
    from treewright.agent.runs.setup import size_of

    try:
        return suite.tasks(split, count)
    except ValueError:
        return suite.tasks(split, size_of(suite.tasks, split))


def _at(suite: Suite, split: str, index: int) -> Task:
    try:
        found = suite.tasks(split, index + 1)
    except ValueError as error:
        raise TreewrightError(f"no task {index} in the split {split!r}: {error}; take a smaller number") from error
    if len(found) <= index:
        raise TreewrightError(f"{suite.name} has {len(found)} tasks in the split {split!r}; there is no task {index}")
    return found[index]


def _has(suite: Suite, split: str) -> bool:
    try:
        return bool(suite.tasks(split, 1))
    except (ValueError, TreewrightError):
        return False
