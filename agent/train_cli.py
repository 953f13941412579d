"""`treewright train`: one update from a run's finished trees, and the commands below it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from treewright.agent.options import ConfigFile, Name, PolicySpec, Sets, console, read_config
from treewright.envs.errors import TreewrightError

__all__ = ["train_app"]

train_app = typer.Typer(add_completion=False)


@train_app.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    name: Name = "run",
    policy: PolicySpec = None,
    config: ConfigFile = None,
    set_: Sets = None,
) -> None:
    """Train once on the finished trees of runs/NAME that were not trained on before, and save a checkpoint.

    Credit is SPLIT-LOO unless train.estimator says otherwise; only trees of the weights being trained are used.

      treewright train --name first --set train.lr=0.001
    """
    if context.invoked_subcommand is not None:
        return
    from treewright.agent.clients.hf import weights_version
    from treewright.agent.loop import Learner, make_trainer, model_folder
    from treewright.search.store import TreeStore
    from treewright.training import checkpoint

    cfg = read_config(name, config, set_, None, policy)
    if not cfg.store_path.exists():
        raise TreewrightError(f"no store at {cfg.store_path}; type: treewright collect --name {cfg.name}")
    folder = cfg.home / "checkpoints"
    trainer = make_trainer(cfg, model_folder(cfg.policy.spec))
    before = checkpoint.latest(folder)
    if before is not None:
        checkpoint.restore(trainer, before)
    store = TreeStore.open(cfg.store_path, read_only=True)
    try:
        rows = store.trees(status="done")
        mine = [row for row in rows if row.policy_version == weights_version(trainer.model)]
        trees = [store.load(row.tree_id) for row in mine]
    finally:
        store.close()
    usable = [t for t in trees if t.exact or cfg.train.allow_biased]
    console.print(
        f"{len(rows)} finished trees: {len(rows) - len(mine)} drawn by other weights, "
        f"{len(mine) - len(usable)} inexact, {len(usable)} to train on"
    )
    if not usable:
        raise TreewrightError(f"nothing to train on; type: treewright collect --name {cfg.name}")
    stats, saved = Learner(trainer, folder, cfg.loop.keep).learn(usable, {"iteration": trainer.steps})
    for key, value in stats.items():
        console.print(f"  {key:<20} {value:.4g}")
    console.print(f"saved {saved.path}; next: treewright eval --policy hf:{saved.path}", soft_wrap=True)


@train_app.command("scorer")
def train_scorer(
    name: Name = "run",
    to: Annotated[Path | None, typer.Option(help="Folder of the scorer; runs/NAME/scorer if not given.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the contrasts.")] = 12,
    held_out: Annotated[float, typer.Option(help="Share of the trees that is kept to measure on.")] = 0.2,
    config: ConfigFile = None,
    set_: Sets = None,
) -> None:
    """Train a dual encoder on the finished trees of runs/NAME: it ranks siblings at search time.

    Contrasts are a step that did well against failed siblings and against other steps of its own trajectory.

      treewright train scorer --name first
      treewright collect --name second --set search.evaluator=scorer:runs/first/scorer
    """
    from treewright.search.store import TreeStore
    from treewright.training.scorer import Scorer, ScorerSettings, examples_of, fit

    cfg = read_config(name, config, set_, None, None)
    if not cfg.store_path.exists():
        raise TreewrightError(f"no store at {cfg.store_path}; type: treewright collect --name {cfg.name}")
    store = TreeStore.open(cfg.store_path, read_only=True)
    try:
        trees = [store.load(row.tree_id) for row in store.trees(status="done")]
    finally:
        store.close()
    kept = [t for i, t in enumerate(trees) if (i + 1) * held_out % 1 < held_out and held_out > 0]
    examples, held = examples_of([t for t in trees if t not in kept]), examples_of(kept)
    console.print(f"{len(trees)} trees, {len(examples)} contrasts to train on, {len(held)} held out")
    settings = ScorerSettings(epochs=epochs, seed=cfg.seed)
    scorer = Scorer(
        fit(examples, settings, lambda epoch, loss: console.print(f"  epoch {epoch + 1:<3} loss {loss:.3f}"))
    )
    console.print(f"ranked right of held-out sibling pairs: {scorer.accuracy(held):.1%} (chance 50%)")
    saved = scorer.save(to or cfg.home / "scorer")
    console.print(f"saved; next: treewright collect --set search.evaluator=scorer:{saved}", soft_wrap=True)
