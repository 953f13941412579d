"""`treewright train`: one update from a run's finished trees, and a sub-command for each other recipe."""

from __future__ import annotations

import difflib
import time
from typing import Any

import typer
from typer.core import TyperGroup

from treewright.agent.cli.options import ConfigFile, Name, PolicySpec, Sets, read_config, say
from treewright.agent.cli.ranks import Gpus, Processes, alone, spread
from treewright.agent.cli.recipes import RECIPES
from treewright.agent.cli.retrieval import treehop_command
from treewright.agent.cli.scorer import scorer_command
from treewright.agent.cli.steps import steps_command
from treewright.agent.cli.training import open_run, show_stats
from treewright.agent.cli.usable import advice, nothing_learnt, sort_trees
from treewright.envs.errors import TreewrightError

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


@train_app.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    name: Name = None,
    policy: PolicySpec = None,
    config: ConfigFile = None,
    set_: Sets = None,
    processes: Processes = None,
    gpus: Gpus = None,
) -> None:
    """Train once on the finished trees of runs/NAME that were not trained on before, and save a checkpoint.

    Credit is SPLIT-LOO unless train.estimator says otherwise, the loss is clipped unless train.loss does. Only trees of
    the weights being trained are used, or of up to train.max_staleness updates before. Other ways to train follow.

      treewright train --name first --set train.lr=0.001
      treewright train dpo --name first
      treewright train --name first --processes 2
    """
    from treewright.agent.runs.loop import open_trainer
    from treewright.agent.runs.ranks import following

    if context.invoked_subcommand is not None:
        alone(processes, gpus, context.invoked_subcommand)
        return
    spread(processes, gpus)
    if following(lambda: open_trainer(read_config(name, config, set_, None, policy))):
        return
    with open_run(name, config, set_, None, policy) as run:
        found = run.trees(split="train")
        usable, left_out = sort_trees(run, found)
        reasons = "".join(f"{count} {why}, " for why, count in left_out.items())
        say(f"{len(found)} finished trees: {reasons}{len(usable)} to train on")
        if not usable:
            raise TreewrightError(f"nothing to train on; {advice(run, left_out)}")
        began = time.monotonic()
        stats = run.trainer.update(usable)
        stats["train_seconds"] = time.monotonic() - began
        if not stats["trees_with_gradient"]:
            show_stats(stats)
            say(nothing_learnt(run, usable, len(found)))
            return
        run.saved(stats, {}, usable)


for recipe in RECIPES:
    train_app.command()(recipe)
train_app.command("treehop")(treehop_command)
train_app.command("scorer")(scorer_command)
train_app.command("steps")(steps_command)
