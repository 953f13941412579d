from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.kernels.trees import inputs, random_parents
from treewright.kernels import TreeChunkState, TreePlan, tree_attention
from treewright.kernels.reference import relative_error


@pytest.mark.parametrize("seed", range(6))
def test_chunked_attention_gradients_are_those_of_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 90))
    plan = TreePlan.from_parents(random_parents(n, rng, 0.2, 0.05))
    q, k, v, d_out, _ = inputs(plan, (4, 2), 8, torch.float64, seed)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    out = tree_attention(q, k, v, plan)
    expected = torch.autograd.grad((out * d_out).sum(), (q, k, v))

    cuts = sorted({0, *rng.integers(0, n, 4).tolist()})
    state = TreeChunkState(plan, cuts)
    with torch.no_grad():
        parts = [c.attention(0, *(x[:, c.start : c.stop] for x in (q, k, v))) for c in state.chunks]
    assert relative_error(torch.cat(parts, 1), out.detach()) < 1e-13
    for chunk in reversed(state.chunks):
        own = [x[:, chunk.start : chunk.stop] for x in (q, k, v)]
        (chunk.attention(0, *own) * d_out[:, chunk.start : chunk.stop]).sum().backward()
    for x, true in zip((q, k, v), expected, strict=True):
        assert relative_error(x.grad, true) < 1e-13


def test_cuts_must_rise_from_zero() -> None:
    plan = TreePlan.from_segments([-1], [9])
    for cuts in ([1, 4], [0, 4, 4], [0, 9], []):
        with pytest.raises(ValueError, match="must rise from 0"):
            TreeChunkState(plan, cuts)


def test_second_pass_without_a_first_is_refused() -> None:
    plan = TreePlan.from_segments([-1], [9])
    q, k, v, *_ = inputs(plan, (1, 1), 8, torch.float64)
    with pytest.raises(ValueError, match="no_grad"):
        TreeChunkState(plan, 3).chunks[0].attention(0, q[:, :3], k[:, :3], v[:, :3])
