"""`treewright train steps`: the model of which step is right, over features of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from treewright.agent.cli.after import collect_anew
from treewright.agent.cli.options import ConfigFile, Name, Sets, console, must_exist, read_config, say

__all__ = ["steps_command"]


def steps_command(
    name: Name = None,
    to: Annotated[Path | None, typer.Option(help="Folder of the model; runs/NAME/steps if not given.")] = None,
    passes: Annotated[int, typer.Option(min=1, help="Passes over the steps.")] = 4,
    held_out: Annotated[float, typer.Option(help="Share of the trees that is kept to measure on.")] = 0.2,
    config: ConfigFile = None,
    set_: Sets = None,
) -> None:
    """Train a model of which step is right on the training trees of runs/NAME, in seconds and without torch.

    It reads the goal, the steps so far and where the step's arguments came from, so it needs no tokens, and knows
    something of kinds of tasks that it has not seen.

      treewright train steps --name first
      treewright collect --name second --set search.rule=astar --set search.evaluator=steps:runs/first/steps
    """
    from treewright.search.store import TreeStore
    from treewright.training.step_model import StepSettings, examples_of, fit

    cfg = read_config(name, config, set_, None, None)
    must_exist(cfg)
    with TreeStore.open(cfg.store_at, read_only=True) as store:
        trees = [store.load(row.tree_id) for row in store.trees(split="train", status="done")]
    every = round(1 / held_out) if 0 < held_out <= 1 else len(trees) + 1
    examples = examples_of(t for i, t in enumerate(trees, 1) if i % every)
    held = examples_of(t for i, t in enumerate(trees, 1) if i % every == 0)
    right = sum(e.right for e in examples)
    console.print(f"{len(trees)} trees, {right} right of {len(examples)} steps to train on, {len(held)} held out")
    model = fit(examples, StepSettings(passes=passes, seed=cfg.seed))
    console.print(f"ranked right of held-out pairs: {model.accuracy(held):.1%} (chance 50%)")
    saved = model.save(to or cfg.home / "steps")
    say(f"saved; next: {collect_anew(cfg, 'steps', 'search.rule=astar', f'search.evaluator=steps:{saved}')}")
