from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from treewright.training.credit import (
    ESTIMATORS,
    TreeArrays,
    UnknownEstimator,
    estimate,
    leaf_rows,
    split_loo,
    weighted_rows,
)

from .credit_trees import permuted, random_batch, random_tree

PUBLISHED = sorted(set(ESTIMATORS) - {"split_loo", "split_fitted"})
S = math.sqrt(8 / 3)

# root → a, b;  a → c, d;  returns b = 0, c = 4, d = 2.  μ = 2, σ = √(8/3), V(a) = 3, three rows of weight 1/3.
TREE = TreeArrays.of([-1, 0, 0, 1, 1], reward=[0, 0, 0, 4, 2], state_key=[5, 5, -1, -1, -1], call_ok=[1, 1, 0, 1, 1])

GOLDEN = [
    ("grpo", {"eps": 0.0}, [2 / S, -2 / S, 2 / S, 0]),
    ("dr_grpo", {}, [2, -2, 2, 0]),
    ("rloo", {}, [3, -3, 3, 0]),
    ("tree_grpo", {"eps": 0.0}, [4 / S, -4 / S, 4 / S, 0]),
    # prefixes: the empty one (mean 2) and a (mean 3): A_c = 4 − 2.5, A_d = 2 − 2.5, A_b = 0 − 2
    ("treepo", {"whiten": False}, [1, -2, 1.5, -0.5]),
    # rows through a: (2 + 1) + (0 + 1); b: −2 − 2; c: 2 + 1; d: 0 − 1
    ("tempo", {"std": False}, [4, -4, 3, -1]),
    ("tempo", {"eps": 0.0}, [4 / S, -4 / S, 3 / S, -1 / S]),
    # a: two rows of (1 + 1)/√2; b: −2 − 2; c: 2 + 1; d: 0 − 1
    ("treerl", {}, [4 / math.sqrt(2), -4, 3, -1]),
    ("treeps", {}, [2, -2, 1.5, -0.5]),
    ("treeps", {"parent": 1.0, "root": 0.0}, [2, -2, 1, -1]),
    # each fork of two gives ±1
    ("sibling", {"eps": 0.0}, [2 / S + 2, -2 / S - 1, 2 / S + 1, -1]),
    # root and a are one state: its steps return 3 (two rows), 0, 4 and 2, mean 2.4
    ("gigpo", {"gamma": 1.0, "std": False}, [2 + 2 * 0.6, -2 - 2.4, 2 + 1.6, -0.4]),
    ("gigpo", {"gamma": 0.5, "std": False, "omega": 0.0}, [2, -2, 2, 0]),
    # step rewards 1.5 + .1, 0, 4.1, 2.1; forks give ±1, blended with GRPO
    ("portool", {"decay": 0.5, "eps": 0.0}, [1 / S + 1, -1 / S - 0.5, 1 / S + 0.5, -0.5]),
    # no splits: V̂ of both states is their mean weighted by rows, (3·2 + 2·3)/5
    ("forest", {"depth": 0}, [0, -2.4, 1.6, -0.4]),
]


@pytest.mark.parametrize(("name", "options", "rows"), GOLDEN)
def test_golden_coefficients_on_a_hand_computed_tree(name: str, options: Any, rows: Any) -> None:
    coef = estimate(name, TREE, **options).coef
    np.testing.assert_allclose(coef, np.array([0, *rows]) / 3, atol=1e-9)


def test_golden_treepo_whitened_has_mean_zero_and_unit_deviation_over_rows() -> None:
    raw = np.array([-2, 1.5, -0.5])
    white = (raw - raw.mean()) / raw.std()
    coef = estimate("treepo", TREE, eps=0.0).coef
    np.testing.assert_allclose(coef[2:], white / 3)
    np.testing.assert_allclose(coef[1], (white[1] + white[2]) / 3)


def test_vine_with_auxiliary_rollouts_gives_hand_computed_coefficients() -> None:
    # V̂(root) = (1 + 3)/2 over one short and one two-step rollout, V̂(a) = 5
    tree = TreeArrays.of(
        [-1, 0, 0, 1, 1, 0, 0, 6, 1],
        reward=[0, 0, 0, 4, 2, 1, 1, 2, 5],
        aux=[False] * 5 + [True] * 4,
    )
    credit = estimate("vine", tree)
    np.testing.assert_allclose(credit.coef[1:5] * 3, [2 * (5 - 2), 0 - 2, 4 - 5, 2 - 5])
    np.testing.assert_allclose(credit.value[:5], [2, 5, 0, 0, 0])
    assert not credit.coef[5:].any()


def test_golden_values_weights_and_sizes_of_leaf_rows() -> None:
    credit = estimate("grpo", TREE)
    np.testing.assert_allclose(credit.value, [2, 3, 0, 0, 0])
    np.testing.assert_allclose(credit.weight, [1, 2 / 3, 1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(credit.ess, [3, 2, 1, 1, 1])


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - {"treepo", "forest"}))  # these two look at the whole batch
def test_groups_are_credited_apart(name: str) -> None:
    other = TreeArrays.of([-1, 0, 0], reward=[0, 7, 9], group=[1, 1, 1])
    both = estimate(name, TreeArrays.concatenate([TREE, other])).coef
    alone = np.concatenate([estimate(name, TREE).coef, estimate(name, other).coef])
    np.testing.assert_allclose(both, alone, atol=1e-9)


@pytest.mark.parametrize("name", [*PUBLISHED, "split_loo"])
def test_order_of_siblings_does_not_matter(name: str) -> None:
    tree = random_tree(4)
    other, order = permuted(tree, 9)
    np.testing.assert_allclose(estimate(name, other).coef, estimate(name, tree).coef[order], atol=1e-9)


@pytest.mark.parametrize("name", [*PUBLISHED, "split_loo"])
def test_merging_token_identical_leaves_changes_nothing(name: str) -> None:
    keys: dict[str, Any] = {"state_key": [3, 3, -1, -1, -1, -1]}
    apart = TreeArrays.of([-1, 0, 0, 1, 1, 1], reward=[0, 0, 0.5, 3, 3, 1], **keys)
    merged = TreeArrays.of(
        [-1, 0, 0, 1, 1], reward=[0, 0, 0.5, 3, 1], mult=[1, 1, 1, 2, 1], state_key=[3, 3, -1, -1, -1]
    )
    a, m = estimate(name, apart), estimate(name, merged)
    np.testing.assert_allclose(m.coef, [a.coef[0], a.coef[1], a.coef[2], a.coef[3] + a.coef[4], a.coef[5]], atol=1e-9)


@pytest.mark.parametrize("name", [*PUBLISHED, "split_loo"])
def test_adding_a_constant_to_every_outcome_changes_nothing(name: str) -> None:
    options = {"gigpo": {"gamma": 1.0}, "portool": {"decay": 1.0}}.get(name, {})
    batch = random_batch(8, groups=1, plain=True)
    ends = (batch.terminal | batch.truncated) & (batch.n_children == 0)
    shifted = batch.with_(reward=batch.reward + np.where(ends, 4.0, 0.0))
    np.testing.assert_allclose(
        estimate(name, shifted, **options).coef, estimate(name, batch, **options).coef, atol=1e-5
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_leaf_rows_sum_to_the_deduplicated_coefficients(name: str) -> None:
    batch = random_batch(6, exact=False)
    rows = leaf_rows(name, batch)
    summed = np.bincount(rows.node, weights=rows.coef, minlength=len(batch))
    np.testing.assert_allclose(summed, estimate(name, batch).coef, atol=1e-10)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_leaf_rows_equal_the_same_trajectories_written_as_separate_chains(name: str) -> None:
    tree = random_tree(21, plain=True)
    leaves = np.flatnonzero(tree.n_children == 0)
    chains, origin = [], []
    for leaf in leaves:
        path = [leaf]
        while tree.parent[path[0]] >= 0:
            path.insert(0, tree.parent[path[0]])
        for _ in range(int(np.prod(tree.mult[path]))):
            chains.append(TreeArrays.of(np.arange(len(path)) - 1, reward=tree.reward[path], group=[0] * len(path)))
            origin += path
    apart = estimate(name, TreeArrays.concatenate(chains)).coef
    summed = np.bincount(origin, weights=apart, minlength=len(tree)) / len(chains)
    np.testing.assert_allclose(summed, estimate(name, tree).coef, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_weighted_leaf_rows_equal_split_loo_without_roulette(seed: int) -> None:
    batch = random_batch(seed, plain=True)
    credit = split_loo(batch)
    rows = weighted_rows(batch, credit)
    np.testing.assert_allclose(np.bincount(rows.node, weights=rows.coef, minlength=len(batch)), credit.coef, atol=1e-12)


@pytest.mark.parametrize("name", PUBLISHED)
def test_faulted_open_injected_and_auxiliary_nodes_are_never_trained_on(name: str) -> None:
    batch = random_batch(12, exact=False)
    batch = batch.with_(origin=np.where(np.arange(len(batch)) % 7 == 3, 3, 0))
    credit = estimate(name, batch)
    assert np.isfinite(credit.coef).all()
    assert not credit.coef[~batch.trainable].any()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_fault_is_not_a_reward_of_zero(name: str) -> None:
    faulty = TreeArrays.of([-1, 0, 0, 1, 1, 0], reward=[0, 0, 0, 4, 2, 0], fault=[0, 0, 0, 0, 0, 1])
    whole = TreeArrays.of([-1, 0, 0, 1, 1], reward=[0, 0, 0, 4, 2])
    np.testing.assert_allclose(estimate(name, faulty).coef, [*estimate(name, whole).coef, 0], atol=1e-12)


@pytest.mark.parametrize("name", PUBLISHED)
def test_nothing_finished_gives_no_credit(name: str) -> None:
    tree = TreeArrays.of([-1, 0, 0], terminal=[False] * 3)
    assert estimate(name, tree).coef.tolist() == [0, 0, 0]


def test_two_siblings_get_plus_and_minus_one_whatever_the_gap() -> None:
    small, large = (TreeArrays.of([-1, 0, 0], reward=[0, gap, 0]) for gap in (0.01, 10.0))
    np.testing.assert_allclose(estimate("sibling", small).coef, estimate("sibling", large).coef, rtol=1e-3)


def test_leaf_mean_is_not_the_recursive_mean_when_branches_differ_in_depth() -> None:
    credit = estimate("grpo", TREE)
    assert credit.value[0] == pytest.approx(2) and split_loo(TREE).value[0] == pytest.approx(1.5)


def test_an_estimator_without_rows_says_which_have_them() -> None:
    with pytest.raises(UnknownEstimator, match=r"'split_loo' has no leaf rows; these have: dr_grpo"):
        leaf_rows("split_loo", TREE)
