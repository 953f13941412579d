from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from treewright.search.rules.schedules import EXACT
from treewright.training.check import mdp as world
from treewright.training.check.mdp import GROUP, Grown, measure, small_mdp
from treewright.training.check.mdp_growth import SCHEDULES, bias_over_noise, grow
from treewright.training.credit import TreeArrays, estimate, published, split_loo, split_loo_reference, variants
from treewright.training.credit.arrays import Credit

if TYPE_CHECKING:
    from numpy.typing import NDArray


TREES = 16_000
UNBIASED = ["chains", "fixed_2", "late", "split_liked", "entropy", "random", "best_first", "roulette", "slots"]


def test_the_gradient_is_that_of_the_value_by_finite_differences() -> None:
    mdp = small_mdp()
    gradient, h = mdp.gradient(), 1e-6
    for s, a in itertools.product(range(len(mdp.to)), range(3)):
        ends = []
        for sign in (1, -1):
            logits = mdp.logits.copy()
            logits[s, a] += sign * h
            ends.append(world.Mdp(mdp.to, mdp.reward, logits, mdp.judge, mdp.step).values()[0][0])
        assert gradient[s, a] == pytest.approx((ends[0] - ends[1]) / (2 * h), abs=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_grows_valid_trees_that_follow_the_world(schedule: str) -> None:
    grown = grow(schedule, 64, seed=3)
    a, mdp = grown.arrays, small_mdp()
    a.validate()
    edge = a.parent >= 0
    assert (mdp.to[grown.state[a.parent[edge]], grown.action[edge]] == grown.state[edge]).all()
    assert a.trees == 64


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_is_exact_as_declared(schedule: str) -> None:
    declared = {"fixed_2": "fan", "late": "late_branch", "split_liked": "split", "entropy": "entropy_gated"}
    declared |= {"chains_aux": "chains", "fork": "fork_until_n"}
    if schedule != "best_first_dropped":
        reasons = grow(schedule, 64).arrays.why_inexact()
        assert (not any(reasons)) == EXACT[declared.get(schedule, schedule)]


@pytest.mark.parametrize("schedule", UNBIASED)
def test_split_loo_is_unbiased_within_noise(schedule: str) -> None:
    assert bias_over_noise(split_loo, schedule, TREES, seed=1) < 2


@pytest.mark.parametrize("tau", [0.0, 30.0])
def test_shrinkage_keeps_best_first_unbiased(tau: float) -> None:
    assert bias_over_noise(partial(split_loo, tau=tau), "best_first", TREES, seed=2) < 2


def test_vine_is_unbiased_on_chains_with_auxiliary_rollouts() -> None:
    assert bias_over_noise(published.vine, "chains_aux", TREES, seed=1) < 2


@pytest.mark.parametrize("name", ["rloo"])
def test_leaf_rows_are_unbiased_on_chains(name: str) -> None:
    assert bias_over_noise(partial(estimate, name), "chains", TREES, seed=1) < 2


@pytest.mark.parametrize(
    ("estimator", "schedule"),
    [
        (variants.mean_with_self, "random"),
        (variants.mean_with_self, "best_first"),
        (variants.every_node_alike, "best_first"),
        (variants.sibling_std, "best_first"),
        (variants.duplicates_ignored, "random"),
        (variants.duplicates_ignored, "best_first"),
        (published.grpo, "best_first"),
        (published.dr_grpo, "best_first"),
        (published.rloo, "random"),
        (partial(split_loo, allow_biased=True), "best_first_dropped"),
        (partial(split_loo, allow_biased=True), "pooled"),
    ],
)
def test_biased_variants_are_caught_by_the_same_check(
    estimator: Callable[..., Any] | partial[Credit], schedule: str
) -> None:
    assert bias_over_noise(estimator, schedule, TREES, seed=1) > 6


def test_bootstrapping_the_frontier_is_caught_even_with_exact_values() -> None:
    mdp = small_mdp()
    grown = grow("best_first_dropped", TREES, seed=1, mdp=mdp)
    a, (value, _) = grown.arrays, mdp.values()
    open_ = (a.n_children == 0) & ~a.terminal
    guess = np.where(open_, a.reward + value[grown.state], 0)
    booted = a.with_(kept=~open_, keep_prob=np.where(open_, 0.5, 1), control=guess)
    assert measure(mdp, grown, split_loo(booted)).over_noise > 6


def test_the_mean_over_generated_trees_counts_those_without_gradient() -> None:
    mdp = small_mdp()
    grown = grow("chains", 64)
    credit = split_loo(grown.arrays)
    half = Grown(grown.arrays, grown.state, grown.action, 2 * grown.trees)
    assert measure(mdp, half, credit).scale == pytest.approx(measure(mdp, grown, credit).scale / 2)


@pytest.mark.parametrize("trees", [GROUP, 2 * GROUP + 1])
def test_numbers_of_trees_that_make_no_groups_are_refused(trees: int) -> None:
    with pytest.raises(ValueError, match="multiple of"):
        grow("chains", trees)


def test_an_unknown_schedule_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"no schedule 'chain'.*chains"):
        grow("chain", 64)


# Two steps, two actions, π(a) = .3/.7 everywhere; every outcome of the growth below is enumerated with its probability.
P = (0.3, 0.7)
FIRST = (0.2, -0.1)
LAST = ((1.0, 0.0), (0.4, 0.9))
KEEP, CONTROL = 0.4, 0.35


def _best_first_outcomes(roulette: bool) -> Iterator[tuple[float, list[int], list[int], dict[str, Any]]]:
    """(probability, parent, action, columns): 3 draws at the root, 2 below action 0 if drawn, 1 below action 1.

    With roulette the node of action 1 is kept with probability KEEP, else stands for CONTROL.
    """
    for ones in range(4):
        zeros = 3 - ones
        p_root = math.comb(3, ones) * P[0] ** zeros * P[1] ** ones
        nodes = [(a, m) for a, m in ((0, zeros), (1, ones)) if m]
        for kept in [True, False] if roulette and ones else [True]:
            p_coin = (KEEP if kept else 1 - KEEP) if roulette and ones else 1.0
            options = []
            for a, _ in nodes:
                k = 0 if a == 1 and not kept else 2 if a == 0 else 1
                options.append([(b, math.comb(k, b) * P[0] ** (k - b) * P[1] ** b, k) for b in range(k + 1)])
            for below in itertools.product(*options):
                parent, action, mult, reward, keep, alive, control = [-1], [-1], [1], [0.0], [1.0], [True], [0.0]
                for a, m in nodes:
                    coin = roulette and a == 1
                    parent.append(0)
                    action.append(a)
                    mult.append(m)
                    reward.append(FIRST[a])
                    keep.append(KEEP if coin else 1)
                    alive.append(kept or not coin)
                    control.append(CONTROL if coin else 0)
                for i, (a, _) in enumerate(nodes):
                    b, _, k = below[i]
                    for act, m in ((0, k - b), (1, b)):
                        if m:
                            parent.append(i + 1)
                            action.append(act)
                            mult.append(m)
                            reward.append(LAST[a][act])
                            keep.append(1)
                            alive.append(True)
                            control.append(0)
                columns = dict(mult=mult, reward=reward, keep_prob=keep, kept=alive, control=control)
                yield p_root * p_coin * math.prod(x[1] for x in below), parent, action, columns


def _true_gradient() -> NDArray[Any]:
    q = [FIRST[a] + P[0] * LAST[a][0] + P[1] * LAST[a][1] for a in (0, 1)]
    v = P[0] * q[0] + P[1] * q[1]
    top = [P[a] * (q[a] - v) for a in (0, 1)]
    below = [[P[a] * P[b] * (LAST[a][b] - (q[a] - FIRST[a])) for b in (0, 1)] for a in (0, 1)]
    return np.array([top, *below])


@pytest.mark.parametrize("roulette", [False, True])
@pytest.mark.parametrize("estimator", [split_loo, split_loo_reference])
@pytest.mark.parametrize("tau", [0.0, 3.0])
def test_the_expected_gradient_over_all_outcomes_is_exact(
    estimator: Callable[..., Any], roulette: bool, tau: float
) -> None:
    total, mass = np.zeros((3, 2)), 0.0
    for probability, parent, action, columns in _best_first_outcomes(roulette):
        mass += probability
        coef = estimator(TreeArrays.of(parent, **columns), tau=tau, root_baseline=0.3).coef
        for c in range(1, len(parent)):
            state = 0 if parent[c] == 0 else 1 + action[parent[c]]
            total[state] -= probability * coef[c] * np.array(P)
            total[state, action[c]] += probability * coef[c]
    assert mass == pytest.approx(1)
    np.testing.assert_allclose(total, _true_gradient(), atol=1e-7)


@pytest.mark.parametrize("estimator", [split_loo, split_loo_reference])
@pytest.mark.parametrize(("reserve", "error"), [(True, 0.0), (False, 0.01)])
def test_draws_added_after_looking_are_exact_only_from_a_reserve(
    estimator: Callable[..., Any], reserve: bool, error: float
) -> None:
    """One draw of two actions worth 1 and 0; six more where it was worth 0, else one; all outcomes enumerated."""
    worth, total = (1.0, 0.0), np.zeros(2)
    for first in (0, 1):
        later = 1 if worth[first] else 6
        for rest in itertools.product((0, 1), repeat=later):
            actions = (first, *rest)
            shares = [1, 0.5, *[0.5 / later] * later] if reserve else [1, *[1 / (1 + later)] * (1 + later)]
            tree = TreeArrays.of([-1] + [0] * len(actions), reward=[0, *(worth[a] for a in actions)], share=shares)
            coef = estimator(tree, tau=1.0, root_baseline=0.2).coef
            for a, c in zip(actions, coef[1:], strict=True):
                step = -c * np.array(P)
                step[a] += c
                total += math.prod(P[x] for x in actions) * step
    off = np.abs(total - P[0] * P[1] * np.array([1, -1])).max()
    assert off < 1e-7 if reserve else off > error
