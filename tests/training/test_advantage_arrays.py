from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest

from treewright.training import credit
from treewright.training.credit import ESTIMATORS, MalformedTree, TreeArrays, UnknownEstimator, estimate, estimator
from treewright.training.credit.levels import levels

from .credit_trees import random_batch


def test_the_example_in_the_package_docstring_runs() -> None:
    assert doctest.testmod(credit).failed == 0


@pytest.mark.parametrize(
    ("parent", "columns", "message"),
    [
        ([-1, 2, 0], {}, r"parent\[1\] = 2 must be −1 or an earlier node"),
        ([-1, 0], {"keep_prob": [1, 0.0]}, r"keep_prob\[1\] = 0.0 must lie in \(0, 1\]"),
        ([-1, 0], {"kept": [True, False]}, r"kept\[1\] = False cannot be False where keep_prob is 1"),
        ([-1, 0], {"mult": [1, 0]}, r"mult\[1\] = 0 must be at least 1"),
        ([-1, 0], {"terminal": [True, True]}, r"terminal\[0\] = True cannot be True for a node with children"),
        (
            [-1, 0, 1],
            {"truncated": [False, True, False]},
            r"truncated\[1\] = True cannot be True for a node with children",
        ),
        ([-1, -1], {"tree": [0, 0]}, "tree 0 has 2 roots"),
        ([-1, 0], {"tree": [0, 1]}, r"tree\[1\] = 1 must equal its parent's"),
        ([-1, 0], {"group": [0, 1]}, r"group\[1\] = 1 must equal its parent's"),
        ([-1, 0], {"reward": [0, np.inf]}, r"reward\[1\] = inf must be finite, or NaN"),
        ([-1, 0, 1], {"aux": [0, 1, 0]}, r"aux\[2\] = False must be True below an auxiliary node"),
        ([-1, 0], {"reward": [0, 1, 2]}, r"reward must be float32\[2\], it is float32\[3\]"),
    ],
)
def test_malformed_arrays_are_refused_by_name_and_place(
    parent: list[int], columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(MalformedTree, match=message):
        TreeArrays.of(parent, **columns)


def test_wrong_dtype_is_refused() -> None:
    tree = TreeArrays.of([-1, 0])
    columns = {name: getattr(tree, name) for name in TreeArrays.__dataclass_fields__}
    with pytest.raises(MalformedTree, match=r"reward must be float32\[2\], it is float64\[2\]"):
        TreeArrays(**(columns | {"reward": tree.reward.astype(np.float64)})).validate()


def test_unknown_array_name_is_refused() -> None:
    with pytest.raises(TypeError, match="no array 'rewards'"):
        TreeArrays.of([-1, 0], rewards=[0, 1])


def test_concatenate_shifts_parents_and_trees_and_keeps_groups_and_reasons() -> None:
    a = TreeArrays.of([-1, 0], group=[7, 7], reasons=[["merged states"]])
    b = TreeArrays.of([-1, 0, 0], group=[7, 7, 7])
    both = TreeArrays.concatenate([a, b])
    both.validate()
    assert both.parent.tolist() == [-1, 0, -1, 2, 2]
    assert both.tree.tolist() == [0, 0, 1, 1, 1]
    assert both.group.tolist() == [7] * 5
    assert both.reasons == (("merged states",), ()) and both.roots.tolist() == [0, 2]


def test_concatenating_nothing_is_refused() -> None:
    with pytest.raises(MalformedTree, match="at least one"):
        TreeArrays.concatenate([])


def test_selecting_trees_keeps_each_as_it_was() -> None:
    batch = TreeArrays.concatenate([random_batch(2, trees=2), random_batch(2, trees=2, exact=False)])
    kept = batch.select(batch.exact)
    assert kept.trees == 2 and kept.exact.all()
    halves = [batch.select([True, False, True, False]), batch.select([False, True, False, True])]
    halves[0].validate()
    assert sum(map(len, halves)) == len(batch)
    np.testing.assert_array_equal(halves[1].reward, batch.reward[batch.tree % 2 == 1])
    with pytest.raises(ValueError, match=r"bool\[4\]"):
        batch.select([True])


def test_levels_give_each_node_its_depth_and_parents_before_children() -> None:
    batch = random_batch(1)
    plan = levels(batch.parent)
    for node, parent in enumerate(batch.parent):
        assert plan.depth[node] == (0 if parent < 0 else plan.depth[parent] + 1)
    inner = plan.parent >= 0
    assert (plan.order[plan.parent[inner]] == batch.parent[plan.order[inner]]).all()
    assert plan.starts[-1] == len(batch)


def test_unknown_estimator_and_option_name_the_nearest() -> None:
    tree = TreeArrays.of([-1, 0])
    with pytest.raises(UnknownEstimator, match="no estimator named 'split_lo'; did you mean 'split_loo'"):
        estimate("split_lo", tree)
    with pytest.raises(UnknownEstimator, match="estimator 'split_loo' has no option 'taus'; did you mean 'tau'"):
        estimate("split_loo", tree, taus=1)


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(ValueError, match="already registered"):
        estimator("split_loo")(ESTIMATORS["split_loo"])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_batch_without_trees_gives_credit_without_nodes(name: str) -> None:
    assert estimate(name, TreeArrays.of([])).coef.shape == (0,)
