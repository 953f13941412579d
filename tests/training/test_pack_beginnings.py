"""Trees of a pack store what they begin with once; what each token is predicted from stays the same."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from search_trees import random_tree, tiny_model

from treewright.kernels.tree_plan import TreePlan
from treewright.training.credit import estimate, tree_arrays
from treewright.training.model import prepare, tree_logprobs
from treewright.training.pack import PackedBatch, TokenRow, join_packs, pack_rows, pack_trees
from treewright.training.step import Trainer, TrainSettings

FIELDS = ("coef", "behaviour", "weight", "mode", "term", "term_coef", "sequence", "imitate")


def part(lots: random.Random, instructions: tuple[int, ...]) -> PackedBatch:
    """Rows of a task: instructions that others have, words of its own, and steps that branch anywhere behind them."""
    context, rows = (*instructions, *lots.choices(range(40, 50), k=lots.randrange(4))), list[TokenRow]()
    context = (*context, lots.randrange(50))
    for _ in range(lots.randrange(1, 5)):
        said = tuple(lots.choices(range(50), k=lots.randrange(1, 4)))
        rows.append(TokenRow(context=context, response=said, coef=lots.random(), mass=lots.random()))
        if lots.random() < 0.5:
            context = (*context, *said, lots.randrange(50))
        elif lots.random() < 0.3:
            context = (*context[: lots.randrange(1, len(context))], lots.randrange(50))
    (pack,) = pack_rows([rows])
    return pack


def parts(seed: int) -> list[PackedBatch]:
    """Tasks of suites whose instructions begin alike, those of a suite mostly side by side."""
    lots = random.Random(seed)
    base = tuple(lots.choices(range(50), k=5))
    suites = [base, (*base, 7, 8, 9), (*base[:3], 1, 2), (3,)]
    return [part(lots, suites[min(3, i // 3) if lots.random() < 0.8 else lots.randrange(4)]) for i in range(12)]


def paths(pack: PackedBatch) -> list[tuple[int, ...]]:
    """Token ids from the first one to each target."""
    found = []
    for at in pack.target.tolist():
        ids = list[int]()
        while at >= 0:
            ids.append(int(pack.ids[at]))
            at = int(pack.parent[at])
        found.append(tuple(reversed(ids)))
    return found


@pytest.mark.parametrize("seed", range(30))
def test_targets_terms_and_paths_are_those_of_parts_that_stand_apart(seed: int) -> None:
    given = parts(seed)
    shared, apart = join_packs(given), join_packs(given, share=False)
    assert len(shared) < len(apart) == sum(map(len, given)) and shared.trees == apart.trees
    assert paths(shared) == paths(apart)
    for name in FIELDS:
        assert np.array_equal(getattr(shared, name), getattr(apart, name), equal_nan=True), name
    assert TreePlan.from_parents(shared.parent).n_pairs < apart.plan.n_pairs
    assert (np.diff(shared.target) > 0).all() and not set(shared.target) & set(np.flatnonzero(shared.parent < 0))
    seen = list[int]()  # preorder: each token follows the one before it, or one above that
    for i, up in enumerate(shared.parent.tolist()):
        while seen and seen[-1] != up:
            seen.pop()
        assert up == (seen[-1] if seen else -1)
        seen.append(i)


def test_what_is_trained_on_stands_in_each_tree_by_itself() -> None:
    """Two trees of one task in which the same was drawn: their terms may pull to different sides."""
    rows = [TokenRow(context=(1, 2, 3), response=(4, 5), coef=coef) for coef in (1.0, -1.0)]
    shared = join_packs([pack_rows([[row]])[0] for row in rows])
    assert shared.ids.tolist() == [1, 2, 3, 4, 5, 4, 5] and shared.parent.tolist() == [-1, 0, 1, 2, 3, 2, 5]
    assert shared.target.tolist() == [3, 4, 5, 6] and shared.term_coef.tolist() == [1, 1, -1, -1]


def test_beginnings_of_other_routes_stand_apart() -> None:
    one, other = (replace(p, routes=np.full((len(p), 2, 2), 1, np.int16)) for p in parts(0)[:2])
    together = join_packs([one, other])
    assert len(together) < len(one) + len(other) and len(together.routes) == len(together)  # type: ignore[arg-type]
    assert other.routes is not None
    other.routes[1] = 3
    assert len(join_packs([one, other])) == len(one) + len(other) - 1
    assert len(join_packs([one, replace(other, routes=None)])) == len(one) + len(other)


def told(seed: int) -> Any:
    """A tree whose prompt begins as that of others does."""
    tree = random_tree(seed)
    tree.delta[0] = (*range(3, 15), *tree.delta[0])
    for i in range(1, len(tree)):
        tree.keep[i] += 12
    return tree


@pytest.mark.parametrize("chunk", [None, 24])
def test_a_step_on_trees_that_share_their_beginning_is_that_on_trees_that_stand_apart(chunk: int | None) -> None:
    trees = [told(seed) for seed in range(6)]
    arrays = tree_arrays(trees)
    credit = estimate("split_loo", arrays)
    shared, apart = (pack_trees(trees, arrays, credit, 400, share=share) for share in (True, False))
    taught = sum(int((pack.parent < 0).sum()) for pack in apart)
    assert sum(map(len, shared)) == sum(map(len, apart)) - 12 * (taught - len(shared))
    found = []
    for packs in (shared, apart):
        trainer = Trainer(tiny_model(), TrainSettings(lr=0.01, minibatches=1, chunk_tokens=chunk))
        trainer.descend_surrogate(packs)
        found.append(torch.cat([p.grad.reshape(-1) for p in trainer.model.parameters()]))
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 1e-6


def test_log_probs_are_the_same_where_a_beginning_is_shared() -> None:
    model = tiny_model()
    prepare(model)
    trees = [told(seed) for seed in range(4)]
    arrays = tree_arrays(trees)
    packs = [
        pack_trees(trees, arrays, estimate("split_loo", arrays), every=True, share=share) for share in (True, False)
    ]
    found = []
    for (pack,) in packs:
        target = torch.from_numpy(pack.target)
        rows = torch.from_numpy(pack.parent.astype(np.int64))[target]
        ids = torch.from_numpy(pack.ids)
        found.append(tree_logprobs(model, ids, pack.plan, rows, ids[target], 64)[0].detach())
    assert len(packs[0][0]) == len(packs[1][0]) - 12 * 3
    assert torch.allclose(found[0], found[1], atol=1e-12)


def test_groups_of_rows_fill_a_pack_by_what_they_add_and_never_beyond_its_bound() -> None:
    head = tuple(range(60))
    groups = [[TokenRow(context=(*head, 100 + i), response=(200 + i, 300 + i))] for i in range(6)]
    packs = pack_rows(groups, 72)
    assert [len(pack) for pack in packs] == [72, 66] and [pack.trees for pack in packs] == [4, 2]
    for seed in range(20):
        lots = random.Random(seed)
        some = [[row] for row in _rows(lots, head, 30)]
        packs = pack_rows(some, 80)
        assert max(len(pack) for pack in packs) <= 80 and sum(pack.trees for pack in packs) == 30


def _rows(lots: random.Random, head: tuple[int, ...], count: int) -> list[TokenRow]:
    return [
        TokenRow(
            context=(*head[: lots.randrange(1, 60)], lots.randrange(9)), response=tuple(lots.choices(range(9), k=3))
        )
        for _ in range(count)
    ]


def test_imitation_puts_episodes_that_begin_alike_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    from treewright.training.recipes import imitate

    sizes = list[int]()

    def packed(groups: Any, most: int) -> list[PackedBatch]:
        packs = pack_rows(groups, most)
        sizes.append(sum(len(pack) for pack in packs))
        return packs

    monkeypatch.setattr(imitate, "pack_rows", packed)
    suites = ((0,) * 20, (1,) * 20)
    groups = [[TokenRow(context=(*suites[i % 2], 2 + i), response=(10, 11))] for i in range(8)]
    trainer = Trainer(tiny_model(), TrainSettings(max_tokens=32))
    imitate.learn_rows(trainer, groups, lr=1e-4, batch=8)
    assert sizes == [2 * (20 + 4 * 3)]  # a pack for each suite, its beginning once
