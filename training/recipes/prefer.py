"""Direct preference optimisation on what branches of trees show, without a reward model of its own.

    L = −mean log σ(β [(log π − log π_ref)(chosen) − (log π − log π_ref)(rejected)])       Rafailov et al., 2305.18290

Pairs come from branches (two executed siblings of different value, as TreeCUA-DPO does) or from refinements: what the
policy did at first, and failed, against what a search then found from the same place (after SPaR, 2412.11605): by the
world's reward, or by a model that judges and one that refines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from treewright.envs.errors import TreewrightError
from treewright.search.tree import FINISHED, Tree
from treewright.training.credit.arrays import InexactTree
from treewright.training.export.rows import SOLVED, dpo_rows, known_gap
from treewright.training.export.view import EXECUTED, View
from treewright.training.pack import PackedBatch, TokenRow, pack_rows
from treewright.training.step import PackLoss, Trainer, frozen

__all__ = ["Pair", "branch_pairs", "dpo", "refinement_pairs", "require_exact", "spar_pairs"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Token ids of a prompt and of two answers to it; `gap` is the difference of their values."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    gap: float


def require_exact(trees: Sequence[Tree], allow_biased: bool, what: str) -> None:
    """Raises InexactTree, with the reasons, if any tree is inexact and that is not allowed."""
    bad = [t for t in trees if not t.exact]
    if bad and not allow_biased:
        raise InexactTree(
            f"{what}: {len(bad)} of {len(trees)} trees are inexact, the first because {bad[0].reasons[0]}; values at "
            "their branches may be off. Leave them out, or accept that with train.allow_biased=true"
        )


def branch_pairs(trees: Sequence[Tree], min_gap: float = 0.1, pairs: str = "extremes") -> list[Pair]:
    """Two siblings of every branch whose values differ by at least `min_gap`, see `export.dpo_rows`.

    Raises TreewrightError for a gap that is negative or no number.
    """
    known_gap(min_gap)
    return [
        Pair(tuple(row["prompt_ids"]), tuple(row["chosen_ids"]), tuple(row["rejected_ids"]), row["gap"])
        for tree in trees
        for row in dpo_rows(View(tree, style="tokens"), min_gap, pairs)
    ]


def spar_pairs(trees: Sequence[Tree], min_outcome: float = SOLVED) -> list[Pair]:
    """Refined ≻ original, one pair for each tree whose first attempt failed and whose search succeeded.

    The first attempt is the path of first draws. One that did not end, or ended by a fault or in a reward that nobody
    knows, is not known to have failed: no pair. Of the successful paths the one that leaves it latest is the
    refinement, so that as little as possible differs besides what was wrong.
    """
    out = []
    for tree in trees:
        first = _first_attempt(tree)
        if not (_ended(tree, first) and tree.outcome_of(first[-1]) < min_outcome):
            continue
        best = max(
            View(tree, style="tokens").best("all", min_outcome),
            key=lambda leaf: (_shared(first, tree.path(leaf)), tree.path_logprob[leaf]),
            default=None,
        )
        if best is None:
            continue
        path = tree.path(best)
        at = _shared(first, path)
        chosen, rejected = path[at], first[at]
        if tree.ids[chosen] and tree.ids[rejected] and tree.error[chosen] is None:
            gap = tree.outcome_of(best) - tree.outcome_of(first[-1])
            out.append(Pair(tree.context_ids(path[at - 1]), tree.ids[chosen], tree.ids[rejected], gap))
    return out


def refinement_pairs(trees: Sequence[Tree], min_outcome: float = SOLVED) -> list[Pair]:
    """Refined ≻ own attempt from trees whose every turn is a whole answer: the attempt is the first one below the root,
    the refinement the answer of highest score, the earliest of equal ones, among those that reached `min_outcome`. None
    from trees whose attempt did, or whose attempt's reward is not known, or without one that did."""
    out = []
    for tree in trees:
        own = tree.children[0][0] if tree.children[0] else None
        good = [leaf for leaf in tree.leaves() if tree.outcome_of(leaf) >= min_outcome]
        if own is None or not good or own in good:
            continue
        if tree.status[own] not in EXECUTED or tree.fault[own] is not None or math.isnan(tree.outcome_of(own)):
            continue
        best = min(good, key=lambda leaf: (-tree.score[leaf], leaf))
        if tree.ids[own] and tree.ids[best]:
            gap = tree.outcome_of(best) - tree.outcome_of(own)
            out.append(Pair(tree.context_ids(0), tree.ids[best], tree.ids[own], gap))
    return out


def _first_attempt(tree: Tree) -> list[int]:
    path = [0]
    while tree.children[path[-1]]:
        path.append(min(tree.children[path[-1]], key=lambda i: (tree.slot[i], tree.status[i] not in EXECUTED)))
    return path


def _ended(tree: Tree, path: Sequence[int]) -> bool:
    """Whether an episode ended at the end of the path, every step of it executed, in a known reward."""
    executed = all(tree.status[i] in EXECUTED for i in path[1:])
    return executed and tree.status[path[-1]] in FINISHED and not math.isnan(tree.outcome_of(path[-1]))


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(1 for x, y in zip(a, b, strict=False) if x == y)


def dpo(trainer: Trainer, pairs: Sequence[Pair], *, beta: float = 0.1, epochs: int = 1) -> dict[str, float]:
    """Trains on the pairs. The reference is `trainer.reference`, or a frozen copy of the weights as they are now.

    Raises TreewrightError without pairs. `loss`, `margin` (the mean implicit reward of chosen over rejected) and
    `accuracy` (how often it is positive) are those after training; `first_loss` is that before it, log 2 where π is the
    reference.
    """
    if not pairs:
        raise TreewrightError("no pairs: no branch has siblings of different value; collect with more draws")
    if not 0 < beta < math.inf:
        raise TreewrightError(f"beta = {beta}; it must be a number above 0")
    reference = trainer.reference if trainer.reference is not None else frozen(trainer.model)
    groups = [
        [TokenRow(context=p.prompt, response=p.chosen), TokenRow(context=p.prompt, response=p.rejected)] for p in pairs
    ]
    packs = pack_rows(groups, trainer.settings.max_tokens)
    with torch.no_grad():
        known = {id(pack): _by_row(trainer.logprobs(pack, reference)[0], pack) for pack in packs}

    def loss_of(pack: PackedBatch, count: float) -> PackLoss:
        def loss(logp: Tensor, entropy: Tensor) -> tuple[Tensor, dict[str, float]]:
            won, lost = (_by_row(logp, pack) - known[id(pack)]).reshape(-1, 2).unbind(1)
            margin = beta * (won - lost)
            seen = {"margin": float(margin.detach().mean()), "accuracy": float((margin > 0).float().mean())}
            return -F.logsigmoid(margin).sum() / count, seen

        return loss

    first = _measured(trainer, packs, loss_of)["loss"]
    stats: dict[str, float] = {}
    for _ in range(epochs):
        stats = trainer.descend(packs, loss_of)
    return stats | _measured(trainer, packs, loss_of) | {"first_loss": first, "pairs": float(len(pairs))}


def _measured(trainer: Trainer, packs: Sequence[PackedBatch], loss_of: Callable[..., PackLoss]) -> dict[str, float]:
    """Loss, margin and accuracy under the weights as they are, means over the pairs."""
    pairs = [(int(pack.sequence.max()) + 1) // 2 for pack in packs]
    total = sum(pairs)
    sums: dict[str, float] = {"loss": 0.0}
    with torch.no_grad():
        for pack, here in zip(packs, pairs, strict=True):
            loss, seen = loss_of(pack, total)(*trainer.logprobs(pack))
            sums["loss"] += float(loss)
            for name, value in seen.items():
                sums[name] = sums.get(name, 0.0) + value * here / total
    return sums


def _by_row(logp: Tensor, pack: PackedBatch) -> Tensor:
    """[rows] sums of the log-probs [M] over each row of the pack."""
    term, row = (torch.from_numpy(a).to(logp.device) for a in (pack.term, pack.sequence))
    return logp.new_zeros(int(row.max()) + 1).index_add(0, row, logp[term])
