"""The kit that checks credit functions of others: right ones pass, wrong ones are seen, in each form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from closeness import assert_near

from treewright.envs.errors import TreewrightError
from treewright.training.check import check_estimator
from treewright.training.check.mdp import measure, small_mdp
from treewright.training.check.mdp_growth import grow
from treewright.training.credit import ESTIMATORS, Credit, TreeArrays, split_loo

TREES = 8_000


def leave_one_out(returns: Any, group: Any) -> Any:
    n = np.bincount(group)[group]
    others = (np.bincount(group, weights=returns)[group] - returns) / np.maximum(n - 1, 1)
    return np.where(n > 1, returns - others, 0.0)


def standardised(returns: Any, group: Any) -> Any:
    n = np.bincount(group)
    mean = np.bincount(group, weights=returns) / n
    std = np.sqrt(np.maximum(np.bincount(group, weights=returns**2) / n - mean**2, 0.0))
    return np.where(std[group] > 1e-9, (returns - mean[group]) / (std[group] + 1e-6), 0.0)


def to_go(rewards: Any, mask: Any, group: Any) -> Any:
    return np.cumsum((rewards * mask)[:, ::-1], axis=1)[:, ::-1], "as verl gives returns beside advantages"


def test_leave_one_out_is_unbiased_on_chains_and_biased_where_a_search_chose() -> None:
    found = check_estimator(leave_one_out, form="returns", schedules=["chains", "best_first"], trees=TREES)
    assert found.unbiased() == ["chains"] and found.reports["best_first"].over_noise > 10


def test_reward_to_go_for_each_token_is_unbiased_on_chains() -> None:
    found = check_estimator(to_go, form="tokens", schedules=["chains"], trees=TREES)
    assert found.unbiased() == ["chains"] and found.reports["chains"].cosine > 0.99


def test_the_trees_own_estimator_is_unbiased_on_every_usual_schedule() -> None:
    found = check_estimator(split_loo, trees=TREES)
    assert found.unbiased() == list(found.reports) and len(found.reports) == 5


@pytest.mark.parametrize("schedule", ["chains", "fixed_2", "best_first", "roulette"])
@pytest.mark.parametrize(("name", "function"), [("rloo", leave_one_out), ("grpo", standardised)])
def test_a_function_of_returns_is_judged_as_the_same_estimator_on_trees(
    schedule: str, name: str, function: Any
) -> None:
    grown = grow(schedule, 800, 5)
    own = measure(small_mdp(), grown, ESTIMATORS[name](grown.arrays))
    found = check_estimator(function, form="returns", schedules=[schedule], trees=800, seed=5).reports[schedule]
    if name == "rloo":
        assert_near(found.relative_bias, own.relative_bias)
    assert_near(found.cosine, own.cosine, 1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda returns, group: leave_one_out(returns, group) / (0.1 + np.abs(returns)),  # scaled by its own outcome
        lambda returns, group: returns - leave_one_out(returns, group),  # the baseline instead of the advantage
        lambda returns, group: leave_one_out(returns, np.zeros_like(group))[::-1],  # rows in another order
        lambda returns, group: np.maximum(leave_one_out(returns, group), 0.0),  # learns from successes alone
    ],
)
def test_planted_mistakes_are_seen(wrong: Any) -> None:
    assert check_estimator(wrong, form="returns", schedules=["chains"], trees=TREES).unbiased() == []


def test_a_function_without_a_signal_has_idle_groups_and_silent_actions() -> None:
    found = check_estimator(lambda returns, group: 0.0 * returns, form="returns", schedules=["chains"], trees=800)
    assert found.silent["chains"] == found.idle["chains"] == 1.0
    some = check_estimator(leave_one_out, form="returns", schedules=["chains"], trees=800)
    assert 0 < some.silent["chains"] < 1 and some.idle["chains"] < 1


def test_arrays_may_be_answered_with_numbers_alone() -> None:
    def numbers(arrays: TreeArrays) -> Any:
        return split_loo(arrays).coef

    one, two = (check_estimator(f, schedules=["late"], trees=800) for f in (numbers, split_loo))
    assert one.reports == two.reports and isinstance(split_loo(grow("late", 80).arrays), Credit)


def test_the_table_has_a_row_for_each_schedule() -> None:
    table = check_estimator(leave_one_out, form="returns", schedules=["chains", "late"], trees=80).table()
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["chains", "late"]


@pytest.mark.parametrize(
    ("function", "given", "what"),
    [
        (leave_one_out, {"form": "rows"}, "no form 'rows'"),
        (leave_one_out, {"form": "returns", "schedules": ["chain"]}, "did you mean 'chains'"),
        (lambda returns, group: returns[:3], {"form": "returns"}, "shape"),
        (lambda returns, group: returns / 0.0, {"form": "returns"}, "not finite"),
        (lambda rewards, mask, group: rewards.sum(1), {"form": "tokens"}, "each token of each row"),
    ],
)
def test_what_cannot_be_checked_is_said(function: Any, given: dict[str, Any], what: str) -> None:
    with np.errstate(all="ignore"), pytest.raises(TreewrightError, match=what):
        check_estimator(function, trees=80, **{"schedules": ["chains"], **given})
