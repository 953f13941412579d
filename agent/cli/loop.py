"""`treewright loop` and `treewright eval`: train from trees again and again, and measure on held-out tasks."""

from __future__ import annotations

from typing import Annotated

import typer

from treewright.agent.cli.after import tell_of_invalid, valid_share
from treewright.agent.cli.collect import tasks_of, tell_of_faults
from treewright.agent.cli.options import (
    ANEW,
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
    again,
    bar,
    console,
    go,
    names_a_run,
    read_config,
    say,
)
from treewright.agent.cli.progress import time_left, told_of_update
from treewright.agent.cli.ranks import Gpus, Processes, spread
from treewright.agent.cli.telling import Notes, tell_of_cost
from treewright.agent.cli.training import metrics_of
from treewright.agent.config import store_settings
from treewright.envs.errors import TreewrightError

__all__ = ["eval_", "loop"]

EvalName = Annotated[
    str | None, typer.Option("--name", "-n", help="A run: its worlds and its newest checkpoint are measured.")
]


def loop(
    name: Name = None,
    suites: Suites = None,
    corpus: CorpusFile = None,
    questions: QuestionFile = None,
    tasks_file: TasksFile = None,
    reward: RewardName = None,
    policy: PolicySpec = None,
    config: ConfigFile = None,
    set_: Sets = None,
    processes: Processes = None,
    gpus: Gpus = None,
) -> None:
    """Collect, train, serve the new weights, again: loop.iterations times. The same line again resumes.

    With loop.behind=1 the next round is collected while the trainer works.

      treewright loop --name first --suites kg --set loop.iterations=6 --set loop.tasks=32
      treewright loop --name other --policy vllm:seedling --set loop.behind=1
      treewright loop --name big --policy vllm:FOLDER@http://127.0.0.1:8000/v1 --gpus 8
    """
    from treewright.agent.policies.opening import loading_model
    from treewright.agent.policies.propose import open_proposer
    from treewright.agent.runs.begun import begun_with
    from treewright.agent.runs.collect import Failure, open_worlds, suites_of
    from treewright.agent.runs.collectors import crew_of
    from treewright.agent.runs.loop import (
        Learner,
        make_trainer,
        model_folder,
        open_trainer,
        resume_loop,
        rule_of,
        run_loop,
    )
    from treewright.agent.runs.pushing import push_for
    from treewright.agent.runs.ranks import following, leading
    from treewright.agent.runs.rounds import Round, untold
    from treewright.agent.runs.shared import shared_model
    from treewright.search.store import TreeStore
    from treewright.search.tree import Tree
    from treewright.training.manifest import only_trainer
    from treewright.training.progress import Progress
    from treewright.training.track import Metrics

    notes = Notes()
    cfg = read_config(name, config, set_, suites, policy, corpus, questions, tasks_file, reward)
    found = suites_of(cfg)
    rule_of(cfg.search)  # a misspelt rule is told before a model is loaded
    spread(processes, gpus)
    if following(lambda: open_trainer(cfg)):
        return
    folder = cfg.home / "checkpoints"

    async def work(metrics: Metrics) -> None:
        source = model_folder(cfg.policy.spec)
        store_settings(cfg, begun_with(cfg.seed))
        with loading_model(source):
            learner = Learner(make_trainer(cfg, source), folder, cfg.loop.checkpoints, cfg.policy.spec)
        if learner.trainer.chosen:
            say(learner.trainer.chosen)
        if getattr(learner.trainer, "ranks", None) is None:  # many processes go on from their checkpoints
            learner.trainer.progress = Progress(folder, cfg.train.save_every, say)
        with leading(learner.trainer):
            await rounds(metrics, learner)

    async def rounds(metrics: Metrics, learner: Learner) -> None:
        actor = open_proposer(cfg.policy, shared_model(cfg, learner.trainer))
        learner.push = await push_for(cfg, learner.trainer, actor, say)
        first = await resume_loop(cfg, learner, actor)
        if first:
            console.print(f"going on from {learner.saved} with iteration {first + 1}")
            if (lost := untold(folder, learner.trainer.versions)) is not None and not metrics.holds(lost.step):
                metrics.log(lost)
        store, crew, finished = TreeStore.open(cfg.store_at), crew_of(cfg), False
        try:
            async with open_worlds(found, cfg.worlds.sessions or None, cfg.worlds.deadline) as worlds:
                each = sum(cfg.loop.suite_tasks.get(suite, cfg.loop.tasks) for suite in worlds)
                total = max(cfg.loop.iterations - first, 0) * each
                with bar("exploring", total) as advance:
                    took: list[float] = []

                    def note(done: Round) -> None:
                        took.append(done.seconds)
                        left = time_left(took, cfg.loop.iterations - 1 - done.index)
                        say(told_of_update(done.index + 1, done.success, done.stats, done.seconds, left))
                        metrics.log(done.update(learner.trainer.steps))

                    def grown(done: Tree | Failure) -> None:
                        advance(done)
                        if isinstance(done, Tree):
                            notes.add(done)

                    await run_loop(cfg, worlds, actor, learner, store, first, grown, note, crew)
                finished = True
        finally:
            if crew is not None:
                crew.close(finished)
            store.close()
            if learner.push is not None:
                await learner.push.close()
            await actor.close()
        notes.tell()
        if total == 0:
            say(
                f"all {cfg.loop.iterations} iterations are done; more: {again(cfg, 'loop')} "
                f"--set loop.iterations={first + 4}"
            )
        if learner.saved is not None:
            say(f"saved {learner.saved}; next: {again(cfg, 'eval')}")

    with only_trainer(folder, cfg.name), metrics_of(cfg) as metrics:
        go(lambda: work(metrics))


def eval_(
    name: EvalName = None,
    tasks: Annotated[int | None, typer.Option(min=1, help="Held-out tasks per suite; eval.tasks, or 100.")] = None,
    expansions: Annotated[
        int | None, typer.Option(help="0: the policy alone; else the search's expansions. eval.expansions, or 0.")
    ] = None,
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
    """Success on held-out tasks, of the policy alone or with search. Search never sees the reward.

    treewright eval --name first
    treewright eval --suites kg --policy hf:runs/first/checkpoints/step-000012
    """
    from rich.table import Table

    from treewright.agent.policies.propose import open_proposer
    from treewright.agent.runs.collect import open_worlds, suites_of
    from treewright.agent.runs.evaluate import evaluate, without_result
    from treewright.agent.runs.loop import acting_rule_of, budget_of, evaluator_of, evidence_of, settings_of
    from treewright.agent.runs.newest import acting_config, serve_newest
    from treewright.search.meter import metering

    named = names_a_run(name, config, set_)
    given = (suites, policy, corpus, questions, tasks_file, reward)
    cfg = read_config(name, config, set_, *given, remember=named)
    found = suites_of(cfg)
    acting_rule_of(cfg.search)  # a misspelt rule is told before a model is loaded
    many = cfg.eval.tasks if tasks is None else tasks
    effort = cfg.eval.expansions if expansions is None else expansions

    async def work() -> None:
        async with open_worlds(found, cfg.worlds.sessions or None, cfg.worlds.deadline) as worlds:
            todo = tasks_of(worlds, cfg.eval.split, 0, many)
            for suite, world in worlds.items():
                there = sum(task.suite == suite for task in todo)
                if there < many and (tasks is not None or "tasks" in cfg.eval.model_fields_set):
                    say(f"{world.suite.name} has {there} tasks in the split {cfg.eval.split!r}, not {many}")
            actor = open_proposer((acting_config(cfg, say) if named else cfg).policy)
            try:
                if named:
                    await serve_newest(cfg, actor)
                with bar("evaluating", len(todo)) as advance, metering() as spent:
                    evaluator = evaluator_of(cfg.search, actor)
                    results, trees = await evaluate(
                        todo, worlds, actor, rule=acting_rule_of(cfg.search, evaluator), evaluator=evaluator,
                        budget=budget_of(cfg.search, effort), evidence=evidence_of(cfg.search),
                        settings=settings_of(cfg.search, run="eval", seed=cfg.seed, acting=True, peers=True),
                        concurrency=cfg.search.trees, on_tree=advance,
                    )  # fmt: skip
            finally:
                await actor.close()
        Notes(trees).tell()
        tell_of_faults(trees)
        table = Table("suite", "tasks", "success", "oracle pick", "valid draws", "tokens", "env steps")
        for one in results.values():
            table.add_row(
                one.suite, f"{len(one.tasks)}", _share(one.rate), _share(one.oracle_pick),
                _share(valid_share([t for t in trees if t.task.suite == one.suite])),
                f"{one.tokens}", f"{one.env_steps}",
            )  # fmt: skip
        console.print(table)
        tell_of_cost(spent.total(), json, suites={name: one.figures() for name, one in results.items()})
        tell_of_invalid(trees)
        for one in results.values():
            if one.faults:
                told = f"{one.suite}: {one.faults} trees met a lasting fault"
                told += f", {one.lost} of them before any episode ended: these are left out" if one.lost else ""
                console.print(told, highlight=False, soft_wrap=True)
            if one.unknown:
                told = f"{one.suite}: of {one.unknown} tasks the reward is not known: these are left out"
                console.print(told, highlight=False, soft_wrap=True)
        if causes := without_result(trees):
            raise TreewrightError("\n".join([*causes, "mend that and type the same line again"]))

    go(work, ANEW)


def _share(rate: float) -> str:
    return "–" if rate != rate else f"{100 * rate:.1f} %"
