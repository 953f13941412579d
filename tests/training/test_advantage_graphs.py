from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from treewright.training.credit import InexactTree, MalformedTree, NodeKind, TreeArrays, split_loo
from treewright.training.credit.graphs import set_probability, split_loo_graph, without_replacement

from .credit_trees import random_tree

P = np.array([0.2, 0.5, 0.3])
VALUES = np.array([1.0, -0.5, 2.0])


def test_without_merges_or_all_nodes_it_equals_split_loo() -> None:
    tree = random_tree(15)
    even = tree.with_(share=np.where(tree.aux, 0, tree.mult / np.maximum(tree.k[tree.parent], 1) * (tree.parent >= 0)))
    whole, fast = split_loo_graph(even, root_baseline=0.4), split_loo(even, root_baseline=0.4)
    below_aux_or_killed = np.isnan(fast.value)
    np.testing.assert_allclose(whole.coef, fast.coef, atol=1e-6)
    np.testing.assert_allclose(whole.value[~below_aux_or_killed], fast.value[~below_aux_or_killed], atol=1e-6)


def test_equal_states_merged_are_exact_over_all_outcomes() -> None:
    """Two draws at the root (two actions, both into one state), two draws in that state, all outcomes enumerated."""
    p, last = (0.3, 0.7), (1.0, 0.2)
    first = (0.5, 0.0)
    total = np.zeros((2, 2))
    for top in itertools.product((0, 1), repeat=2):
        for low in itertools.product((0, 1), repeat=2):
            probability = math.prod(p[a] for a in top + low)
            tops, lows = sorted(set(top)), sorted(set(low))
            parent = [-1] + [0] * len(tops) + [1] * len(lows)
            mult = [1] + [top.count(a) for a in tops] + [low.count(a) for a in lows]
            reward = [0.0] + [first[a] for a in tops] + [last[a] for a in lows]
            same = [-1] * len(parent)
            if len(tops) == 2:
                same[2] = 1
            tree = TreeArrays.of(parent, mult=mult, reward=reward)
            coef = split_loo_graph(tree, same_as=same, tau=1.0, root_baseline=0.3).coef
            for c, (state, a) in enumerate([(0, a) for a in tops] + [(1, a) for a in lows], start=1):
                total[state] -= probability * coef[c] * np.array(p)
                total[state, a] += probability * coef[c]
    v = p[0] * last[0] + p[1] * last[1]
    q = [first[a] + v for a in (0, 1)]
    want = [[p[a] * (x[a] - p[0] * x[0] - p[1] * x[1]) for a in (0, 1)] for x in (q, last)]
    np.testing.assert_allclose(total, want, atol=1e-7)


def test_merged_states_sum_the_masses_of_their_edges() -> None:
    # a and b lead into one state (a's subtree), c elsewhere
    tree = TreeArrays.of([-1, 0, 0, 0, 1, 1], reward=[0, 0, 0, 1, 2, 0])
    credit = split_loo_graph(tree, same_as=[-1, -1, 1, -1, -1, -1], tau=0.0)
    np.testing.assert_allclose(credit.value[:3], [1, 1, 1])
    np.testing.assert_allclose(credit.weight[4:], [1 / 3, 1 / 3])
    np.testing.assert_allclose(credit.coef[4:], [1 / 3 * 2, 1 / 3 * -2])


def _all_tree() -> TreeArrays:
    # root draws one plan of two parts; each part draws twice
    kind = [NodeKind.CHOICE, NodeKind.ALL, *[NodeKind.CHOICE] * 6]
    return TreeArrays.of([-1, 0, 1, 1, 2, 2, 3, 3], reward=[0, 0, 0, 0, 1, 0, 1, 0.5], kind=kind)


@pytest.mark.parametrize(
    ("combine", "value", "slopes"),
    [("product", 0.375, (0.75, 0.5)), ("sum", 1.25, (1, 1)), ("mean", 0.625, (0.5, 0.5))],
)
def test_all_nodes_combine_their_children_and_pass_full_mass(
    combine: str, value: float, slopes: tuple[float, float]
) -> None:
    credit = split_loo_graph(_all_tree(), combine=combine, tau=0.0)
    np.testing.assert_allclose(credit.value[1], value)
    np.testing.assert_allclose(credit.weight[2:4], slopes)
    half = np.array([slopes[0] * 0.5, slopes[0] * -0.5, slopes[1] * 0.25, slopes[1] * -0.25])
    np.testing.assert_allclose(credit.coef[2:], [0, 0, *half])


def test_the_fast_estimator_refuses_all_nodes() -> None:
    with pytest.raises(MalformedTree, match=r"node 1 needs all its children.*split_loo_graph"):
        split_loo(_all_tree())


def test_graphs_refuse_cycles_children_of_merged_nodes_and_inexact_trees() -> None:
    chain = TreeArrays.of([-1, 0, 1, 2])
    with pytest.raises(MalformedTree, match="node 1 is merged with a state of its own subtree"):
        split_loo_graph(chain, same_as=[-1, -1, -1, 1])
    with pytest.raises(MalformedTree, match="no children of its own"):
        split_loo_graph(chain, same_as=[-1, 0, -1, -1])
    with pytest.raises(InexactTree, match="open frontier"):
        split_loo_graph(TreeArrays.of([-1, 0], terminal=[False, False]))
    with pytest.raises(ValueError, match="combine must be one of product, sum, mean"):
        split_loo_graph(chain, combine="max")


def test_set_probabilities_of_all_sets_sum_to_one() -> None:
    assert sum(set_probability(P[list(s)].tolist()) for s in itertools.combinations(range(3), 2)) == pytest.approx(1)
    assert set_probability([0.2, 0.5]) == pytest.approx(0.2 * 0.5 / 0.8 + 0.5 * 0.2 / 0.5)


@pytest.mark.parametrize("size", [2, 3])
def test_draws_without_replacement_give_the_exact_gradient_in_expectation(size: int) -> None:
    value, gradient = 0.0, np.zeros(3)
    for chosen in itertools.combinations(range(3), size):
        s = list(chosen)
        probability = set_probability(P[s].tolist())
        credit = without_replacement(P[s], VALUES[s])
        value += probability * credit.value
        for a, coef in zip(s, credit.coef, strict=True):
            gradient -= probability * coef * P
            gradient[a] += probability * coef
    assert value == pytest.approx(P @ VALUES)
    np.testing.assert_allclose(gradient, P * (VALUES - P @ VALUES), atol=1e-12)


def test_without_replacement_refuses_what_are_no_probabilities() -> None:
    with pytest.raises(ValueError, match="total of at most 1"):
        without_replacement([0.7, 0.7], [0, 1])
    with pytest.raises(ValueError, match="at least 2 draws"):
        without_replacement([0.7], [0])
