from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.kernels.trees import inputs, outputs_and_gradients, random_parents
from treewright.kernels import TreePlan, tree_attention
from treewright.kernels.flex import flex_block_mask
from treewright.kernels.reference import dense_attention, relative_error


@pytest.mark.parametrize(("window", "chunk"), [(None, None), (40, None), (None, 60), (40, 60)])
@pytest.mark.parametrize("cut", [0, 133])
def test_block_mask_says_what_the_plan_says(window: int | None, chunk: int | None, cut: int) -> None:
    plan = TreePlan.from_parents(random_parents(500, np.random.default_rng(1), 0.03, 0.004)).cut(cut, 500)
    mask = flex_block_mask(plan, window, chunk)
    true = plan.dense_mask(window, chunk)
    query, key = torch.meshgrid(torch.arange(plan.n_queries), torch.arange(plan.n_keys), indexing="ij")
    zero = torch.zeros_like(query)
    assert torch.equal(mask.mask_mod(zero, zero, query, key), true)
    blocks = mask.to_dense()[0, 0].bool()
    padded = torch.nn.functional.pad(true, (0, -plan.n_keys % 128, 0, -plan.n_queries % 128))
    padding: Any = padded
    needed = padding.unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).any(3).any(1)
    assert not (needed & ~blocks).any()


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize(
    ("options", "values"), [({}, 16), ({"window": 40}, 16), ({"chunk": 30, "softcap": 0.9}, 8), ({}, 24)]
)
def test_eager_forward_agrees_with_float64(options: dict[str, Any], values: int) -> None:
    plan = TreePlan.from_parents(random_parents(300, np.random.default_rng(2), 0.03, 0.01)).cut(40, 300)
    q, k, v, *_ = inputs(plan, (4, 2), 16, torch.float32, value_width=values)
    found = tree_attention(q, k, v, plan, return_lse=True, backend="flex", **options)
    expected = dense_attention(q, k, v, plan, **options)
    assert all(relative_error(a, b) < 1e-6 for a, b in zip(found, expected, strict=True))


def test_gradients_on_a_cpu_are_refused_with_the_remedy() -> None:
    plan = TreePlan.from_segments([-1], [9])
    q, k, v, *_ = inputs(plan, (1, 1), 8, torch.float32)
    with pytest.raises(ValueError, match="sdpa"):
        tree_attention(q.requires_grad_(), k, v, plan, backend="flex")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiles for a GPU, and there is none")
@pytest.mark.parametrize("cut", [0, 133])
def test_compiled_gradients_on_a_gpu_agree_with_float64(cut: int) -> None:
    plan = TreePlan.from_parents(random_parents(500, np.random.default_rng(1), 0.03, 0.004)).cut(cut, 500)
    tensors = [x.cuda() for x in inputs(plan, (4, 2), 64, torch.bfloat16)]
    found = outputs_and_gradients(
        lambda q, k, v: tree_attention(q, k, v, plan, return_lse=True, backend="flex"), *tensors
    )
    exact = [x.double() for x in tensors]
    expected = outputs_and_gradients(lambda q, k, v: dense_attention(q, k, v, plan), *exact)
    assert all(relative_error(a, b) <= 1e-2 for a, b in zip(found, expected, strict=True))
