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

__all__ = [
    "PackedBatch",
    "behaviour_of",
    "checked_logprobs",
    "dealt",
    "filled",
    "join_packs",
    "masses",
    "trees_of_step",
]


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


def join_packs(parts: Sequence[PackedBatch], trees: int | None = None, share: bool = True) -> PackedBatch:
    """One pack of several; it counts `trees`, or as many as they do.

    share  what a part begins with is stored once with the same beginning of the part before it, up to the first token
           that is trained on: instructions that all tasks of a suite have
    """
    forest = Forest(share)
    for part in parts:
        forest.add(part)
    return forest.pack(trees)


class Forest:
    """A pack that is being made of parts, one after the other; `share` as in `join_packs`."""

    def __init__(self, share: bool = True) -> None:
        self._share, self._size = share, 0
        self._parts: list[tuple[PackedBatch, NDArray[np.int64], int]] = []  # where tokens stand; how many stood there
        self._trunk = np.zeros(0, np.int64)  # the tokens above everything in the last part, as they stand here

    def _begun(self, part: PackedBatch, run: int) -> int:
        """How many of the part's first tokens, of which `run` follow each other, are here already, in a place where it
        can go on."""
        if not self._share or not len(self._trunk):
            return 0
        last = self._parts[-1][0]
        most = min(len(self._trunk), run, int(part.target.min(initial=len(part))))
        differ = last.ids[:most] != part.ids[:most]
        if last.routes is not None and part.routes is not None and last.routes.shape[1:] == part.routes.shape[1:]:
            differ = differ | (last.routes[:most] != part.routes[:most]).any((1, 2))
        elif last.routes is not None or part.routes is not None:
            return 0
        return int(differ.argmax()) if differ.any() else most

    def add(self, part: PackedBatch, most: float = math.inf) -> bool:
        """Puts the part behind those that are here, if there are at most so many tokens then, or none are now; whether
        it did."""
        run, above = _branch(part)
        known = self._begun(part, run)
        if self._parts and self._size + len(part) - known > most:
            return False
        new = np.arange(self._size, self._size + len(part) - known)
        place = np.concatenate([self._trunk[:known], new])
        self._parts.append((part, place, known))
        self._size += len(new)
        self._trunk = place[:above]
        return True

    def pack(self, trees: int | None = None) -> PackedBatch:
        """All parts as one pack; it counts `trees`, or as many as they do."""
        parts = [part for part, _, _ in self._parts]
        targets = np.cumsum([0] + [len(p.target) for p in parts])
        draws = np.cumsum([0] + [int(p.sequence.max(initial=-1)) + 1 for p in parts])
        return PackedBatch(
            ids=np.concatenate([p.ids[known:] for p, _, known in self._parts]),
            parent=np.concatenate(
                [np.where(p.parent >= 0, place[p.parent], -1)[known:] for p, place, known in self._parts]
            ).astype(np.int32),
            target=np.concatenate([place[p.target] for p, place, _ in self._parts]),
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
            routes=_joined([(len(p) - n, None if p.routes is None else p.routes[n:]) for p, _, n in self._parts]),
            imitate=np.concatenate([p.imitate for p in parts]),
        )


def _branch(part: PackedBatch) -> tuple[int, int]:
    """How many first tokens follow each other, and how many of them are above all the rest."""
    apart = np.flatnonzero(part.parent != np.arange(-1, len(part) - 1))
    return (int(apart[0]), int(part.parent[apart].min()) + 1) if len(apart) else (len(part), len(part))


def _joined(parts: Sequence[tuple[int, NDArray[np.int16] | None]]) -> NDArray[np.int16] | None:
    """Routes of packs of so many tokens, one after the other. Raises TreewrightError where they are of two models."""
    shapes = sorted({routes.shape[1:] for _, routes in parts if routes is not None})
    if not shapes:
        return None
    if len(shapes) > 1:
        found = " and ".join(f"{layers} layers with {each} experts a token" for layers, each in shapes)
        raise TreewrightError(f"trees with routes of {found}: they were drawn by different models; train on one's")
    return np.concatenate([np.full((n, *shapes[0]), -1, np.int16) if routes is None else routes for n, routes in parts])


def dealt(packs: Sequence[PackedBatch], steps: int) -> list[Sequence[PackedBatch]]:
    """The packs of each of so many optimizer steps, or of one for each pack where there are fewer."""
    return [packs[i::steps] for i in range(min(steps, len(packs)))]


def trees_of_step(packs: Sequence[PackedBatch], steps: int) -> float:
    """What the sums of each step are divided by: its share of all trees generated, in whichever pack those without
    gradient are counted. So no tree counts more than another, and the mean over the steps is that over the trees."""
    return sum(p.trees for p in packs) / max(1, steps)


def filled(parts: Sequence[PackedBatch | None], max_tokens: int, share: bool = True) -> list[PackedBatch]:
    """Packs in order; the last one counts the trees that are in none. `share` as in `join_packs`."""
    forests, counts = list[Forest](), list[int]()
    for part in parts:
        if part is None:
            continue
        if not forests or not forests[-1].add(part, max_tokens):
            forests.append(Forest(share))
            counts.append(0)
            forests[-1].add(part)
        counts[-1] += 1
    if counts:
        counts[-1] += len(parts) - sum(counts)
    return [forest.pack(n) for forest, n in zip(forests, counts, strict=True)]
