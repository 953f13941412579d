"""Recurrences and short convolutions on forests, whole and in chunks, against token by token along each path."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.kernels.trees import random_parents
from treewright.kernels import TreeChunkState, TreePlan
from treewright.kernels.lightning import lightning_attention
from treewright.kernels.reference import lightning_step, path_convolution, path_states, relative_error
from treewright.kernels.tree_states import batches, tree_convolution, tree_scan, tree_steps

if TYPE_CHECKING:
    pass


HEADS, WIDTH, VALUES = 2, 4, 3


def forest(seed: int) -> TreePlan:
    rng = np.random.default_rng(seed)
    return TreePlan.from_parents(random_parents(260, rng, [0.02, 0.2, 0.6][seed % 3], [0.0, 0.03][seed % 2]))


def deep_tree(branching: int = 4, depth: int = 6, length: int = 2) -> TreePlan:
    """Every segment of a level but one ends there; the other branches again."""
    up, last = [-1], 0
    for _ in range(depth - 1):
        up += [last] * branching
        last = len(up) - branching
    order = sorted(range(len(up)), key=lambda s: path_of(up, s))
    rank = {s: i for i, s in enumerate(order)}
    return TreePlan.from_segments([rank[up[s]] if up[s] >= 0 else -1 for s in order], [length] * len(up))


def path_of(up: list[int], s: int) -> tuple[Any, ...]:
    return (*path_of(up, up[s]), s) if s >= 0 else ()


PLANS = {
    "rare branches": forest(0),
    "forest": forest(1),
    "many short segments": forest(2),
    "branching 4, depth 6": deep_tree(),
    "long and short": TreePlan.from_segments([-1, 0, 0, 0, 3, 0], [150, 3, 70, 130, 5, 200]),
    "single tokens": TreePlan.from_segments([-1, 0, 1, 2, 2, 0, 5, 6], [1] * 8).pad_to(11),
}


def tensors(plan: TreePlan) -> tuple[list[Any], Any]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(plan.n_queries, *shape, generator=generator, dtype=torch.float64).requires_grad_()

    return [normal(HEADS, WIDTH), normal(HEADS, WIDTH), normal(HEADS, VALUES)], normal(HEADS, VALUES).detach()


def lightning(parts: Any, real: torch.Tensor, state: Any, longest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, v = parts
    slope = torch.tensor([0.1, 0.7], dtype=q.dtype) * real[..., None]
    k, v = (x * real[..., None, None] for x in (k, v))
    return lightning_attention(q, k, v, slope, state, block=16)


def reference(inputs: list[Any], plan: TreePlan) -> torch.Tensor:
    slope = torch.tensor([0.1, 0.7], dtype=torch.float64)
    zero = torch.zeros(HEADS, WIDTH, VALUES, dtype=torch.float64)
    return path_states(lambda state, q, k, v: lightning_step(state, q, k, v, slope), inputs, zero, plan)


@pytest.mark.parametrize("name", PLANS)
def test_states_follow_each_path_and_so_do_gradients(name: str) -> None:
    plan = PLANS[name]
    inputs, grad = tensors(plan)
    found, expected = tree_scan(inputs, plan, lightning), reference(inputs, plan)
    assert relative_error(found, expected) < 1e-12
    for a, b in zip(*(torch.autograd.grad((x * grad).sum(), inputs) for x in (found, expected)), strict=True):
        assert relative_error(a, b) < 1e-12


@pytest.mark.parametrize("name", PLANS)
def test_steps_of_one_depth_at_a_time_follow_each_path(name: str) -> None:
    plan = PLANS[name]
    (factor, added, _), _ = tensors(plan)
    factor, added = torch.sigmoid(factor), added
    expected = path_states(
        lambda h, f, a: ((h * f + a),) * 2, (factor, added), torch.zeros(HEADS, WIDTH).double(), plan
    )
    assert relative_error(tree_steps(factor, added, plan), expected) < 1e-13


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("width", [2, 4])
def test_a_short_convolution_reads_the_root_path(name: str, width: int) -> None:
    plan = PLANS[name]
    x, grad = torch.randn(2, plan.n_queries, 5, dtype=torch.float64)
    x.requires_grad_()
    weight = torch.randn(5, width, dtype=torch.float64, requires_grad=True)
    found, expected = tree_convolution(x, width, plan, convolved(weight)), path_convolution(x, weight, plan)
    assert relative_error(found, expected) < 1e-13
    for a, b in zip(*(torch.autograd.grad((y * grad).sum(), (x, weight)) for y in (found, expected)), strict=True):
        assert relative_error(a, b) < 1e-13


def convolved(weight: torch.Tensor) -> Callable[[Any], torch.Tensor]:
    width = weight.shape[1]
    return lambda row: F.conv1d(row.T[None], weight[:, None], padding=width - 1, groups=len(weight))[0, :, : len(row)].T


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("cuts", [37, 1, [0, 5, 9, 10]])
def test_chunks_hand_states_on_and_gradients_back(name: str, cuts: int | list[int]) -> None:
    plan = PLANS[name]
    if cuts == 1 and plan.n_queries > 100:
        plan = plan.cut(0, 100)
    if isinstance(cuts, list):
        cuts = [c for c in cuts if c < plan.n_queries]
    inputs, grad = tensors(plan)
    weight = torch.randn(HEADS * VALUES, 3, dtype=torch.float64, requires_grad=True)

    def layer(tree: Any, q: torch.Tensor, k: Any, v: torch.Tensor) -> torch.Tensor:
        seen = tree_scan((q, k, v), tree, lightning, "a").flatten(1)
        mixed = tree_convolution(seen, 3, tree, convolved(weight), "b")
        return mixed + tree_steps(torch.sigmoid(seen), mixed, tree, "c")

    whole = layer(plan, *inputs)
    expected = torch.autograd.grad((whole * grad.flatten(1)).sum(), (*inputs, weight))
    state = TreeChunkState(plan, cuts)
    with torch.no_grad():
        first = torch.cat([layer(c, *(x[c.start : c.stop] for x in inputs)) for c in state.chunks])
    assert relative_error(first, whole) < 1e-12
    for chunk in reversed(state.chunks):
        out = layer(chunk, *(x[chunk.start : chunk.stop] for x in inputs))
        (out * grad.flatten(1)[chunk.start : chunk.stop]).sum().backward()
    for x, b in zip((*inputs, weight), expected, strict=True):
        assert relative_error(x.grad, b) < 1e-12


def test_segments_of_a_level_go_through_in_one_call_and_long_ones_do_not_wait_for_padding() -> None:
    bushy = TreePlan.from_segments([-1] + [0] * 16, [64] + [32] * 16)
    assert [b.at.shape for b in batches(bushy)] == [(1, 64), (16, 32)]
    uneven = TreePlan.from_segments([-1, 0, 0, 0], [10, 60, 64, 640])
    shapes = [tuple(b.at.shape) for b in batches(uneven)]
    assert shapes == [(1, 10), (3, 64), (1, 576)]
    for plan in PLANS.values():
        calls = batches(plan)
        assert sum(int(b.real.sum()) for b in calls) == plan.n_queries
        assert sum(b.real.numel() for b in calls) <= 8 * plan.n_queries


def test_without_gradients_no_more_states_are_held_than_segments_are_open() -> None:
    import gc
    import weakref

    held: list[Any]
    held, most = [], 0

    def run(parts: Any, real: torch.Tensor, state: Any, longest: Any) -> tuple[Any, Any]:
        nonlocal most
        gc.collect()
        most = max(most, sum(len(x()) for x in held if x() is not None))
        out, after = lightning(parts, real, state, longest)
        held.append(weakref.ref(after))
        return out, after

    plan = TreePlan.from_segments([-1, 0, 1, 2, 3, 4, 5, 5], [3] * 8)
    inputs, _ = tensors(plan)
    with torch.no_grad():
        tree_scan(inputs, plan, run)
    assert 1 <= most <= 2


def test_a_chunk_run_out_of_order_says_what_to_do() -> None:
    plan = TreePlan.from_segments([-1], [10])
    inputs, _ = tensors(plan)
    chunk = TreeChunkState(plan, 5).chunks[1]
    with pytest.raises(ValueError, match="run every chunk in order"):
        tree_scan([x[5:] for x in inputs], chunk, lightning, "a")
