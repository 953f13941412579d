from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from treewright.training.credit import TreeArrays, credit_stats, effective_leaves, estimate, split_loo
from treewright.training.credit.forest import Smoother, grow_smoother

if TYPE_CHECKING:
    from numpy.typing import NDArray


def test_stats_of_an_exact_batch() -> None:
    tree = TreeArrays.of([-1, 0, 0, 1, 1], reward=[0, 0, 0, 4, 2])
    dull = TreeArrays.of([-1, 0, 0], group=[1, 1, 1])
    batch = TreeArrays.concatenate([tree, dull])
    stats = credit_stats(batch, split_loo(batch, root_baseline=0.0))
    assert stats.log_sum_weight == pytest.approx(0)
    assert stats.ess == pytest.approx(4 / (0.25 + 2 / 16 + 2 / 4))
    assert stats.zero_groups == 0.5
    assert stats.judged_weight == stats.fault_weight == 0


def test_stats_count_the_mass_of_judged_and_faulted_draws() -> None:
    tree = TreeArrays.of(
        [-1, 0, 0, 0, 0],
        kept=[1, 1, 1, 0, 1],
        keep_prob=[1, 1, 1, 0.5, 1],
        executed=[1, 1, 1, 0, 1],
        fault=[0, 0, 0, 0, 1],
    )
    stats = credit_stats(tree, split_loo(tree, allow_biased=True))
    assert (stats.judged_weight, stats.fault_weight) == (0.25, 0.25)


def test_nothing_finished_has_no_log_weight() -> None:
    tree = TreeArrays.of([-1, 0], terminal=[False, False])
    stats = credit_stats(tree, split_loo(tree, allow_biased=True))
    assert stats.log_sum_weight == -math.inf and stats.ess == 0 and stats.zero_groups == 1


def test_correlated_leaves_are_worth_fewer() -> None:
    assert effective_leaves(64, 8, 0.0) == 64
    assert effective_leaves(64, 8, 1.0) == 8
    with pytest.raises(ValueError, match="leaves and trees"):
        effective_leaves(0, 1, 0.5)


def smoother(seed: int = 0, weight: NDArray[Any] | None = None) -> tuple[NDArray[Any], Smoother]:
    rng = np.random.default_rng(seed)
    features, y = rng.normal(size=(60, 3)), rng.normal(size=60)
    weight = np.ones(60) if weight is None else weight
    return y, grow_smoother(features, y, weight, np.arange(60) % 2, trees=4, depth=3, tries=2, seed=1)


def test_smoothing_is_the_weighted_mean_that_its_weights_say() -> None:
    y, s = smoother(weight=np.random.default_rng(2).integers(1, 4, 60).astype(float))
    for i in (0, 17, 59):
        w = s.weights(i)
        assert w.sum() == pytest.approx(1)
        assert s.smooth(y)[i] == pytest.approx(w @ y)
        assert s.ess[i] == pytest.approx(1 / np.sum(w**2 / s.weight))


def test_points_of_different_blocks_share_no_weight() -> None:
    _, s = smoother()
    assert not s.weights(0)[1::2].any()


def test_features_of_the_users_own_separate_what_depth_cannot() -> None:
    tree = TreeArrays.of([-1, 0, 0, 1, 2], reward=[0, 0, 0, 1, 0])
    told = estimate("forest", tree, features=np.array([[0], [1], [2], [0], [0]]), depth=8, tries=8)
    np.testing.assert_allclose(told.value[1:3], [1, 0])
