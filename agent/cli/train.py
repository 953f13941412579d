"""`treewright train`: one update from a run's finished trees, and a sub-command for each other recipe."""

from __future__ import annotations

import difflib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from treewright.agent.cli.options import (
    ConfigFile,
    Name,
    PolicySpec,
    Sets,
    Suites,
    console,
    go,
    must_exist,
    read_config,
)
from treewright.agent.cli.retrieval import treehop_command
from treewright.agent.cli.scorer import scorer_command
from treewright.envs.errors import TreewrightError

if TYPE_CHECKING:
    from treewright.agent.config import Config
    from treewright.agent.runs.loop import Learner
    from treewright.search.tree import Tree

__all__ = ["train_app"]


class _Guessing(TyperGroup):
    """Names the nearest sub-command for one that does not exist."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            known = self.list_commands(ctx)
            near = difflib.get_close_matches(args[0], known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise TreewrightError(f"no way to train named {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)


train_app = typer.Typer(cls=_Guessing, add_completion=False, rich_markup_mode="rich")

OneSuite = Annotated[str | None, typer.Option("--suite", help="Only trees of this suite.")]
Split = Annotated[str, typer.Option(help="Only trees of this split.")]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the data.")]
MinOutcome = Annotated[float, typer.Option(help="Least return of a path that counts as good.")]
SOLVED = 1.0 - 1e-6


@dataclass(frozen=True, slots=True)
class _Run:
    """A run's configuration, its trainer as of the newest checkpoint, and how many rows its store has."""

    config: Config
    learner: Learner
    weights: Path | str

    @property
    def trainer(self) -> Any:
        return self.learner.trainer

    def trees(self, suite: str | None = None, split: str | None = None) -> list[Tree]:
        """The finished trees of the run's store. Raises TreewrightError for none."""
        from treewright.search.store import TreeStore

        cfg = self.config
        must_exist(cfg)
        with TreeStore.open(cfg.store_at, read_only=True) as store:
            found = [store.load(row.tree_id) for row in store.trees(suite=suite, split=split, status="done")]
        if not found:
            wanted = ", ".join(w for w in (suite and f"suite {suite}", split and f"split {split}") if w)
            raise TreewrightError(f"{cfg.store_at} holds no finished tree ({wanted or 'any'}); collect some first")
        return found

    def saved(self, stats: Mapping[str, float], extra: dict[str, Any]) -> None:
        """Prints what was measured and writes a checkpoint."""
        saved = self.learner.save(extra)
        _print(stats)
        console.print(f"saved {saved.path}; next: treewright eval --policy hf:{saved.path}", soft_wrap=True)


def _open(
    name: str | None,
    config: Path | None,
    set_: list[str] | None,
    suites: str | None,
    policy: str | None,
    stored: bool = True,
) -> _Run:
    """The run and its trainer. `stored`: it needs trees, so that their lack is told before a model is loaded."""
    from treewright.agent.policies.opening import loading_model
    from treewright.agent.runs.loop import Learner, make_trainer, model_folder
    from treewright.training import checkpoint

    cfg = read_config(name, config, set_, suites, policy)
    if stored:
        must_exist(cfg)
    folder = cfg.home / "checkpoints"
    source = model_folder(cfg.policy.spec)
    with loading_model(source):
        trainer = make_trainer(cfg, source)
    learner = Learner(trainer, folder, cfg.loop.checkpoints)
    before = checkpoint.latest(folder)
    if before is not None:
        learner.iteration = int(checkpoint.restore(trainer, before)["iteration"])
        learner.knows(before.path)
        source = before.path
        console.print(f"going on from {before.path}", soft_wrap=True)
    return _Run(cfg, learner, source)


@asynccontextmanager
async def _growing(run: _Run, found: Sequence[Any]) -> AsyncIterator[tuple[Any, Any, Any]]:
    """The run's newest weights as a policy, its store and its worlds, all closed at the end."""
    from treewright.agent.policies.opening import open_policy
    from treewright.agent.runs.collect import open_worlds
    from treewright.search.store import TreeStore

    cfg = run.config
    actor, store = open_policy(f"hf:{run.weights}"), TreeStore.open(cfg.store_at)
    try:
        async with open_worlds(found, cfg.worlds.sessions or None, cfg.worlds.deadline) as worlds:
            yield actor, store, worlds
    finally:
        store.close()
        await actor.close()


def _print(stats: Mapping[str, float]) -> None:
    for key, value in stats.items():
        console.print(f"  {key:<20} {value:.4g}")


@train_app.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    name: Name = None,
    policy: PolicySpec = None,
    config: ConfigFile = None,
    set_: Sets = None,
) -> None:
    """Train once on the finished trees of runs/NAME that were not trained on before, and save a checkpoint.

    Credit is SPLIT-LOO unless train.estimator says otherwise, the loss is clipped unless train.loss does. Only trees of
    the weights being trained are used, or of up to train.max_staleness updates before. Other ways to train follow.

      treewright train --name first --set train.lr=0.001
      treewright train dpo --name first
    """
    if context.invoked_subcommand is not None:
        return
    run = _open(name, config, set_, None, policy)
    cfg, trainer = run.config, run.trainer
    found = run.trees()
    ages = [trainer.age_of(t.header.policy_version) for t in found]
    mine = [t for t, age in zip(found, ages, strict=True) if age is not None and age <= cfg.train.max_staleness]
    usable = [t for t in mine if t.exact or cfg.train.allow_biased]
    console.print(
        f"{len(found)} finished trees: {len(found) - len(mine)} drawn by other weights, "
        f"{len(mine) - len(usable)} inexact, {len(usable)} to train on"
    )
    if not usable:
        raise TreewrightError(f"nothing to train on; type: treewright collect --name {cfg.name}")
    run.saved(trainer.update(usable), {})


@train_app.command()
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
    head: Annotated[
        str, typer.Option(help="Text that is read in front of each response and never trained on, see train ping.")
    ] = "",
    requests: Annotated[
        Path | None, typer.Option("--refusals", help="Harmful requests, one a line: check refusing before and after.")
    ] = None,
) -> None:
    """Imitate the good paths of stored trees (best-path SFT). Trees of any weights and imported conversations will do.

    treewright train sft --name first --epochs 2
    """
    from treewright.agent.runs.ping import head_ids
    from treewright.agent.runs.recipes import encoder_of
    from treewright.training.recipes.imitate import sft as imitate

    run = _open(name, config, set_, None, policy)
    _path_kind(paths)
    trees = run.trees(suite, split)
    before = _refusing(run, requests, head)
    tokens = head_ids(_template_of(run), head) if head else ()
    stats = imitate(
        run.trainer, trees, paths=paths, min_outcome=min_outcome, head=tokens, epochs=epochs,
        encode=encoder_of(run.trainer.tokenizer, run.config.policy.options),
    )  # fmt: skip
    extra: dict[str, Any] = {"recipe": "sft", "head": head}
    if requests is not None:
        run.saved(stats, extra)
        after = _refusing(run, requests, head)
        console.print(f"  refusals             before {before:.3g}, after {after:.3g}")
        if after < before:
            console.print("[yellow]the model refuses less than before[/]; see docs/recipes.md, PING")
        return
    run.saved(stats, extra)


@train_app.command()
def dpo(
    name: Name = None,
    policy: PolicySpec = None,
    config: ConfigFile = None,
    set_: Sets = None,
    suite: OneSuite = None,
    split: Split = "train",
    beta: Annotated[float, typer.Option(help="How far the policy may move from the reference.")] = 0.1,
    min_gap: Annotated[float, typer.Option(help="Least difference of two siblings' values.")] = 0.1,
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
    run = _open(name, config, set_, None, policy)
    trees = run.trees(suite, split)
    require_exact(trees, run.config.train.allow_biased, "dpo")
    stats = prefer(run.trainer, branch_pairs(trees, min_gap, pairs), beta=beta, epochs=epochs)
    run.saved(stats, {"recipe": "dpo"})


@train_app.command()
def prm(
    name: Name = None,
    policy: PolicySpec = None,
    config: ConfigFile = None,
    set_: Sets = None,
    suite: OneSuite = None,
    split: Split = "train",
    epochs: Epochs = 2,
    lr: Annotated[float | None, typer.Option(help="Learning rate; train.lr if left out.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where it goes; runs/NAME/prm if left out.")] = None,
) -> None:
    """Train a process reward model on the values of stored steps; searches are then guided by it.

    Inexact trees are refused unless train.allow_biased is set.

      treewright train prm --name first
      treewright collect --name second --set search.evaluator=prm:runs/first/prm
    """
    from treewright.training.recipes.prm import Prm, train_prm

    run = _open(name, config, set_, None, policy)
    trees = run.trees(suite, split)
    model = Prm(run.trainer.model, run.trainer.tokenizer)
    stats = train_prm(
        model, trees, epochs=epochs, lr=lr or run.trainer.lr, max_tokens=run.config.train.max_tokens,
        seed=run.config.seed, allow_biased=run.config.train.allow_biased,
    )  # fmt: skip
    target = folder or run.config.home / "prm"
    versions = sorted({t.header.policy_version for t in trees})
    model.save(target, {"run": run.config.name, "trees": len(trees), "policy_versions": versions, **stats})
    _print(stats)
    console.print(f"saved {target}; next: treewright collect --set search.evaluator=prm:{target}", soft_wrap=True)


@train_app.command()
def spar(
    name: Name = None,
    suites: Suites = None,
    policy: PolicySpec = None,
    config: ConfigFile = None,
    set_: Sets = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of search, pairs, DPO.")] = 2,
    beta: Annotated[
        float, typer.Option(help="How far the policy may move from the weights of the round before.")
    ] = 0.1,
) -> None:
    """Search from the policy's failed attempts; prefer what the search found to what the policy did (after SPaR).

    treewright train spar --name first --suites kg --rounds 3 --set loop.tasks=32
    """
    from treewright.agent.runs.collect import suites_of
    from treewright.agent.runs.recipes import spar_rounds

    run = _open(name, config, set_, suites, policy, stored=False)
    cfg = run.config
    found = suites_of(cfg)

    async def work() -> None:
        async with _growing(run, found) as (actor, store, worlds):
            await spar_rounds(
                cfg, worlds, actor, run.learner, rounds=rounds, beta=beta, store=store, on_round=_round
            )  # fmt: skip

    go(work)
    console.print(f"checkpoints in {cfg.home / 'checkpoints'}")


@train_app.command()
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
) -> None:
    """Grow trees from stored nodes and train on what follows, on what follows and the start, or on the start.

    Those are PrefixRL, Prefix-RFT and PPPO. The first two start in successful stored paths of any weights; pppo draws
    its own fronts.

      treewright train prefix --name first --recipe prefix_rft --suites kg --updates 4
    """
    from treewright.agent.runs.collect import suites_of
    from treewright.agent.runs.recipes import prefix_rounds
    from treewright.training.recipes.prefix import recipe as known

    chosen = known(recipe)
    run = _open(name, config, set_, suites, policy, stored=not chosen.drawn)
    cfg = run.config
    found = suites_of(cfg)
    names = {s.name for s in found}
    good = [] if chosen.drawn else [t for t in run.trees(None, split) if t.task.suite in names]

    async def work() -> None:
        async with _growing(run, found) as (actor, store, worlds):
            await prefix_rounds(
                cfg, recipe, worlds, actor, run.learner, good, updates=updates, starts=starts, store=store,
                on_round=_round, min_outcome=min_outcome,
            )  # fmt: skip

    go(work)
    console.print(f"checkpoints in {cfg.home / 'checkpoints'}")


@train_app.command()
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
    weight: Annotated[float, typer.Option(help="What a point of success is worth against one of refusal.")] = 1.0,
) -> None:
    """Search a safety prefix for the head of responses: most refusals of harmful requests, least loss on tasks.

    Trains nothing. Use what it finds with treewright train sft --head.

      treewright train ping --name first --refusals harmful.txt --suites kg
    """
    from treewright.agent.policies.opening import open_policy
    from treewright.agent.runs.collect import open_worlds, suites_of
    from treewright.agent.runs.evaluate import evaluate
    from treewright.agent.runs.loop import tasks_for
    from treewright.agent.runs.ping import (
        CANDIDATES,
        HeadedPolicy,
        Measured,
        read_lines,
        refusals,
        search_prefix,
        write_report,
    )

    harmful = read_lines(requests)
    tried = read_lines(candidates) if candidates is not None else list(CANDIDATES)
    run = _open(name, config, set_, suites, policy, stored=False)
    cfg = run.config
    found = suites_of(cfg)
    target = cfg.home / "ping.json"

    async def work() -> list[Measured]:
        actor = open_policy(f"hf:{run.weights}")
        try:
            async with open_worlds(found, cfg.worlds.sessions or None, cfg.worlds.deadline) as worlds:
                todo = tasks_for(worlds, "train", 0, tasks)

                async def measure(text: str) -> Measured:
                    headed = HeadedPolicy(actor, text)
                    results, _ = await evaluate(todo, worlds, headed, seed=cfg.seed)
                    solved = sum(sum(r.success) for r in results.values()) / len(todo)
                    refused = await refusals(headed, harmful, seed=cfg.seed)
                    return Measured(text, refused.rate, float(solved))

                return await search_prefix(measure, tried, rounds=rounds, weight=weight)
        finally:
            await actor.close()

    ranked = go(work)
    write_report(target, ranked, weight)
    for one in ranked[:8]:
        console.print(f"  refuses {one.refusal:.2f}  solves {one.success:.2f}  {one.prefix!r}", markup=False)
    console.print(f"wrote {target}")


def _round(index: int, stats: Mapping[str, float]) -> None:
    shown = ("share", "starts", "pairs", "trees", "inexact", "loss", "value", "grad_norm")
    told = "  ".join(f"{k} {stats[k]:.3g}" for k in shown if k in stats)
    console.print(f"round {index + 1}: {told}")


def _path_kind(paths: str) -> None:
    if paths not in ("best", "chosen", "all"):
        raise TreewrightError(f"--paths {paths!r}; known: best, chosen, all")


def _template_of(run: _Run) -> Any:
    """The trainer's tokenizer as far as `head_ids` reads a policy."""
    from types import SimpleNamespace

    from treewright.agent.policies.prompts import template_for

    options = run.config.policy.options
    template = template_for(run.trainer.tokenizer, options.get("window"), **(options.get("template_options") or {}))
    return SimpleNamespace(template=template)


def _refusing(run: _Run, requests: Path | None, head: str) -> float:
    """The refusal rate of the trainer's weights as they are now."""
    if requests is None:
        return 0.0
    from treewright.agent.policies.hf import HFPolicy
    from treewright.agent.runs.ping import HeadedPolicy, read_lines, refusals
    from treewright.training.step import frozen

    harmful = read_lines(requests)

    async def work() -> float:
        twin = frozen(run.trainer.model)
        twin.set_attn_implementation("sdpa")
        actor = HFPolicy(twin, run.trainer.tokenizer)
        try:
            return (await refusals(HeadedPolicy(actor, head), harmful, seed=run.config.seed)).rate
        finally:
            await actor.close()

    return float(go(work))


train_app.command("treehop")(treehop_command)
train_app.command("scorer")(scorer_command)
