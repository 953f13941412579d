"""The credit of one update's trees, suite by suite, by the estimator of the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from treewright.envs.errors import TreewrightError
from treewright.search.tree import Tree
from treewright.training.credit import Credit, TreeArrays, estimate, options_taken
from treewright.training.credit.prefixes import token_credit
from treewright.training.credit.rows import LeafRows, leaf_rows
from treewright.training.credit.texts import with_texts
from treewright.training.credit.trees import origin_of, tree_arrays
from treewright.training.settings import TrainSettings
from treewright.training.tempered import LogProbs, weighted_for

__all__ = ["NonFinite", "best_paths", "credit_of"]


class NonFinite(TreewrightError):
    """NaN or infinity in rewards, log-probs, loss or gradient; the step was not taken and no weight has changed."""


def credit_of(
    trees: Sequence[Tree], settings: TrainSettings, baselines: dict[str, float], logprobs: LogProbs
) -> tuple[TreeArrays, Credit, LeafRows | None, list[NDArray[np.float64]] | None]:
    """Arrays, credit, the rows where each is clipped by itself, and the credit of tokens where the settings ask for it.

    A root's baseline comes from other trees of its own suite, now or in earlier batches: `baselines` by suite, which
    are brought up to date. Suites differ in how often they succeed; one baseline for all would only add variance. Trees
    of a suite stand side by side.

    logprobs  f64 [M] of a pack's targets under the present weights, asked for draws at other temperatures alone
    Raises NonFinite for credit that is not finite.
    """
    name, options = settings.estimator, settings.estimator_options
    biased = options_taken(name, {"allow_biased": settings.allow_biased})
    parts: list[tuple[TreeArrays, Credit]] = []
    rows: list[LeafRows] = []
    tokens: list[NDArray[np.float64]] = []
    by_turn, segment = settings.unit == "turn", settings.segment
    nodes = 0
    for suite, group in groupby(trees, key=origin_of):
        part = list(group)
        arrays = weighted_for(part, tree_arrays(part), logprobs, settings)
        arrays.validate()
        told = with_texts(options, part)
        own = options_taken(name, {"root_baseline": baselines.get(suite)})
        if by_turn:
            credit = estimate(name, arrays, **{**biased, **own, **told})
        else:
            of = token_credit(name, part, arrays, segment=segment, **{**biased, **own, **told})
            credit, tokens = of.credit, [*tokens, *of.tokens]
        if not np.isfinite(credit.coef).all():
            raise NonFinite(f"the credit of {int((~np.isfinite(credit.coef)).sum())} nodes is not finite")
        if settings.clip_rows:
            found = leaf_rows(name, arrays, **told)
            rows.append(LeafRows(found.leaf + nodes, found.node + nodes, found.coef))
        nodes += len(arrays)
        roots = credit.value[arrays.roots]
        if np.isfinite(roots).any():
            baselines[suite] = float(np.nanmean(roots))
        parts.append((arrays, credit))
    joined = {f.name: np.concatenate([getattr(c, f.name) for _, c in parts]) for f in fields(Credit)}
    together = (np.concatenate([getattr(r, f.name) for r in rows]) for f in fields(LeafRows)) if rows else None
    return (
        TreeArrays.concatenate([a for a, _ in parts]),
        Credit(**joined),
        LeafRows(*together) if together is not None else None,
        None if by_turn else tokens,
    )


def best_paths(trees: Sequence[Tree]) -> NDArray[np.float64]:
    """[N] what the best path of each tree earned, at the nodes on it, else 0; N nodes, one tree after the other.

    The best path is that to the finished leaf of the highest known return, the first of equal ones; one that earned
    nothing, or less, is no example.
    """
    parts = []
    for tree in trees:
        known = [leaf for leaf in tree.leaves() if not np.isnan(tree.outcome_of(leaf))]
        mine, best = np.zeros(len(tree)), max(known, key=tree.outcome_of, default=None)
        if best is not None:
            mine[tree.path(best)[1:]] = max(0.0, tree.outcome_of(best))
        parts.append(mine)
    return np.concatenate(parts) if parts else np.zeros(0)
