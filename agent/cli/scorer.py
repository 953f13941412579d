"""`treewright train scorer`: the dual encoder that ranks siblings."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from treewright.agent.cli.after import collect_anew
from treewright.agent.cli.options import (
    ANEW,
    ConfigFile,
    Name,
    Sets,
    console,
    must_exist,
    read_config,
    resumable,
    say,
)
from treewright.agent.cli.training import metrics_of

__all__ = ["scorer_command"]


def scorer_command(
    name: Name = None,
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
    from treewright.training.track import Update

    cfg = read_config(name, config, set_, None, None)
    must_exist(cfg)
    store = TreeStore.open(cfg.store_at, read_only=True)
    try:
        trees = [store.load(row.tree_id) for row in store.trees(status="done")]
    finally:
        store.close()
    every = round(1 / held_out) if 0 < held_out <= 1 else len(trees) + 1
    kept = [tree for i, tree in enumerate(trees, 1) if i % every == 0]
    examples, held = examples_of([t for i, t in enumerate(trees, 1) if i % every]), examples_of(kept)
    console.print(f"{len(trees)} trees, {len(examples)} contrasts to train on, {len(held)} held out")

    began = time.monotonic()
    with resumable(ANEW), metrics_of(cfg) as metrics:

        def told(epoch: int, loss: float) -> None:
            console.print(f"  epoch {epoch + 1:<3} loss {loss:.3f}")
            measured(epoch + 1, {"loss": loss})

        def measured(epoch: int, stats: dict[str, float]) -> None:
            took = time.monotonic() - began
            metrics.log(Update(step=epoch, iteration=0, version="", stats=stats, seconds=took, recipe="scorer"))

        scorer = Scorer(fit(examples, ScorerSettings(epochs=epochs, seed=cfg.seed), told))
        right = scorer.accuracy(held)
        measured(epochs, {"accuracy": right, "contrasts": float(len(examples))})
    console.print(f"ranked right of held-out sibling pairs: {right:.1%} (chance 50%)")
    saved = scorer.save(to or cfg.home / "scorer")
    say(f"saved; next: {collect_anew(cfg, 'scorer', f'search.evaluator=scorer:{saved}')}")
