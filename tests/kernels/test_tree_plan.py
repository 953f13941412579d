from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speed import patient

from tests.kernels.trees import ancestors, random_parents
from treewright.kernels import TreePlan, preorder

if TYPE_CHECKING:
    from numpy.random import Generator


shapes = st.tuples(
    st.integers(0, 2**32 - 1), st.integers(1, 120), st.sampled_from([0.02, 0.3, 0.9]), st.sampled_from([0.0, 0.1])
)


def forest(shape: tuple[int, int, float, float]) -> tuple[list[int], Generator]:
    seed, n, branch, roots = shape
    rng = np.random.default_rng(seed)
    return random_parents(n, rng, branch, roots), rng


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_mask_is_the_ancestor_relation(shape: tuple[int, int, float, float]) -> None:
    parent, _ = forest(shape)
    plan = TreePlan.from_parents(parent)
    plan.check_integrity()
    seen = ancestors(parent)
    assert np.array_equal(plan.dense_mask().numpy(), seen)
    assert plan.n_pairs == seen.sum()
    assert np.array_equal(plan.depth.numpy(), seen.sum(1) - 1)


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_a_cut_sees_the_root_path_and_its_own_tokens_and_nothing_else_is_live(
    shape: tuple[int, int, float, float],
) -> None:
    parent, rng = forest(shape)
    plan, seen = TreePlan.from_parents(parent), ancestors(parent)
    start = int(rng.integers(0, len(parent)))
    stop = int(rng.integers(start + 1, len(parent) + 1))
    cut, live = plan.cut(start, stop), plan.live(start).numpy()
    cut.check_integrity()
    assert np.array_equal(live, np.flatnonzero(seen[start, :start]))
    columns = np.concatenate([live, np.arange(start, stop)])
    assert np.array_equal(cut.dense_mask().numpy(), seen[start:stop][:, columns])
    again = cut.cut(0, cut.n_queries)  # a cut of a cut is a cut
    assert torch.equal(again.dense_mask(), cut.dense_mask()) and torch.equal(again.parent, cut.parent)


@settings(max_examples=40, deadline=None)
@given(shapes, st.sampled_from([(8, 8), (4, 16), (16, 4)]), st.sampled_from([None, 5]))
def test_block_lists_miss_nothing_and_full_blocks_are_full(
    shape: tuple[int, int, float, float], tile: Any, window: Any
) -> None:
    parent, rng = forest(shape)
    whole = TreePlan.from_parents(parent)
    start = int(rng.integers(0, len(parent)))
    for plan in (whole, whole.cut(start, len(parent)), whole.pad_to(len(parent) + 5)):
        block_q, block_k = tile
        mask = plan.dense_mask(window).numpy()
        rows, columns = plan.rows(block_q, block_k, window), plan.columns(block_q, block_k, 2)
        items = set()
        for key, first, stop in zip(
            columns.key_block.tolist(), columns.first.tolist(), columns.stop.tolist(), strict=True
        ):
            items |= {(query, key) for query in range(first, stop)}
        for i in range(-(-plan.n_queries // block_q)):
            partial = set(rows.partial[rows.partial_ptr[i] : rows.partial_ptr[i + 1]].tolist())
            full = set(rows.full[rows.full_ptr[i] : rows.full_ptr[i + 1]].tolist())
            assert not partial & full
            for j in range(-(-plan.n_keys // block_k)):
                block = mask[i * block_q : (i + 1) * block_q, j * block_k : (j + 1) * block_k]
                if j in full:
                    assert block.all() and block.shape[1] == block_k
                if window is None:
                    assert block.any() == (j in partial | full) == ((i, j) in items)
                else:
                    assert not block.any() or j in partial | full


def test_segments_and_parents_describe_the_same_tree() -> None:
    by_segment = TreePlan.from_segments([-1, 0, 1, 0, -1, 4], [2, 2, 1, 2, 1, 1])
    by_token = TreePlan.from_parents([-1, 0, 1, 2, 3, 1, 5, -1, 7])
    for name in ("end", "depth", "parent"):
        assert torch.equal(getattr(by_segment, name), getattr(by_token, name))
    assert by_token.end.tolist() == [7, 7, 5, 5, 5, 7, 7, 9, 9]


def test_segments_without_tokens_pass_their_children_on() -> None:
    with_empty = TreePlan.from_segments([-1, 0, 1, 2, 1], [2, 0, 0, 1, 3])
    assert torch.equal(with_empty.parent, TreePlan.from_segments([-1, 0, 0], [2, 1, 3]).parent)
    assert TreePlan.from_segments([-1, 0], [0, 2]).parent.tolist() == [-1, 0]
    assert TreePlan.from_segments([], []).n_queries == 0


def test_preorder_makes_any_forest_depth_first() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        n = int(rng.integers(1, 60))
        parent = np.array([int(rng.integers(-1, t)) if t else -1 for t in range(n)])
        order = preorder(parent)
        rank = np.empty(n, dtype=int)
        rank[order] = np.arange(n)
        moved = np.where(parent[order] >= 0, rank[parent[order]], -1)
        plan = TreePlan.from_parents(moved)
        assert np.array_equal(plan.dense_mask().numpy(), ancestors(parent.tolist())[order][:, order])


@pytest.mark.parametrize("parent", [[-1, 0, 0, 1], [-1, 0, 1, 0, 2], [-1, 0, 1, 0, 2, 1]])
def test_an_order_that_is_not_depth_first_is_refused_with_the_remedy(parent: list[int]) -> None:
    with pytest.raises(ValueError, match="preorder"):
        TreePlan.from_parents(parent)


def test_other_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="earlier than its child"):
        TreePlan.from_parents([-1, 2, 0])
    with pytest.raises(ValueError, match="2 parent segments but 1 lengths"):
        TreePlan.from_segments([-1, 0], [3])
    with pytest.raises(ValueError, match="negative length"):
        TreePlan.from_segments([-1, 0], [3, -1])
    with pytest.raises(ValueError, match="does not lie in"):
        TreePlan.from_parents([-1, 0]).cut(1, 3)
    with pytest.raises(ValueError, match="cannot pad"):
        TreePlan.from_parents([-1, 0]).pad_to(1)


@pytest.mark.parametrize("name", ["end", "depth", "parent", "n_pairs"])
def test_integrity_check_finds_a_changed_field(name: str) -> None:
    plan = TreePlan.from_segments([-1, 0, 0], [3, 4, 5])
    fields = {f: getattr(plan, f) for f in ("end", "depth", "parent", "q_offset", "n_pairs")}
    if name == "n_pairs":
        fields[name] += 1
    else:
        fields[name] = fields[name].clone()
        fields[name][5] -= 1
    with pytest.raises(ValueError, match=r"parents say|depths say"):
        TreePlan(**fields).check_integrity()


def test_a_million_tokens_are_planned_in_half_a_second_of_a_processor() -> None:
    rng = np.random.default_rng(0)
    parent, lengths = [], []
    for _ in range(500):
        path: list[Any] = []
        for _ in range(62):
            path = path[: int(rng.integers(1, len(path) + 1)) if path else 0]
            parent.append(path[-1] if path else -1)
            lengths.append(int(rng.integers(5, 60)))
            path.append(len(parent) - 1)
    took = []
    for _ in range(3):
        start = time.thread_time()  # of this thread: other work on the machine is not counted
        plan = TreePlan.from_segments(parent, lengths)
        plan.rows(128, 128), plan.columns(128, 128)
        took.append(time.thread_time() - start)
    assert plan.n_queries > 0.9e6
    assert min(took) < patient(0.5)
