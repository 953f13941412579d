"""Fitted baselines: unbiased whatever the judge says, less noise where it is right, fitted on other trees alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from search_trees import random_tree

from treewright.envs.errors import TreewrightError
from treewright.training.check.mdp import Array, Grown, Mdp, measure, small_mdp
from treewright.training.check.mdp_growth import grow
from treewright.training.credit import TreeArrays, estimate
from treewright.training.credit.fitted import fitted_line, fitted_tau
from treewright.training.credit.split_loo import credited
from treewright.training.credit.trees import tree_arrays
from treewright.training.crediting import credit_of
from treewright.training.settings import TrainSettings

WORLD = small_mdp()


def told(grown: Grown, judge: Array) -> TreeArrays:
    """The trees with a judge's score of each node that the episode goes on from."""
    return replace(grown.arrays, more={"score": np.where(grown.state >= 0, judge[grown.state], np.nan)})


def judged(kind: str, world: Mdp) -> Array:
    return {"right": world.values()[0], "noisy": world.judge, "wrong": 3 - 5 * world.judge}[kind]


@pytest.mark.parametrize("kind", ["right", "noisy", "wrong"])
@pytest.mark.parametrize("schedule", ["chains", "fixed_2", "best_first", "roulette", "slots"])
def test_the_mean_gradient_is_the_true_one_whatever_the_judge_says(schedule: str, kind: str) -> None:
    grown = grow(schedule, 8_000, 3, WORLD)
    report = measure(WORLD, grown, estimate("split_fitted", told(grown, judged(kind, WORLD))))
    assert report.over_noise < 3


def test_a_judge_that_has_seen_the_draws_is_found_out() -> None:
    grown = grow("fixed_2", 8_000, 3, WORLD)
    leaked = estimate("split_loo", grown.arrays).value
    report = measure(WORLD, grown, credited(grown.arrays, 3.0, values=leaked)[0])
    assert report.over_noise > 6


def test_a_value_head_that_is_right_takes_noise_from_chains() -> None:
    grown = grow("chains", 8_000, 4, WORLD)
    plain = measure(WORLD, grown, estimate("split_loo", grown.arrays)).variance_per_token
    found = measure(WORLD, grown, estimate("split_fitted", told(grown, WORLD.values()[0]))).variance_per_token
    assert found < 0.9 * plain


def test_single_draws_are_compared_with_what_the_others_half_says_of_their_node() -> None:
    chain = [-1, 0, 1]
    arrays = TreeArrays.concatenate([
        TreeArrays.of(chain, reward=[0, 0, r], group=[g] * 3) for g, r in ((0, 4.0), (1, 1.0), (2, 3.0), (3, 2.0))
    ])  # fmt: skip
    score = np.array([1.0, 2.0, np.nan] * 4)
    found = estimate("split_fitted", replace(arrays, more={"score": score}))
    # groups 0 and 2 are credited with the mean of 1 and 3, whose values are 1 and 2, the others with that of 4 and 3
    assert found.coef.reshape(4, 3)[:, 1:].tolist() == pytest.approx(
        np.array([[2.5, 2.5], [-2.5, -2.5], [1.5, 1.5], [-1.5, -1.5]])
    )


def test_siblings_are_believed_as_far_as_what_is_inherited_is_wrong() -> None:
    rng = np.random.default_rng(0)
    trees = [TreeArrays.of([-1, 0, 0, 0, 0], reward=[0, *rng.normal(1.0, 2.0, 4)], group=[g] * 5) for g in range(1500)]
    found = fitted_tau(TreeArrays.concatenate(trees), root_baseline=0.0)
    assert found == pytest.approx(4.0, rel=0.15)
    assert fitted_tau(TreeArrays.concatenate(trees[:9]), root_baseline=1000.0) < 0.01
    assert fitted_tau(TreeArrays.of([-1, 0], reward=[0, 1.0])) == 3.0, "no node with two draws says nothing"


def test_the_line_through_scores_and_values_is_that_of_least_squares() -> None:
    score = np.array([0.1, 0.5, 0.9])
    trees = [TreeArrays.of([-1, 0], reward=[0, 2 + 3 * x], group=[i, i]) for i, x in enumerate(score)]
    a, b = fitted_line(TreeArrays.concatenate(trees), np.repeat(score, 2))
    assert (a, b) == pytest.approx((2.0, 3.0), rel=1e-5)


def test_without_scores_and_others_it_is_split_loo() -> None:
    grown = grow("fixed_2", 16, 5, WORLD)
    one = grown.arrays.select(np.arange(16) == 3)
    want = estimate("split_loo", one)
    assert np.array_equal(estimate("split_fitted", one).coef, want.coef)


def test_a_column_that_is_not_there_is_named_with_the_nearest() -> None:
    grown = grow("chains", 16, 5, WORLD)
    with pytest.raises(TreewrightError, match=r"nodes have no 'scores'.*score"):
        estimate("split_fitted", told(grown, WORLD.judge), values="scores")


def test_training_takes_it_by_its_name_and_reads_the_scores_that_evaluators_left() -> None:
    trees = [random_tree(seed, task=f"t{seed}") for seed in range(6)]
    plain = credit_of(trees, TrainSettings(estimator="split_fitted"), {}, lambda pack: np.zeros(0))[1].coef
    for tree in trees:
        for node in range(len(tree)):
            tree.score[node] = 0.1 * tree.depth[node]
    scored = credit_of(trees, TrainSettings(estimator="split_fitted"), {}, lambda pack: np.zeros(0))[1].coef
    want = estimate("split_fitted", tree_arrays(trees)).coef
    assert np.array_equal(scored, want) and not np.array_equal(scored, plain)
    unread = TrainSettings(estimator="split_fitted", options={"values": ""})
    assert np.array_equal(credit_of(trees, unread, {}, lambda pack: np.zeros(0))[1].coef, plain)
