from __future__ import annotations

import numpy as np
import pytest

from treewright.search.rules import schedules as s


def test_fan_reads_widths_by_depth_and_repeats_the_last() -> None:
    assert s.fan([0, 1, 2, 5], [4, 1, 2]).tolist() == [4, 1, 2, 2]


@pytest.mark.parametrize("widths", [[], [2, 0]])
def test_fan_refuses_widths_below_one(widths: list[int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        s.fan([0], widths)


@pytest.mark.parametrize(("horizon", "widths"), [(1, (4,)), (2, (4, 2)), (4, (4, 1, 1, 2))])
def test_late_branch_is_wide_first_and_last(horizon: int, widths: tuple[int, ...]) -> None:
    assert s.late_branch(horizon) == widths


def test_late_branch_refuses_no_steps() -> None:
    with pytest.raises(ValueError, match="horizon"):
        s.late_branch(0)


def test_split_widens_what_the_judge_likes_and_kills_nothing() -> None:
    assert s.split([0.2, 0.5, 0.9], 3).tolist() == [1, 3, 3]


@pytest.mark.parametrize(("success", "k"), [(1.0, 1), (0.5, 2), (0.3, 3), (0.01, 8), (0.0, 8)])
def test_split_width_is_one_over_step_success(success: float, k: int) -> None:
    assert s.split_width(success) == k


def test_split_width_refuses_what_is_no_probability() -> None:
    with pytest.raises(ValueError, match="step_success"):
        s.split_width(1.5)


@pytest.mark.parametrize(("rate", "name"), [(0.4, "chains"), (0.1, "fan"), (0.005, "split")])
def test_the_schedule_follows_the_success_rate(rate: float, name: str) -> None:
    assert s.choose_schedule(rate) == name
    assert s.EXACT[name]


def test_entropy_gate_compares_with_the_usual_entropy() -> None:
    assert s.entropy_gated([0.5, 1.2], [1.0, 1.0], 4, threshold=0.1).tolist() == [1, 4]


def test_sqrt_score_is_mass_times_root_of_value_per_length() -> None:
    assert s.sqrt_score([0.5, 1.0], [0.25, -0.1], [4.0, 1.0]).tolist() == [0.125, 0.0]


def test_roulette_keep_never_reaches_zero() -> None:
    assert s.roulette_keep([0.0, 0.5, 2.0], 1.0).tolist() == [0.1, 0.5, 1.0]
    with pytest.raises(ValueError, match="least"):
        s.roulette_keep([1.0], 1.0, least=0.0)


@pytest.mark.parametrize("mean", [0.05, 0.25, 0.5, 1.0])
def test_closing_probabilities_have_the_asked_mean(mean: float) -> None:
    score = np.random.default_rng(0).exponential(size=50)
    q = s.closing_probabilities(score, mean=mean)
    assert q.mean() == pytest.approx(mean, abs=1e-6)
    assert (np.diff(q[np.argsort(score)]) >= 0).all() and q.min() >= 0.05


def test_closing_probabilities_without_any_score_are_even() -> None:
    assert s.closing_probabilities([0.0, 0.0], mean=0.4).tolist() == [0.4, 0.4]
    with pytest.raises(ValueError, match="least ≤ mean"):
        s.closing_probabilities([1.0], mean=0.01)


def test_systematic_coins_have_their_marginals_and_a_steady_count() -> None:
    q = np.array([0.2, 0.9, 0.5, 0.4, 1.0])
    coins = np.array([s.systematic(q, u) for u in (np.arange(1000) + 0.5) / 1000])
    np.testing.assert_allclose(coins.mean(0), q, atol=2e-3)
    assert coins.sum(1).min() == 3 and coins.sum(1).max() == 3


def test_slot_shares_split_a_reserve_and_sum_to_one() -> None:
    shares = s.slot_shares([0.5, 0.5])
    assert shares.tolist() == [0.5, 0.25, 0.25]
    with pytest.raises(ValueError, match="fraction"):
        s.slot_shares([1.0])


@pytest.mark.parametrize(("live", "done", "kept"), [(2, 0, 4), (4, 2, 4), (3, 8, 0)])
def test_fork_until_n_never_exceeds_n(live: int, done: int, kept: int) -> None:
    assert s.fork_until_n(live, done, 6 if done < 8 else 8) == kept


def test_fallback_restarts_strictly_before_the_end() -> None:
    assert [s.fallback_depth(4, u) for u in (0.0, 0.3, 0.99)] == [0, 1, 3]
    assert s.fallback_depth(0, 0.5) == 0


def test_repeats_sees_a_loop_at_the_end_only() -> None:
    assert s.repeats([9, 1, 2, 1, 2, 1, 2], span=2, times=3)
    assert not s.repeats([1, 2, 1, 2, 1, 2, 9], span=2, times=3)
    assert not s.repeats([1, 2], span=2, times=3)
    with pytest.raises(ValueError, match="times"):
        s.repeats([1], times=1)
