from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from treewright.training.credit import NodeKind, TreeArrays
from treewright.training.credit.all_nodes import joint_credit
from treewright.training.credit.graphs import split_loo_graph

if TYPE_CHECKING:
    from numpy.typing import NDArray


P = (np.array([0.3, 0.7]), np.array([0.6, 0.4]), np.array([0.25, 0.75]))
T = (np.array([1.0, 0.2]), np.array([0.5, 2.0]), np.array([-1.0, 0.8]))


def truth(f: Callable[..., Any]) -> tuple[float, list[NDArray[Any]]]:
    """E f and its gradient with respect to the logits of every child's policy, by enumeration."""
    value, grad = 0.0, [np.zeros(2) for _ in P]
    for actions in itertools.product((0, 1), repeat=3):
        p = math.prod(P[i][a] for i, a in enumerate(actions))
        reward = f([T[i][a] for i, a in enumerate(actions)])
        value += p * reward
        for i, a in enumerate(actions):
            grad[i] += p * reward * (np.eye(2)[a] - P[i])
    return value, grad


def expected(draws: tuple[int, int, int], credit_of: Callable[[Any], Any]) -> tuple[float, list[NDArray[Any]]]:
    """Expectation of the estimates over every possible set of draws."""
    value, grad = 0.0, [np.zeros(2) for _ in P]
    sets = [list(itertools.product((0, 1), repeat=k)) for k in draws]
    for chosen in itertools.product(*sets):
        p = math.prod(P[i][a] for i, row in enumerate(chosen) for a in row)
        v, coefs = credit_of(chosen)
        value += p * v
        for i, row in enumerate(chosen):
            for a, c in zip(row, coefs[i], strict=True):
                grad[i] += p * c * (np.eye(2)[a] - P[i])
    return value, grad


@pytest.mark.parametrize("f", [math.prod, sum, max, min, lambda x: float(x[0] > x[1]) + x[2] ** 2])
@pytest.mark.parametrize("draws", [(2, 2, 2), (3, 1, 2), (1, 1, 1)])
@pytest.mark.parametrize("tau", [0.0, 3.0])
def test_all_tuples_are_exact_for_any_combine(
    f: Callable[..., Any] | Callable[[Any], Any], draws: tuple[int, int, int], tau: float
) -> None:
    def credit_of(chosen: Any) -> tuple[float, tuple[NDArray[Any], ...]]:
        found = joint_credit([T[i][list(row)] for i, row in enumerate(chosen)], f, tau=tau, baseline=0.37)
        return found.value, found.coef

    value, grad = expected(draws, credit_of)
    want, want_grad = truth(f)
    assert value == pytest.approx(want)
    np.testing.assert_allclose(grad, want_grad, atol=1e-12)


def test_the_graph_estimator_is_exact_for_products_and_f_of_means_is_not_for_max() -> None:
    def by_graph(chosen: Any) -> tuple[Any, list[NDArray[Any]]]:
        parent, reward = [-1, *[0] * 3], [0.0] * 4
        for i, row in enumerate(chosen):
            parent += [1 + i] * len(row)
            reward += T[i][list(row)].tolist()
        kind = [NodeKind.ALL, *[NodeKind.CHOICE] * (len(parent) - 1)]
        credit = split_loo_graph(TreeArrays.of(parent, reward=reward, kind=kind), combine="product", tau=0.0)
        ends = np.cumsum([0, *map(len, chosen)]) + 4
        return credit.value[0], [credit.coef[ends[i] : ends[i + 1]] for i in range(3)]

    value, grad = expected((2, 2, 2), by_graph)
    want, want_grad = truth(math.prod)
    assert value == pytest.approx(want, rel=1e-6)
    np.testing.assert_allclose(grad, want_grad, atol=1e-7)

    def of_means(chosen: Any) -> tuple[Any, list[NDArray[Any]]]:
        return max(T[i][list(row)].mean() for i, row in enumerate(chosen)), [np.zeros(2)] * 3

    assert abs(expected((2, 2, 2), of_means)[0] - truth(max)[0]) > 0.05


def test_every_child_keeps_the_full_weight_times_the_slope() -> None:
    found = joint_credit([[0.5, 1.0], [2.0], [3.0]], weight=0.5)
    np.testing.assert_allclose(found.joint[0], [3.0, 6.0])
    np.testing.assert_allclose(found.coef[0], [0.25 * (3 - 6), 0.25 * (6 - 3)])


def test_missing_draws_and_too_many_tuples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one draw"):
        joint_credit([[1.0], []])
    with pytest.raises(ValueError, match="too many"):
        joint_credit([np.zeros(101)] * 3)
