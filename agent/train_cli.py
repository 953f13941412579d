"""`treewright train`: one update from a run's finished trees, and the commands below it."""

from __future__ import annotations

import typer

from treewright.agent.options import ConfigFile, Name, PolicySpec, Sets, console, read_config
from treewright.agent.retrieval_cli import treehop_command
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


train_app.command("treehop")(treehop_command)
