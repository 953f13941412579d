"""Best-path SFT: the steps of good paths, each token once, prompts and observations never as targets."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.search.tree import Tree
from treewright.training.export.rows import SOLVED, sft_rows
from treewright.training.export.view import View
from treewright.training.loss import Mode
from treewright.training.pack import TokenRow, pack_rows
from treewright.training.step import Trainer

__all__ = ["imitation_rate", "learn_rows", "path_rows", "rate_at", "sft"]

SMALL, SMALL_RATE, LARGE_RATE = 20_000_000, 1e-3, 1e-4


Encode = Callable[[Tree, int], Sequence[TokenRow]]


def path_rows(
    trees: Sequence[Tree],
    paths: str = "best",
    min_outcome: float = SOLVED,
    head: Sequence[int] = (),
    encode: Encode | None = None,
    spoken: Callable[[Tree], bool] = lambda tree: True,
) -> list[list[TokenRow]]:
    """The steps of the trees' good paths, one list for each tree that has any; see `export.sft_rows`.

    head    tokens put in front of every response, read but never trained on: a searched safety prefix (PING)
    encode  (tree, leaf) → the steps of a path without token ids, such as an imported conversation; None skips those
    spoken  whether a tree's token ids are those of the tokenizer that is trained; the paths of other trees are encoded
    """
    out = []
    for tree in trees:
        view, rows, own = View(tree, style="tokens"), list[TokenRow](), any(tree.ids) and spoken(tree)
        for row in sft_rows(view, paths, min_outcome) if own else ():
            cut = len(row["completion_mask"]) - sum(row["completion_mask"])
            ids = tuple(row["input_ids"])
            rows.append(TokenRow(context=ids[:cut], response=ids[cut:]))
        if not own and encode is not None:
            rows = [row for leaf in view.best(paths, min_outcome) for row in encode(tree, leaf)]
        if rows:
            out.append([replace(r, context=(*r.context, *head), mode=Mode.SFT) for r in rows])
    return out


def sft(
    trainer: Trainer,
    trees: Sequence[Tree],
    *,
    paths: str = "best",
    min_outcome: float = SOLVED,
    head: Sequence[int] = (),
    encode: Encode | None = None,
    spoken: Callable[[Tree], bool] = lambda tree: True,
    epochs: int = 1,
    done: int = 0,
    on_epoch: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Maximises the likelihood of good paths; the loss is the mean over their tokens, in nats.

    done, on_epoch  epochs made before, and what is told how many are made after each but the last

    Takes trees of any weights, inexact ones too: a path that succeeded is worth imitating however it was found.
    Raises TreewrightError when no path reaches `min_outcome`, or none has token ids.
    """
    found = path_rows(trees, paths, min_outcome, head, encode, spoken)
    tokens = sum(len(row.response) for rows in found for row in rows)
    if not tokens:
        raise TreewrightError(
            f"none of {len(trees)} trees has a path of return {min_outcome:g} or more with token ids; collect more, or "
            "lower --min-outcome"
        )
    each = len(found) / tokens
    weighted = [[replace(r, coef=each) for r in rows] for rows in found]
    packs = pack_rows(weighted, trainer.settings.max_tokens)
    stats: dict[str, float] = {}
    first = math.nan
    for epoch in range(done, epochs):
        stats = trainer.descend_surrogate(packs)
        if epoch == done:
            first = stats["loss"]
        if on_epoch is not None and epoch + 1 < epochs:
            on_epoch(epoch + 1)
    return stats | {"first_loss": first, "paths": float(len(found)), "trained_tokens": float(tokens)}


def _begins(rows: Sequence[TokenRow]) -> tuple[int, ...]:
    return tuple(rows[0].context) if rows else ()


def imitation_rate(model: Any) -> float:
    """The rate of `learn_rows` for a model of this size where none is given."""
    return SMALL_RATE if sum(p.numel() for p in model.parameters()) < SMALL else LARGE_RATE


def rate_at(step: int, steps: int, warmup: int) -> float:
    """The factor on the learning rate at a step counted from 0: up in `warmup` steps, then down in a straight line to a
    tenth at the last one."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 1.0 - 0.9 * (step - warmup) / max(1, steps - 1 - warmup)


def learn_rows(
    trainer: Trainer,
    groups: Sequence[Sequence[TokenRow]],
    *,
    lr: float,
    epochs: int = 1,
    batch: int = 8,
    warmup: float = 0.1,
    seed: int = 0,
    on_step: Callable[[int, int, float], None] | None = None,
) -> dict[str, float]:
    """Supervised training on rows, such as demonstrations: one optimizer step for each `batch` groups, shuffled anew in
    each epoch. The loss is the mean over the tokens of a step, in nats; rows of a group share what they have in common.

    lr       the highest rate, reached after the share `warmup` of the steps and followed by a straight descent
    on_step  is told (steps done, steps in all, loss)

    The optimizer's moments are forgotten at the end: what follows is another objective. Raises TreewrightError where
    there is nothing to train on.
    """
    if not groups:
        raise TreewrightError("no demonstration to learn from; give a data set with successful paths, or raise --tasks")
    order, rng = list(range(len(groups))), random.Random(seed)
    steps = epochs * math.ceil(len(groups) / batch)
    own, progress, losses, done = trainer.settings, trainer.progress, list[float](), 0
    trainer.settings, trainer.progress = replace(own, minibatches=1), None  # steps are short: none goes on half done
    try:
        for _ in range(epochs):
            rng.shuffle(order)
            for start in range(0, len(order), batch):
                chosen = sorted((groups[i] for i in order[start : start + batch]), key=_begins)  # neighbours share
                tokens = sum(len(row.response) for rows in chosen for row in rows)
                weighted = [[replace(row, coef=len(chosen) / tokens) for row in rows] for rows in chosen]
                trainer.fixed_rate = lr * rate_at(done, steps, round(warmup * steps))
                losses.append(trainer.descend_surrogate(pack_rows(weighted, own.max_tokens))["loss"])
                done += 1
                if on_step is not None:
                    on_step(done, steps, losses[-1])
    finally:
        trainer.settings, trainer.progress, trainer.fixed_rate = own, progress, None
    trainer.forget_moments()
    held = max(1, len(losses) // 5)
    return {
        "first_loss": sum(losses[:held]) / held,
        "loss": sum(losses[-held:]) / held,
        "episodes": float(len(groups)),
        "steps": float(done),
        "trained_tokens": float(epochs * sum(len(row.response) for rows in groups for row in rows)),
    }
