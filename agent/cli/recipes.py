"""`treewright train NAME`: recipes beside the update from credit."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from treewright.agent.cli.after import collect_anew
from treewright.agent.cli.options import (
    ANEW,
    ConfigFile,
    Name,
    PolicySpec,
    Sets,
    Suites,
    TasksFile,
    again,
    console,
    go,
    number,
    resumable,
    say,
)
from treewright.agent.cli.training import Run, growing, open_run, show_stats
from treewright.agent.cli.usable import in_own_tokens
from treewright.envs.errors import TreewrightError

__all__ = ["RECIPES"]

OneSuite = Annotated[str | None, typer.Option("--suite", help="Only trees of this suite.")]
Split = Annotated[str, typer.Option(help="Only trees of this split.")]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the data.")]
MinOutcome = Annotated[float, typer.Option(help="Least return of a path that counts as good.", callback=number)]
SOLVED = 1.0 - 1e-6


def sft(
    name: Name = None,
    policy: PolicySpec = None,
    config: ConfigFile = None,
    set_: Sets = None,
    suite: OneSuite = None,
    split: Split = "train",
    paths: Annotated[str, typer.Option(help="best | chosen | all paths of a tree")] = "best",
    min_outcome: MinOutcome = SOLVED,
    epochs: Epochs = 1,
    suites: Suites = None,
    demos: Annotated[int, typer.Option(min=1, help="With --suites: demonstrations per suite.")] = 200,
    rate: Annotated[
        float | None, typer.Option(help="With --suites: the highest learning rate; else by size.", callback=number)
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="With --suites: demonstrations of one step.")] = 8,
    held_out: Annotated[
        int, typer.Option(min=0, help="With --suites: test tasks measured before and after; 0: none.")
    ] = 32,
    head: Annotated[
        str, typer.Option(help="Text that is read in front of each response and never trained on, see train ping.")
    ] = "",
    requests: Annotated[
        Path | None, typer.Option("--refusals", help="Harmful requests, one a line: check refusing before and after.")
    ] = None,
) -> None:
    """Imitate the good paths of stored trees (best-path SFT), or, with --suites, what the suites' oracles do.

    Trees of any weights and imported conversations will do. Oracles need no trees: they play training tasks, and their
    episodes are written in the policy's own template.

      treewright train sft --name first --epochs 2
      treewright train sft --name begun --suites kg,workbench --demos 200 --policy hf:smollm2
    """
    if suites is not None:
        from treewright.agent.cli.imitation import imitate_oracles

        if suite or requests or head:
            raise TreewrightError("--suites imitates oracles; --suite, --head and --refusals are for stored trees")
        imitate_oracles(
            name, config, set_, suites, policy, demos=demos, epochs=epochs, rate=rate, batch=batch, held_out=held_out
        )
        return
    from treewright.agent.policies.headed import head_ids
    from treewright.agent.runs.recipes import encoder_of, spoken_by
    from treewright.training.recipes.imitate import sft as imitate

    with open_run(name, config, set_, None, policy) as run:
        _path_kind(paths)
        trees = run.trees(suite, split)
        before = _refusing(run, requests, head)
        tokens = head_ids(_template_of(run), head) if head else ()
        extra: dict[str, Any] = {"recipe": "sft", "head": head}
        known = {**extra, "epochs": epochs, "trees": len(trees)}  # the same line again goes on where it was stopped
        run.plan(f"{known} {paths} {min_outcome}")
        done = run.extra.get("epochs_done", 0) if known.items() <= run.extra.items() else 0
        if done:
            say(f"{done} of {epochs} epochs were made before")
        stats = imitate(
            run.trainer, trees, paths=paths, min_outcome=min_outcome, head=tokens, epochs=epochs,
            encode=encoder_of(run.trainer.tokenizer, run.config.policy.options),
            spoken=spoken_by(run.trainer.tokenizer), done=done,
            on_epoch=lambda n: run.learner.save({**known, "epochs_done": n}),
        )  # fmt: skip
        if requests is not None:
            run.saved(stats, extra, trees)
            after = _refusing(run, requests, head)
            say(f"  refusals             before {before:.3g}, after {after:.3g}")
            if after < before:
                console.print("[yellow]the model refuses less than before[/]; see docs/recipes.md, PING", markup=True)
            return
        run.saved(stats, extra, trees)


def dpo(
    name: Name = None,
    policy: PolicySpec = None,
    config: ConfigFile = None,
    set_: Sets = None,
    suite: OneSuite = None,
    split: Split = "train",
    beta: Annotated[float, typer.Option(help="How far the policy may move from the reference.", callback=number)] = 0.1,
    min_gap: Annotated[float, typer.Option(help="Least difference of two siblings' values.", callback=number)] = 0.1,
    pairs: Annotated[str, typer.Option(help="extremes (best and worst of a branch) | all")] = "extremes",
    epochs: Epochs = 1,
) -> None:
    """Prefer the better of two actions at the branches of stored trees (DPO, as TreeCUA-DPO does).

    Inexact trees are refused unless train.allow_biased is set. The reference is train.reference, or the weights that
    training begins with.

      treewright train dpo --name first --min-gap 0.25
    """
    from treewright.training.recipes.prefer import branch_pairs, require_exact
    from treewright.training.recipes.prefer import dpo as prefer

    if pairs not in ("extremes", "all"):
        raise TreewrightError(f"--pairs {pairs!r}; known: extremes, all")
    with open_run(name, config, set_, None, policy) as run:
        trees = in_own_tokens(run, run.trees(suite, split))
        require_exact(trees, run.config.train.allow_biased, "dpo")
        run.plan(f"dpo {beta} {epochs}")
        stats = prefer(run.trainer, branch_pairs(trees, min_gap, pairs), beta=beta, epochs=epochs)
        run.saved(stats, {"recipe": "dpo"}, trees)


def prm(
    name: Name = None,
    policy: PolicySpec = None,
    config: ConfigFile = None,
    set_: Sets = None,
    suite: OneSuite = None,
    split: Split = "train",
    epochs: Epochs = 2,
    lr: Annotated[float | None, typer.Option(help="Learning rate; train.lr if left out.", callback=number)] = None,
    folder: Annotated[Path | None, typer.Option(help="Where it goes; runs/NAME/prm if left out.")] = None,
) -> None:
    """Train a process reward model on the values of stored steps; searches are then guided by it.

    Inexact trees are refused unless train.allow_biased is set.

      treewright train prm --name first
      treewright collect --name second --set search.evaluator=prm:runs/first/prm
    """
    from treewright.training.recipes.prm import Prm, train_prm

    with open_run(name, config, set_, None, policy) as run:
        trees = in_own_tokens(run, run.trees(suite, split))
        if run.config.train.lora.rank:
            raise TreewrightError("a reward model is trained whole: set train.lora.rank=0, and --name another run")
        model = Prm(run.trainer.model, run.trainer.tokenizer)
        with resumable(ANEW):
            stats = train_prm(
                model, trees, epochs=epochs, lr=lr or run.trainer.lr, max_tokens=run.config.train.max_tokens,
                seed=run.config.seed, allow_biased=run.config.train.allow_biased,
            )  # fmt: skip
        target = folder or run.config.home / "prm"
        versions = sorted({t.header.policy_version for t in trees})
        model.save(target, {"run": run.config.name, "trees": len(trees), "policy_versions": versions, **stats})
        show_stats(stats)
        run.track(stats, "prm", trees)
        line = collect_anew(run.config, "prm", f"search.evaluator=prm:{target}")
        say(f"saved {target}; next: {line}")


def spar(
    name: Name = None,
    suites: Suites = None,
    policy: PolicySpec = None,
    config: ConfigFile = None,
    set_: Sets = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of search, pairs, DPO.")] = 2,
    beta: Annotated[
        float, typer.Option(help="How far the policy may move from the weights of the round before.", callback=number)
    ] = 0.1,
    judge: Annotated[
        str | None, typer.Option(help="Policy that judges answers, where no reward exists: needs --tasks-file.")
    ] = None,
    refiner: Annotated[
        str | None, typer.Option(help="With --judge: policy that refines failed answers; else the one that is trained.")
    ] = None,
    votes: Annotated[int, typer.Option(min=1, help="With --judge: judgements of one answer.")] = 3,
    tasks_file: TasksFile = None,
) -> None:
    """Search from the policy's failed attempts; prefer what the search found to what the policy did (after SPaR).

    With --judge no world and no reward is needed: the goals of a file of tasks are instructions, and the trees of
    refinements are kept in the run's store.

      treewright train spar --name first --suites kg --rounds 3 --set loop.tasks=32
      treewright train spar --name own --tasks-file tasks.jsonl --judge openai:MODEL@URL --refiner openai:MODEL@URL
    """
    from treewright.agent.runs.collect import suites_of
    from treewright.agent.runs.recipes import spar_rounds

    if judge is not None or refiner is not None or tasks_file is not None:
        return _judged(name, config, set_, policy, rounds, beta, judge, refiner, votes, tasks_file)
    with open_run(name, config, set_, suites, policy, stored=False) as run:
        cfg = run.config
        found = suites_of(cfg)

        async def work() -> None:
            async with growing(run, found) as (actor, store, worlds):
                await spar_rounds(
                    cfg, worlds, actor, run.learner, rounds=rounds, beta=beta, store=store,
                    on_round=run.tell_round("spar"),
                )  # fmt: skip

        go(work)
        say(f"checkpoints in {cfg.home / 'checkpoints'}; next: {again(cfg, 'eval')}")


def _judged(
    name: str | None, config: Path | None, set_: list[str] | None, policy: str | None, rounds: int, beta: float,
    judge: str | None, refiner: str | None, votes: int, tasks_file: Path | None,
) -> None:  # fmt: skip
    """SPaR by a model's judgement."""
    from treewright.agent.policies.opening import open_policy
    from treewright.agent.runs.spar import SUITE, Judge, judged_rounds
    from treewright.envs.custom import load_tasks

    if judge is None or tasks_file is None:
        missing = "--judge POLICY" if judge is None else "--tasks-file FILE.jsonl"
        raise TreewrightError(f"SPaR without a reward needs --tasks-file and --judge; add {missing}")
    tasks = [task for task in load_tasks(tasks_file, SUITE) if task.split == "train"]
    if not tasks:
        raise TreewrightError(f"{tasks_file} holds no task of the split train")
    asked = open_policy(judge)
    mends = open_policy(refiner) if refiner is not None else None
    with open_run(name, config, set_, None, policy, stored=False) as run:

        async def work() -> None:
            try:
                async with growing(run, ()) as (actor, store, _):
                    await judged_rounds(
                        run.config, tasks, actor, Judge(asked, votes=votes), mends, run.learner, rounds=rounds,
                        beta=beta, store=store, on_round=run.tell_round("spar"),
                    )  # fmt: skip
            finally:
                await asked.close()
                if mends is not None:
                    await mends.close()

        go(work)
        say(f"refinements in {run.config.store_at}; next: {again(run.config, 'show')}")


def prefix(
    name: Name = None,
    recipe: Annotated[str, typer.Option(help="prefixrl | prefix_rft | pppo")] = "prefixrl",
    updates: Annotated[int, typer.Option(min=1, help="Rounds of growing from stored nodes and training.")] = 2,
    starts: Annotated[int, typer.Option(min=1, help="Most trees of a round.")] = 16,
    suites: Suites = None,
    policy: PolicySpec = None,
    config: ConfigFile = None,
    set_: Sets = None,
    split: Split = "train",
    min_outcome: MinOutcome = SOLVED,
    unit: Annotated[str, typer.Option(help="Where the given part may end: turn | token.")] = "turn",
    share: Annotated[
        str | None, typer.Option(help="Share of a path that is given, in the first and the last round: .9:.1")
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Success at which the given part gets shorter; else by round.", callback=number
        ),
    ] = None,
) -> None:
    """Grow trees from stored nodes and train on what follows, on what follows and the start, or on the start.

    Those are PrefixRL, Prefix-RFT and PPPO. The first two start in successful stored paths of any weights; pppo draws
    its own fronts.

      treewright train prefix --name first --recipe prefix_rft --suites kg --updates 4
    """
    from treewright.agent.runs.collect import suites_of
    from treewright.agent.runs.recipes import prefix_rounds
    from treewright.training.recipes.prefix import UNITS
    from treewright.training.recipes.prefix import recipe as known

    chosen = known(recipe)
    shares = _shares(share)
    if unit not in UNITS:
        raise TreewrightError(f"--unit {unit}: it is {' or '.join(UNITS)}")
    with open_run(name, config, set_, suites, policy, stored=not chosen.from_draws) as run:
        cfg = run.config
        found = suites_of(cfg)
        names = {s.name for s in found}
        good = [] if chosen.from_draws else [t for t in run.trees(None, split) if t.task.suite in names]

        async def work() -> None:
            async with growing(run, found) as (actor, store, worlds):
                await prefix_rounds(
                    cfg, recipe, worlds, actor, run.learner, good, updates=updates, starts=starts, store=store,
                    on_round=run.tell_round(recipe), min_outcome=min_outcome, unit=unit, share=shares, target=target,
                )  # fmt: skip

        go(work)
        say(f"checkpoints in {cfg.home / 'checkpoints'}; next: {again(cfg, 'eval')}")


def _shares(text: str | None) -> tuple[float, float] | None:
    """`.9:.1` as two shares; one number stands for both. Raises TreewrightError for anything else."""
    if text is None:
        return None
    try:
        first, *rest = [float(part) for part in text.split(":")]
    except ValueError:
        first, rest = -1.0, []
    if len(rest) > 1 or not all(0 <= s < 1 for s in (first, *rest)):
        raise TreewrightError(f"--share {text}: write one share from 0 to below 1, or two with a colon, such as .9:.1")
    return first, rest[0] if rest else first


def ping(
    requests: Annotated[Path, typer.Option("--refusals", help="Harmful requests, one a line.")],
    name: Name = None,
    suites: Suites = None,
    policy: PolicySpec = None,
    config: ConfigFile = None,
    set_: Sets = None,
    candidates: Annotated[
        Path | None, typer.Option(help="Prefixes to try, one a line; four of ours if left out.")
    ] = None,
    tasks: Annotated[int, typer.Option(min=1, help="Held-in tasks per suite for the success rate.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each joins the best of the one before.")] = 2,
    weight: Annotated[
        float, typer.Option(help="What a point of success is worth against one of refusal.", callback=number)
    ] = 1.0,
) -> None:
    """Search a safety prefix for the head of responses: most refusals of harmful requests, least loss on tasks.

    Trains nothing. Use what it finds with treewright train sft --head.

      treewright train ping --name first --refusals harmful.txt --suites kg
    """
    from treewright.agent.policies.headed import HeadedPolicy
    from treewright.agent.policies.opening import open_policy
    from treewright.agent.policies.prompts import prompt_options
    from treewright.agent.runs.collect import open_worlds, suites_of
    from treewright.agent.runs.evaluate import evaluate
    from treewright.agent.runs.loop import budget_of, settings_of, tasks_for
    from treewright.agent.runs.ping import (
        CANDIDATES,
        Measured,
        read_lines,
        refusals,
        search_prefix,
        write_report,
    )

    harmful = read_lines(requests)
    tried = read_lines(candidates) if candidates is not None else list(CANDIDATES)
    with open_run(name, config, set_, suites, policy, stored=False) as run:
        cfg = run.config
        found = suites_of(cfg)
        target = cfg.home / "ping.json"

        async def work() -> list[Measured]:
            actor = open_policy(f"hf:{run.weights}", **prompt_options(cfg.policy.options))
            try:
                async with open_worlds(found, cfg.worlds.sessions or None, cfg.worlds.deadline) as worlds:
                    todo = tasks_for(worlds, "train", 0, tasks)

                    async def measure(text: str) -> Measured:
                        headed = HeadedPolicy(actor, text)
                        results, _ = await evaluate(
                            todo, worlds, headed, budget=budget_of(cfg.search, 0), concurrency=cfg.search.trees,
                            settings=settings_of(cfg.search, run="ping", seed=cfg.seed, acting=True),
                        )  # fmt: skip
                        solved = sum(sum(r.success) for r in results.values()) / len(todo)
                        refused = await refusals(headed, harmful, seed=cfg.seed)
                        return Measured(text, refused.rate, float(solved))

                    return await search_prefix(measure, tried, rounds=rounds, weight=weight)
            finally:
                await actor.close()

        ranked = go(work, ANEW)
        write_report(target, ranked, weight)
        for one in ranked[:8]:
            console.print(f"  refuses {one.refusal:.2f}  solves {one.success:.2f}  {one.prefix!r}", markup=False)
        say(f"wrote {target}; next: {again(cfg, 'train sft')} --head {shlex.quote(ranked[0].prefix)}")


def _path_kind(paths: str) -> None:
    if paths not in ("best", "chosen", "all"):
        raise TreewrightError(f"--paths {paths!r}; known: best, chosen, all")


def _template_of(run: Run) -> Any:
    """The trainer's tokenizer as far as `head_ids` reads a policy."""
    from types import SimpleNamespace

    from treewright.agent.policies.prompts import prompt_options, template_for

    options = prompt_options(run.config.policy.options)
    more = options.pop("template_options", None) or {}
    template = template_for(run.trainer.tokenizer, **options, **more)
    return SimpleNamespace(template=template)


def _refusing(run: Run, requests: Path | None, head: str) -> float:
    """The refusal rate of the trainer's weights as they are now."""
    if requests is None:
        return 0.0
    from treewright.agent.policies.headed import HeadedPolicy
    from treewright.agent.policies.hf import HFPolicy
    from treewright.agent.policies.prompts import prompt_options
    from treewright.agent.runs.ping import read_lines, refusals
    from treewright.training.lora import merged
    from treewright.training.step import frozen

    harmful = read_lines(requests)

    async def work() -> float:
        twin = merged(frozen(run.trainer.model))
        twin.set_attn_implementation("sdpa")
        actor = HFPolicy(twin, run.trainer.tokenizer, **prompt_options(run.config.policy.options))
        try:
            return (await refusals(HeadedPolicy(actor, head), harmful, seed=run.config.seed)).rate
        finally:
            await actor.close()

    return float(go(work, ANEW))


RECIPES = (sft, dpo, prm, spar, prefix, ping)
