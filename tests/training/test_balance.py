"""Forests are shared out so that no rank waits for another, by what they cost, and every part is in one place."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from not_none import not_none
from search_trees import random_tree
from transformers import GptOssConfig, LlamaConfig

from treewright.training.balance import Costs, Part, costs_of, fitted, idle_share, share_out
from treewright.training.credit import estimate
from treewright.training.credit.trees import tree_arrays
from treewright.training.pack import join_packs, pack_trees
from treewright.training.parallel.forest import Slot, compares, cut, from_bytes, part_of, shares, to_bytes

COSTS = Costs(token=1.0, pair=0.02)


def forest(count: int, seed: int, size: int = 300) -> list[Any]:
    rng = random.Random(seed)
    sizes = [max(1, round(rng.lognormvariate(0, 0.5) * size)) for _ in range(count)]
    return [Part(n, round(n * rng.uniform(4, 40))) for n in sizes]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_part_is_in_one_bin_and_no_bin_is_too_full(ranks: int) -> None:
    for seed in range(8):
        parts = forest(60, seed)
        plan = share_out(parts, ranks, 2000, COSTS)
        assert all(len(row) == ranks for row in plan)
        assert sorted(i for row in plan for mine in row for i in mine) == list(range(60))
        for mine in (m for row in plan for m in row if len(m) > 1):
            assert sum(parts[i].tokens for i in mine) <= 2000
        assert plan == share_out(parts, ranks, 2000, COSTS)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_no_rank_waits_more_than_a_twentieth_where_trees_are_small_enough(ranks: int) -> None:
    for seed in range(6):
        parts = forest(40 * ranks, seed, size=300)
        assert idle_share(parts, share_out(parts, ranks, 4096, COSTS), COSTS) <= 0.05


def test_one_tree_that_is_too_long_is_a_bin_of_its_own_and_what_waits_is_told() -> None:
    parts = [Part(9000, 90000), *forest(3, 0)]
    plan = share_out(parts, 2, 2000, COSTS)
    assert [0] in plan[0]
    alone = idle_share([Part(100, 0)], [[[0], []]], COSTS)
    assert alone == pytest.approx(0.5) and idle_share([], [], COSTS) == 0


def test_costs_follow_from_the_configuration_and_from_measured_steps() -> None:
    small = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, head_dim=16, vocab_size=100)  # fmt: skip
    costs = costs_of(LlamaConfig(**small))
    assert costs.token == 6 * (2 * (64 * 16 * 12 + 3 * 64 * 128) + 64 * 100)
    assert costs.pair == 3.5 * 4 * 4 * 16 * 2
    experts = costs_of(GptOssConfig(**small, num_local_experts=8, num_experts_per_tok=4))
    assert experts.token == 6 * (2 * (64 * 16 * 12 + 4 * 3 * 64 * 128) + 64 * 100)
    rng = np.random.default_rng(0)
    tokens, pairs = rng.uniform(100, 1000, 12), rng.uniform(1e3, 1e5, 12)
    seconds = (0.5 + 2e-3 * tokens + 1e-5 * pairs) * rng.uniform(0.99, 1.01, 12)
    found = fitted(tokens.tolist(), pairs.tolist(), seconds.tolist())
    assert [found.token, found.pair, found.pack] == pytest.approx([2e-3, 1e-5, 0.5], rel=0.1)
    assert fitted(tokens.tolist(), pairs.tolist(), (0.1 * tokens).tolist()).pair == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="at least 3"):
        fitted([1], [1], [1])


@pytest.mark.parametrize("terms", ["token", "draw"])
def test_a_pack_that_is_cut_and_joined_again_is_the_same_and_crosses_a_wire(terms: str) -> None:
    trees = [random_tree(s, window=s % 2 == 1) for s in range(6)]
    arrays = tree_arrays(trees)
    for pack in pack_trees(trees, arrays, estimate("split_loo", arrays), 400, terms=terms):
        whole = join_packs(cut(pack))
        (sent, nothing) = from_bytes(to_bytes([whole, None]))
        assert nothing is None and whole.trees == pack.trees
        for other in (whole, sent):
            for name in ("ids", "parent", "target", "coef", "behaviour", "weight", "mode", "term", "term_coef"):
                np.testing.assert_array_equal(getattr(other, name), getattr(pack, name))
            same = np.equal.outer(pack.sequence, pack.sequence)
            np.testing.assert_array_equal(np.equal.outer(not_none(other).sequence, not_none(other).sequence), same)


def test_ranks_with_fewer_packs_do_as_many_passes() -> None:
    trees = [random_tree(s) for s in range(5)]
    arrays = tree_arrays(trees)
    packs = pack_trees(trees, arrays, estimate("split_loo", arrays), 200)
    dealt, slots = shares(packs, 3, 60, 25, COSTS)
    assert {len(mine) for mine in dealt} == {len(slots)} and any(p is None for mine in dealt for p in mine)
    parts = sorted(part_of(p).tokens for pack in packs for p in cut(pack) if len(p.target))
    assert sum(part_of(p).tokens for mine in dealt for p in mine if p is not None) == sum(parts)
    for k, slot in enumerate(slots):
        longer = [part for m in dealt if (part := m[k]) is not None and len(part) > 25]
        assert slot == Slot(max((-(-len(part) // 25) for part in longer), default=0),
                            slot.second)  # fmt: skip
        assert slot.second >= 1
    assert compares(packs, 0.5) and not compares(packs, 0.0)
    kept, _ = shares(packs, 2, 60, None, COSTS, whole=True)
    assert sorted(len(p) for mine in kept for p in mine if p is not None) == sorted(map(len, packs))
