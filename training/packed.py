"""What a packed batch is, and how packs are joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from treewright.envs.errors import TreewrightError
from treewright.kernels.tree_plan import TreePlan
from treewright.search.tree import Tree
from treewright.search.types import Origin

__all__ = ["PackedBatch", "behaviour_of", "checked_logprobs", "filled", "join_packs", "masses"]


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedBatch:
    """A forest of tokens in preorder.

    ids        i64 [T] token ids
    parent     i32 [T] index of the token before this one on its path, −1 for the first token of a tree
    target     i64 [M] indices of the tokens that are trained on; none is a first token
    coef       f64 [M] sum over the draws that share the token of the estimator's coefficient for their edge
    behaviour  f64 [M] log-prob under the distribution the token was drawn from; NaN where no policy drew it
    trees      how many trees were generated for this batch, those without any credit included
    weight     f64 [M] sum over the draws that share the token of their mass in the tree
    mode       i64 [M] a `treewright.training.loss.Mode`
    term       i64 [P] which of the M targets a loss term is about, and  term_coef  f64 [P] its coefficient
    sequence   i64 [P] which draw, or which leaf's row and draw, a term belongs to; −1 where terms are tokens
    imitate    f64 [M] sum over the draws that share the token of what the best path earned that they lie on, else 0
    routes     i16 [T, L, K] the experts that the sampler sent each token to, −1 where that is not known; None: of none
    """

    ids: NDArray[np.int64]
    parent: NDArray[np.int32]
    target: NDArray[np.int64]
    coef: NDArray[np.float64]
    behaviour: NDArray[np.float64]
    trees: int
    weight: NDArray[np.float64]
    mode: NDArray[np.int64]
    term: NDArray[np.int64]
    term_coef: NDArray[np.float64]
    sequence: NDArray[np.int64]
    imitate: NDArray[np.float64]
    routes: NDArray[np.int16] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def plan(self) -> TreePlan:
        """Mask, positions and predictors of the pack: made when they are first asked for, and once."""
        return TreePlan.from_parents(self.parent)


def checked_logprobs(tree: Tree, node: int, tokens: int) -> tuple[float, ...]:
    """The log-probs of what was drawn at a node. Raises TreewrightError where training cannot use them."""
    found = tree.logprobs[node]
    if len(found) != tokens:
        raise TreewrightError(
            f"node {node} of tree {tree.tree_id} has {tokens} tokens and {len(found)} log-probs; "
            "only completions with exact log-probs can be trained on"
        )
    if not all(map(math.isfinite, found)):
        raise TreewrightError(f"node {node} of tree {tree.tree_id} has log-probs that are not finite")
    return found


def behaviour_of(tree: Tree, node: int, tokens: int, importance: float) -> tuple[float, ...]:
    """Log-probs by which the loss corrects a draw; () where nothing is to be corrected: what no policy drew, and what
    the credit has weighed already. Raises TreewrightError as `checked_logprobs`."""
    own = tree.origin[node] is Origin.POLICY and (importance == 1 or importance != importance)
    return checked_logprobs(tree, node, tokens) if own else ()


def masses(tree: Tree, importance: NDArray[np.float64]) -> list[float]:
    """[N] by node the mass of its draw: shares from the root, times the weights of draws at other temperatures."""
    if bool((importance == 1).all()):
        return [tree.mass[tree.parent[i]] * tree.share[i] if i else 1.0 for i in range(len(tree))]
    out = [1.0]
    for i in range(1, len(tree)):
        out.append(out[tree.parent[i]] * tree.share[i] * float(np.nan_to_num(importance[i], nan=1.0)))
    return out


def join_packs(parts: Sequence[PackedBatch], trees: int | None = None) -> PackedBatch:
    """One pack of several; it counts `trees`, or as many as they do."""
    starts = np.cumsum([0] + [len(p) for p in parts])
    targets = np.cumsum([0] + [len(p.target) for p in parts])
    draws = np.cumsum([0] + [int(p.sequence.max(initial=-1)) + 1 for p in parts])
    return PackedBatch(
        ids=np.concatenate([p.ids for p in parts]),
        parent=np.concatenate(
            [np.where(p.parent >= 0, p.parent + s, -1) for p, s in zip(parts, starts, strict=False)]
        ).astype(np.int32),
        target=np.concatenate([p.target + s for p, s in zip(parts, starts, strict=False)]),
        coef=np.concatenate([p.coef for p in parts]),
        behaviour=np.concatenate([p.behaviour for p in parts]),
        trees=sum(p.trees for p in parts) if trees is None else trees,
        weight=np.concatenate([p.weight for p in parts]),
        mode=np.concatenate([p.mode for p in parts]),
        term=np.concatenate([p.term + s for p, s in zip(parts, targets, strict=False)]),
        term_coef=np.concatenate([p.term_coef for p in parts]),
        sequence=np.concatenate(
            [np.where(p.sequence >= 0, p.sequence + s, -1) for p, s in zip(parts, draws, strict=False)]
        ),
        routes=_joined([(len(p), p.routes) for p in parts]),
        imitate=np.concatenate([p.imitate for p in parts]),
    )


def _joined(parts: Sequence[tuple[int, NDArray[np.int16] | None]]) -> NDArray[np.int16] | None:
    """Routes of packs of so many tokens, one after the other. Raises TreewrightError where they are of two models."""
    shapes = sorted({routes.shape[1:] for _, routes in parts if routes is not None})
    if not shapes:
        return None
    if len(shapes) > 1:
        found = " and ".join(f"{layers} layers with {each} experts a token" for layers, each in shapes)
        raise TreewrightError(f"trees with routes of {found}: they were drawn by different models; train on one's")
    return np.concatenate([np.full((n, *shapes[0]), -1, np.int16) if routes is None else routes for n, routes in parts])


def filled(parts: Sequence[PackedBatch | None], max_tokens: int) -> list[PackedBatch]:
    """Packs in order; the last one counts the trees that are in none."""
    packs: list[list[PackedBatch]] = []
    room = 0
    for part in parts:
        if part is None:
            continue
        if not packs or len(part) > room:
            packs.append([])
            room = max_tokens
        packs[-1].append(part)
        room -= len(part)
    counts = [len(p) for p in packs]
    if counts:
        counts[-1] += len(parts) - sum(counts)
    return [join_packs(p, n) for p, n in zip(packs, counts, strict=True)]
