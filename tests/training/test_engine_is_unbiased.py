"""Trees grown by the real engine, credited by the real estimator, give the true policy gradient in expectation.

A world of three binary choices with a fixed reward for each of its eight endings; the policy is a softmax per state,
so that the true gradient can be enumerated. The search is guided by scores that correlate with the reward.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from choices import gradients, true_gradient, z_scores

from treewright.search.rules import best_first, random_on_policy, rule

if TYPE_CHECKING:
    from treewright.training.credit.arrays import TreeArrays


# A sixth of a standard deviation is seen with so many; the checks below show that mistakes are larger.
TREES = int(os.environ.get("TREEWRIGHT_UNBIASED_TREES", "600"))


@pytest.mark.parametrize("make", [random_on_policy, best_first])
async def test_search_trees_give_the_true_gradient_within_noise(make: Callable[..., Any]) -> None:
    found = await gradients(make(draws=2, root_draws=3), TREES)
    assert z_scores(found).max() < 4.0
    cosine = found.mean(0) @ true_gradient() / np.linalg.norm(found.mean(0)) / np.linalg.norm(true_gradient())
    assert cosine > 0.97


async def test_the_same_check_catches_a_frontier_that_was_dropped() -> None:
    found = await gradients(best_first(draws=2, root_draws=3), TREES // 2, close=False)
    assert z_scores(found).max() > 6.0


async def test_the_same_check_catches_multiplicities_that_were_ignored() -> None:
    def ignore(arrays: TreeArrays) -> Any:
        siblings = np.bincount(arrays.parent[arrays.parent >= 0], minlength=len(arrays))
        up = np.maximum(arrays.parent, 0)
        share = np.where(arrays.parent >= 0, 1 / np.maximum(siblings[up], 1), 1.0)
        return arrays.with_(mult=np.ones(len(arrays)), share=share, k=siblings)

    found = await gradients(best_first(draws=4, root_draws=6), 1200, spoil=ignore)
    assert z_scores(found).max() > 4.0


SCHEDULES: dict[str, dict[str, Any]] = {
    "late_branch": {"steps": 3},
    "split": {"draws": 3, "threshold": 0.3},
    "entropy_gated": {"draws": 3},
    "fork_until_n": {"n": 5},
    "roulette": {"reference": 0.6, "least": 0.3},
    "adaptive": {"rates": {"choices": 0.02}, "threshold": 0.3},
}


@pytest.mark.parametrize("name", SCHEDULES)
async def test_exact_schedules_give_the_true_gradient_within_noise(name: str) -> None:
    found = await gradients(rule(name, **SCHEDULES[name]), TREES // 2, expansions=6)
    assert z_scores(found).max() < 4.0
    cosine = found.mean(0) @ true_gradient() / np.linalg.norm(found.mean(0)) / np.linalg.norm(true_gradient())
    assert cosine > 0.9


async def test_the_same_check_catches_coins_that_were_not_recorded() -> None:
    """What roulette dropped, taken as if it had never been drawn."""

    def forget(arrays: TreeArrays) -> Any:
        gone = ~arrays.kept
        mass = np.bincount(arrays.parent[~gone][1:], weights=arrays.share[~gone][1:], minlength=len(arrays))
        share = np.where(gone | (arrays.parent < 0), arrays.share, arrays.share / np.maximum(mass[arrays.parent], 1e-9))
        return arrays.with_(keep_prob=np.where(gone, 1e-6, 1.0), share=np.where(gone, 0.0, np.minimum(share, 1.0)))

    found = await gradients(
        rule("roulette", reference=0.6, least=0.05), 500, expansions=6, spoil=forget, allow_biased=True
    )
    assert z_scores(found).max() > 5.0
