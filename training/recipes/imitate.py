"""Best-path SFT: the steps of good paths, each token once, prompts and observations never as targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from treewright.envs.errors import TreewrightError
from treewright.search.tree import Tree
from treewright.training.export.rows import SOLVED, sft_rows
from treewright.training.export.view import View
from treewright.training.loss import Mode
from treewright.training.pack import TokenRow, pack_rows
from treewright.training.step import Trainer

__all__ = ["path_rows", "sft"]


Encode = Callable[[Tree, int], Sequence[TokenRow]]


def path_rows(
    trees: Sequence[Tree],
    paths: str = "best",
    min_outcome: float = SOLVED,
    head: Sequence[int] = (),
    encode: Encode | None = None,
) -> list[list[TokenRow]]:
    """The steps of the trees' good paths, one list for each tree that has any; see `export.sft_rows`.

    head    tokens put in front of every response, read but never trained on: a searched safety prefix (PING)
    encode  (tree, leaf) → the steps of a path without token ids, such as an imported conversation; None skips those
    """
    out = []
    for tree in trees:
        view, rows = View(tree, style="tokens"), list[TokenRow]()
        for row in sft_rows(view, paths, min_outcome):
            cut = len(row["completion_mask"]) - sum(row["completion_mask"])
            ids = tuple(row["input_ids"])
            rows.append(TokenRow(context=ids[:cut], response=ids[cut:]))
        if not rows and encode is not None and not any(tree.ids):
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
    epochs: int = 1,
    done: int = 0,
    on_epoch: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Maximises the likelihood of good paths; the loss is the mean over their tokens, in nats.

    done, on_epoch  epochs made before, and what is told how many are made after each but the last

    Takes trees of any weights, inexact ones too: a path that succeeded is worth imitating however it was found.
    Raises TreewrightError when no path reaches `min_outcome`, or none has token ids.
    """
    found = path_rows(trees, paths, min_outcome, head, encode)
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
