from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from treewright.training.credit import InexactTree, Origin, TreeArrays, estimate, split_loo, split_loo_reference
from treewright.training.credit.arrays import Credit

from .credit_trees import random_batch


def same(a: Credit, b: Credit) -> None:
    for name in ("value", "coef", "weight", "ess"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-9, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("seed", range(40))
def test_fast_version_equals_the_formulas_on_exact_batches(seed: int) -> None:
    batch = random_batch(seed, trees=1 + seed % 4, groups=1 + seed % 3)
    options: dict[str, Any] = {"tau": [0.0, 3.0, 7.5][seed % 3], "weight_power": [1.0, 0.5, 0.0][seed % 3]}
    same(split_loo(batch, **options), split_loo_reference(batch, **options))


@pytest.mark.parametrize("seed", range(40))
def test_fast_version_equals_the_formulas_with_faults_open_ends_and_unknown_rewards(seed: int) -> None:
    batch = random_batch(seed, exact=False)
    options: dict[str, Any] = {"allow_biased": True, "root_baseline": 0.25 if seed % 2 else None}
    same(split_loo(batch, **options), split_loo_reference(batch, **options))


def test_golden_two_levels_with_a_duplicate_and_a_reward_on_the_way() -> None:
    # root draws a twice and b once (K=3); a earns 1 and draws two ends worth 0 and 4; b ends with 2
    tree = TreeArrays.of([-1, 0, 0, 1, 1], mult=[1, 2, 1, 1, 1], reward=[0, 1, 2, 0, 4])
    credit = split_loo(tree, tau=0.0)
    # V_a = 2, U_a = 3, U_b = 2, V_root = (2·3 + 2)/3 = 8/3
    np.testing.assert_allclose(credit.value, [8 / 3, 2, 0, 0, 0])
    np.testing.assert_allclose(credit.weight, [1, 2 / 3, 1 / 3, 1 / 3, 1 / 3])
    # b_a = (8 − 3)/2 = 2.5 keeps the other copy, b_b = (8 − 2)/2 = 3; below a the baseline is the sibling
    np.testing.assert_allclose(credit.coef, [0, 2 / 3 * 0.5, 1 / 3 * -1, 1 / 3 * -4, 1 / 3 * 4], atol=1e-12)
    np.testing.assert_allclose(credit.ess, [3, 2, 1, 1, 1])


def test_golden_shrinkage_and_inherited_baseline_take_received_rewards_off() -> None:
    # a (reward 1) and b (reward 5) at the root, then a single draw below a that earns 2
    tree = TreeArrays.of([-1, 0, 0, 1], reward=[0, 1, 5, 2])
    credit = split_loo(tree, tau=1.0, root_baseline=10.0)
    # λ(1) = 1/2: b_a = (5 + 10)/2 = 7.5, b_b = (3 + 10)/2 = 6.5; d_a = 7.5 − 1 = 6.5, K = 1 below a: b = d_a
    np.testing.assert_allclose(credit.coef, [0, 0.5 * (3 - 7.5), 0.5 * (5 - 6.5), 0.5 * (2 - 6.5)])


def test_golden_roulette_kills_to_the_control_and_divides_by_the_probability() -> None:
    # K = 2: a kept with q = 1/2 and worth 3 over h = 1; b killed with h = 2
    kept: dict[str, Any] = {"keep_prob": [1, 0.5, 0.25], "kept": [True, True, False], "control": [0, 1, 2]}
    tree = TreeArrays.of([-1, 0, 0], reward=[0, 3, 9], **kept)
    credit = split_loo(tree, tau=0.0)
    # U_a = 1 + (3 − 1)/.5 = 5, U_b = 2
    np.testing.assert_allclose(credit.value[0], 3.5)
    np.testing.assert_allclose(credit.coef, [0, 0.5 * (5 - 2), 0.5 * (2 - 5)])
    np.testing.assert_allclose(credit.weight, [1, 1, 0])


def test_roots_take_the_mean_of_the_other_trees_of_their_group() -> None:
    chains = [TreeArrays.of([-1, 0], reward=[0, r], group=[g, g]) for r, g in [(1, 0), (2, 0), (6, 0), (5, 1)]]
    batch = TreeArrays.concatenate(chains)
    np.testing.assert_allclose(split_loo(batch).coef[1::2], [1 - 4, 2 - 3.5, 6 - 1.5, 5 - 3])
    np.testing.assert_allclose(split_loo(batch, root_baseline=4.0).coef[1::2], [-3, -1.5, 4.5, 1])


def test_adding_a_constant_to_every_end_changes_no_coefficient_in_a_group() -> None:
    batch = random_batch(3, plain=True, groups=1)
    ends = batch.terminal | batch.truncated
    shifted = batch.with_(reward=batch.reward + np.where(ends, 8.0, 0.0))
    np.testing.assert_allclose(split_loo(shifted).coef, split_loo(batch).coef, atol=1e-5)


def test_inexact_trees_are_refused_with_their_reasons_until_allowed() -> None:
    tree = TreeArrays.of([-1, 0, 0], terminal=[False, True, False], reasons=[["merged states"]])
    with pytest.raises(InexactTree, match=r"merged states \(1\), open frontier \(1\).*allow_biased"):
        split_loo(tree)
    assert split_loo(tree, allow_biased=True).coef.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"fault": [0, 1, 0]}, "fault"),
        ({"executed": [1, 0, 1]}, "unexecuted draft"),
        ({"reward": [0, np.nan, 1]}, "unknown reward"),
        ({"k": [3, 0, 0]}, "draws missing"),
        ({"origin": [0, Origin.INJECTED, 0]}, "not drawn from the policy"),
    ],
)
def test_arrays_show_why_a_tree_is_inexact(columns: dict[str, Any], reason: str) -> None:
    tree = TreeArrays.of([-1, 0, 0], **columns)
    assert tree.why_inexact() == ((reason,),)
    with pytest.raises(InexactTree, match=reason):
        estimate("split_loo", tree)


def test_a_fault_is_not_a_reward_of_zero() -> None:
    whole = TreeArrays.of([-1, 0, 0], reward=[0, 1, 2])
    faulty = TreeArrays.of([-1, 0, 0, 0], reward=[0, 1, 2, 0], fault=[0, 0, 0, 1])
    credit = split_loo(faulty, allow_biased=True)
    np.testing.assert_allclose(credit.coef, [*split_loo(whole).coef, 0])
    assert credit.value[0] == 1.5 and np.isnan(credit.value[3])


def test_stored_prefix_passes_its_mass_on_and_is_not_trained() -> None:
    tree = TreeArrays.of([-1, 0, 1, 1], reward=[0, 0, 1, 0], origin=[0, Origin.STORED, 0, 0])
    np.testing.assert_allclose(split_loo(tree, tau=0).coef, [0, 0, 0.5, -0.5])


def test_weights_of_finished_leaves_sum_to_one_without_roulette() -> None:
    batch = random_batch(5, plain=True)
    credit = split_loo(batch)
    leaf = batch.n_children == 0
    np.testing.assert_allclose(np.bincount(batch.tree[leaf], weights=credit.weight[leaf]), 1.0)


def test_negative_tau_is_refused() -> None:
    with pytest.raises(ValueError, match="tau must be ≥ 0"):
        split_loo(TreeArrays.of([-1, 0]), tau=-1)
