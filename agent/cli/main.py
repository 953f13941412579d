"""The command line: `treewright run|collect|train|loop|eval|show|demo|bench`. Heavy packages load when needed."""

from __future__ import annotations

import errno
import gc
import io
import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from treewright.agent.cli.bench import bench
from treewright.agent.cli.data import export_command, import_command
from treewright.agent.cli.options import (
    ConfigFile,
    CorpusFile,
    Name,
    PolicySpec,
    QuestionFile,
    Sets,
    Suites,
    bar,
    console,
    go,
    read_config,
)
from treewright.agent.cli.plans import plans_command
from treewright.agent.cli.store import compare_command, store_app
from treewright.agent.cli.train import train_app
from treewright.agent.cli.view import report_command, view_command
from treewright.envs.errors import TreewrightError

if TYPE_CHECKING:
    from treewright.agent.config import Config
    from treewright.agent.runs.collect import World
    from treewright.envs.types import Task
    from treewright.search.tree import Tree

__all__ = ["app", "main"]

app = typer.Typer(
    help="Tree search with safe backtracking for agents, exact tree datasets, training from tree rollouts.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.command()
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

    suite, _, which = task.partition("/")
    chosen = None if any("worlds.suites" in s for s in set_ or ()) else suite
    settings = read_config(name, config, set_, chosen, policy)
    suites = suites_of(settings)
    acting_rule_of(settings.search)  # a misspelt rule is told before a model is loaded
    if expansions is None:
        told = settings.search.expansions if "expansions" in settings.search.model_fields_set else None
        expansions = 12 if told is None else told

    async def work() -> None:
        async with open_worlds(suites, settings.worlds.sessions or None, settings.worlds.deadline) as w:
            world = next(iter(w.values()))
            chosen_task = _find_task(world.suite, split, which or "0")
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
    from treewright.agent.runs.loop import acting_rule_of, evaluator_of

    _, trees = await evaluate(
        [task], {world.suite.name: world}, actor, expansions=expansions, draws=cfg.search.draws,
        root_draws=cfg.search.root_draws, rule=acting_rule_of(cfg.search), evaluator=evaluator_of(cfg.search, actor),
        seed=cfg.seed, peers=cfg.search.peers,
    )  # fmt: skip
    for tree in trees:
        _print_tree(tree)


async def _run_live(cfg: Config, world: Any, task: Any, actor: Any, expansions: int, approve: str) -> None:
    """The journal needs a store: runs/NAME/trees.sqlite, a run of its own for every call."""
    import time

    from treewright.agent.runs.episode import run_episode
    from treewright.agent.runs.evaluate import acting_rule
    from treewright.agent.runs.loop import acting_rule_of, evaluator_of
    from treewright.search.engine import Settings
    from treewright.search.store import TreeStore
    from treewright.search.types import Budget

    evaluator = evaluator_of(cfg.search, actor)
    usual = acting_rule(evaluator, cfg.search.draws, cfg.search.root_draws)
    with TreeStore.open(cfg.store_path) as store:
        episode = await run_episode(
            task, world.pool, actor, journal=store.journal, approve=approve, rule=acting_rule_of(cfg.search) or usual,
            evaluator=evaluator, budget=Budget(expansions=expansions), store=store,
            settings=Settings(
                run=f"{cfg.name} {time.time_ns()}", seed=cfg.seed, max_tokens=cfg.search.max_tokens,
                peers=cfg.search.peers,
            ),
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


@app.command()
def collect(
    name: Name = None,
    tasks: Annotated[int, typer.Option(min=1, help="Tasks per suite.")] = 24,
    batch: Annotated[int, typer.Option(min=0, help="Which batch of that many tasks: 0 begins with the first.")] = 0,
    split: Annotated[str, typer.Option(help="train or test")] = "train",
    workers: Annotated[
        str | None, typer.Option(help="Processes that lease tasks from --url: a number, or ray://HOST:PORT?workers=N.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="With --workers: postgresql://USER@HOST/NAME.")] = None,
    suites: Suites = None,
    corpus: CorpusFile = None,
    questions: QuestionFile = None,
    policy: PolicySpec = None,
    config: ConfigFile = None,
    set_: Sets = None,
) -> None:
    """Grow one tree per task into runs/NAME/trees.sqlite. The same line again resumes what was interrupted.

    treewright collect --name first --suites kg,stdlib --tasks 100
    """
    from dataclasses import replace

    from treewright.agent.policies.propose import open_proposer
    from treewright.agent.runs.collect import collect as grow
    from treewright.agent.runs.collect import open_worlds, suites_of
    from treewright.agent.runs.loop import budget_of, evaluator_of, rates_of, rule_of, settings_of
    from treewright.search.store import TreeStore

    cfg = read_config(name, config, set_, suites, policy, corpus, questions)
    if workers is not None or url is not None:
        _collect_by_workers(cfg, workers, url, tasks, batch, split)
        return
    found, rule = suites_of(cfg), rule_of(cfg.search, rates_of(cfg))

    async def work() -> None:
        async with open_worlds(found, cfg.worlds.sessions or None, cfg.worlds.deadline) as worlds:
            todo = _tasks(worlds, split, batch, tasks)
            with TreeStore.open(cfg.store_path) as store, bar("collecting", len(todo)) as advance:
                actor = open_proposer(cfg.policy)
                try:
                    trees = await grow(
                        todo, worlds, actor, rule=rule, budget=budget_of(cfg.search),
                        settings=replace(settings_of(cfg.search, run=cfg.name, seed=cfg.seed), peers=cfg.search.peers),
                        evaluator=evaluator_of(cfg.search, actor), store=store, concurrency=cfg.search.trees,
                        on_tree=advance,
                    )  # fmt: skip
                finally:
                    await actor.close()
        _summarise(trees)
        _tell_of_others(trees, rule.name)
        _tell_of_faults(trees, cfg.store_path)
        console.print(f"stored in {cfg.store_path}; next: treewright train --name {cfg.name}", soft_wrap=True)

    go(work)


def _collect_by_workers(cfg: Config, workers: str | None, url: str | None, tasks: int, batch: int, split: str) -> None:
    from treewright.agent.runs.workers import collect_with_workers

    if workers is None or url is None:
        raise TreewrightError("--workers and --url go together: --workers 8 --url postgresql://USER@HOST/NAME")
    counts = collect_with_workers(cfg, url, workers, tasks=tasks, batch=batch, split=split)
    console.print("  ".join(f"{name} {count}" for name, count in counts.items()))


def _summarise(trees: list[Any]) -> None:
    from rich.table import Table

    table = Table("suite", "trees", "exact", "nodes", "tokens", "steps", "solved by some leaf")
    for suite in dict.fromkeys(t.task.suite for t in trees):
        mine = [t for t in trees if t.task.suite == suite]
        solved = sum(any(t.outcome_of(i) >= 1 - 1e-6 for i in t.leaves()) for t in mine)
        table.add_row(
            suite,
            f"{len(mine)}",
            f"{sum(t.exact for t in mine)}",
            f"{sum(map(len, mine))}",
            f"{sum(t.spent.policy_tokens + t.spent.closing_tokens for t in mine)}",
            f"{sum(t.spent.env_steps + t.spent.closing_steps for t in mine)}",
            f"{100 * solved / len(mine):.0f} %",
        )
    console.print(table)


def _tasks(worlds: Mapping[str, World], split: str, batch: int, many: int) -> list[Task]:
    """The tasks asked for, each once: a suite that has fewer begins again. Raises TreewrightError for a wrong split."""
    from treewright.agent.runs.loop import tasks_for

    try:
        found = tasks_for(worlds, split, batch, many)
    except ValueError as error:
        raise TreewrightError(f"no tasks: {error}") from error
    return list({(task.suite, task.id): task for task in found}.values())


def _tell_of_others(trees: Sequence[Tree], rule: str) -> None:
    """Finished trees are not grown again; that is said where they were grown by another rule than this line's."""
    others = Counter(name for t in trees if (name := str(t.header.settings.get("rule"))) != rule)
    for name, count in others.items():
        told = f"{count} of these trees were there already, grown by {name}; for trees by {rule} use another --name"
        console.print(told, markup=False, highlight=False, soft_wrap=True)


def _tell_of_faults(trees: Sequence[Tree], store: Path | None = None) -> None:
    """What kept worlds from coming up, and how to grow those trees anew. Raises TreewrightError if none came up."""
    from treewright.agent.view.report import clean

    def brief(fault: str) -> str:  # a browser's goes on with its whole log
        return next((line.strip()[:300] for line in fault.splitlines() if line.strip()), fault)

    causes = Counter(f"{t.task.suite}: {brief(clean(t.fault[0]))}" for t in trees if t.fault[0] is not None)
    if not causes:
        return
    lines = [f"{count} of {len(trees)} trees never began, {cause}" for cause, count in causes.most_common(5)]
    if store is not None:  # what is finished is not grown again, so these must go first
        again = f"treewright store delete {shlex.quote(str(store))} -w status=done -w 'nodes<2' --yes"
        lines.append(f"mend that, then type: {again}\nand this line again")
    told = "\n".join(lines)
    if causes.total() == len(trees):
        raise TreewrightError(told)
    console.print(told, markup=False, highlight=False, soft_wrap=True)


@app.command()
def loop(
    name: Name = None,
    suites: Suites = None,
    corpus: CorpusFile = None,
    questions: QuestionFile = None,
    policy: PolicySpec = None,
    config: ConfigFile = None,
    set_: Sets = None,
) -> None:
    """Collect, train, serve the new weights, again: loop.iterations times. The same line again resumes.

    With loop.behind=1 the next round is collected while the trainer works.

      treewright loop --name first --suites kg --set loop.iterations=6 --set loop.tasks=32
      treewright loop --name other --policy vllm:seedling --set loop.behind=1
    """
    from treewright.agent.policies.opening import loading_model, open_policy
    from treewright.agent.runs.collect import open_worlds, suites_of
    from treewright.agent.runs.loop import Learner, Round, make_trainer, model_folder, resume_loop, rule_of, run_loop
    from treewright.search.store import TreeStore

    cfg = read_config(name, config, set_, suites, policy, corpus, questions)
    found = suites_of(cfg)
    rule_of(cfg.search)  # a misspelt rule is told before a model is loaded

    async def work() -> None:
        source = model_folder(cfg.policy.spec)
        with loading_model(source):
            learner = Learner(make_trainer(cfg, source), cfg.home / "checkpoints", cfg.loop.keep)
        actor = open_policy(cfg.policy.spec, **cfg.policy.options)
        first = await resume_loop(cfg, learner, actor)
        if first:
            console.print(f"going on from {learner.saved} with iteration {first + 1}")
        store = TreeStore.open(cfg.store_path)
        try:
            async with open_worlds(found, cfg.worlds.sessions or None, cfg.worlds.deadline) as worlds:
                each = sum(cfg.loop.suite_tasks.get(suite, cfg.loop.tasks) for suite in worlds)
                total = max(cfg.loop.iterations - first, 0) * each
                with bar("exploring", total) as advance:

                    def note(done: Round) -> None:
                        rates = "  ".join(f"{k} {100 * v:.0f}%" for k, v in done.success.items())
                        console.print(f"iteration {done.index + 1}: {rates}  ({done.seconds:.1f} s)")

                    await run_loop(cfg, worlds, actor, learner, store, first, advance, note)
        finally:
            store.close()
            await actor.close()
        if total == 0:
            console.print(f"all {cfg.loop.iterations} iterations are done; more: --set loop.iterations={first + 4}")
        if learner.saved is not None:
            console.print(f"saved {learner.saved}; next: treewright eval --policy hf:{learner.saved}", soft_wrap=True)

    go(work)


@app.command("eval")
def eval_(
    tasks: Annotated[int | None, typer.Option(min=1, help="Held-out tasks per suite; eval.tasks, or 100.")] = None,
    expansions: Annotated[
        int | None, typer.Option(help="0: the policy alone; else the search's expansions. eval.expansions, or 0.")
    ] = None,
    suites: Suites = None,
    corpus: CorpusFile = None,
    questions: QuestionFile = None,
    policy: PolicySpec = None,
    config: ConfigFile = None,
    set_: Sets = None,
) -> None:
    """Success on held-out tasks, of the policy alone or with search. Search never sees the reward.

    treewright eval --suites kg --policy hf:runs/first/checkpoints/step-000012
    """
    from rich.table import Table

    from treewright.agent.policies.propose import open_proposer
    from treewright.agent.runs.collect import open_worlds, suites_of
    from treewright.agent.runs.evaluate import evaluate
    from treewright.agent.runs.loop import acting_rule_of, evaluator_of

    cfg = read_config(None, config, set_, suites, policy, corpus, questions)
    found, rule = suites_of(cfg), acting_rule_of(cfg.search)
    many = cfg.eval.tasks if tasks is None else tasks
    effort = cfg.eval.expansions if expansions is None else expansions

    async def work() -> None:
        async with open_worlds(found, cfg.worlds.sessions or None, cfg.worlds.deadline) as worlds:
            todo = _tasks(worlds, cfg.eval.split, 0, many)
            actor = open_proposer(cfg.policy)
            try:
                with bar("evaluating", len(todo)) as advance:
                    results, trees = await evaluate(
                        todo, worlds, actor, expansions=effort, draws=cfg.search.draws,
                        root_draws=cfg.search.root_draws, rule=rule,
                        evaluator=evaluator_of(cfg.search, actor), seed=cfg.seed, peers=cfg.search.peers,
                        on_tree=advance,
                    )  # fmt: skip
            finally:
                await actor.close()
        _tell_of_faults(trees)
        table = Table("suite", "tasks", "success", "oracle pick", "tokens", "env steps")
        for one in results.values():
            table.add_row(
                one.suite, f"{len(one.tasks)}", f"{100 * one.rate:.1f} %", f"{100 * one.oracle_pick:.1f} %",
                f"{one.tokens}", f"{one.env_steps}",
            )  # fmt: skip
        console.print(table)
        for one in results.values():
            if one.faults:
                told = f"{one.suite}: {one.faults} trees met a lasting fault"
                told += f", {one.lost} of them before any episode ended: these are left out" if one.lost else ""
                console.print(told, highlight=False, soft_wrap=True)

    go(work)


@app.command()
def show(
    name: Name = None,
    tree: Annotated[str | None, typer.Argument(help="Tree id or its beginning; none lists the trees.")] = None,
    suite: Annotated[str | None, typer.Option(help="Only trees of this suite.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the trees as one HTML page.")] = None,
    most: Annotated[int, typer.Option(help="Most trees to list or to write.")] = 20,
) -> None:
    """List the trees of a run, print one, or write them as a page.

    treewright show --name first
    treewright show 3fa9 --name first
    treewright show --name first --html trees.html
    """
    from rich.table import Table

    from treewright.agent.view.report import render_text, write_report
    from treewright.search.store import TreeStore

    cfg = read_config(name, None, None, None, None)
    if not cfg.store_path.exists():
        raise TreewrightError(f"no store at {cfg.store_path}; type: treewright collect --name {cfg.name}")
    store = TreeStore.open(cfg.store_path, read_only=True)
    try:
        rows = [r for r in store.trees(suite=suite) if tree is None or r.tree_id.startswith(tree)]
        if not rows:
            raise TreewrightError(f"no tree of run {cfg.name!r} matches; type: treewright show --name {cfg.name}")
        if html is not None:
            write_report(html, [store.load(r.tree_id) for r in rows[:most]], f"trees of {cfg.name}")
            console.print(f"wrote {html}")
        elif tree is not None:
            for row in rows[:most]:
                console.print(render_text(store.load(row.tree_id), console.width), markup=False, highlight=False)
        else:
            table = Table("tree", "suite", "task", "status", "nodes", "success", "exact")
            for row in rows[:most]:
                exact = "yes" if not row.reasons else "; ".join(row.reasons)
                table.add_row(
                    row.tree_id[:8], row.suite, row.task_id, row.status, f"{row.nodes}",
                    "–" if row.success is None else f"{row.success:g}", exact,
                )  # fmt: skip
            console.print(table)
            if len(rows) > most:
                console.print(f"{len(rows) - most} more; --most {len(rows)} shows all")
    finally:
        store.close()


@app.command()
def config() -> None:
    """Print the whole configuration with its defaults, ready to be saved as TOML."""
    from treewright.agent.config import Config, to_toml

    console.print(to_toml(Config()), markup=False, highlight=False)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="For its files; an earlier demo there is removed.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option(help="A few tasks: shows that it works, measures nothing.")] = False,
    set_: Sets = None,
) -> None:
    """The whole line in a few minutes on a CPU: explore, store, credit, train, and a table before and after."""
    from treewright.agent.runs.demo import PLAN, QUICK, demo_config, fresh, run_demo

    cfg = demo_config(folder, [*(QUICK.settings if quick else ()), *(set_ or [])])
    fresh(folder)
    go(lambda: run_demo(cfg, QUICK.plan if quick else PLAN, console))


@app.command()
def seedling(
    folder: Annotated[Path, typer.Argument(help="Where the model goes, in save_pretrained layout.")],
    suites: Annotated[str, typer.Option(help="Suites it learns, comma separated.")] = "kg,stdlib,workbench,market",
    work: Annotated[Path, typer.Option(help="Demonstrations and checkpoints; the same line resumes.")] = Path(
        "runs/seedling"
    ),
    threads: Annotated[int, typer.Option(help="Threads of the training.")] = 2,
) -> None:
    """Rebuild the small packaged model from nothing: demonstrations, tokenizer, training, held-out success.

    treewright seedling my-seedling && treewright eval --policy seedling:my-seedling
    """
    from treewright.agent.seedling.build import build_seedling

    build_seedling(folder, [s.strip() for s in suites.split(",")], work=work, threads=threads, say=console.print)


app.command()(bench)
app.add_typer(train_app, name="train")
app.command("plans")(plans_command)
app.command("export")(export_command)
app.command("import")(import_command)
app.command("view")(view_command)
app.command("report")(report_command)
app.command("compare")(compare_command)
app.add_typer(store_app, name="store")


def main() -> None:
    """Entry point of the console script: errors made for people are shown as one line, without a trace."""
    # Trees are many small objects that stay: by default the collector visits them again and again, a sixth of the time.
    gc.set_threshold(20_000, 20, 20)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no such sign shows another, and nothing fails
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # loading and saving a model need no bar beside ours
    try:
        app()
    except TreewrightError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in DISK or error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}; give another place, or make room and type the same line again")


DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR, errno.ENOENT)


def _fail(why: str) -> NoReturn:
    from rich.text import Text

    # As text, not as markup: a hint such as 'treewright[data]' must stay whole.
    told = Text.assemble(("error: ", "red"), why)
    Console(stderr=True).print(told, highlight=False, soft_wrap=True)
    raise SystemExit(2) from None
