"""Random forests and losses for the kernel tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from treewright.kernels.tree_plan import TreePlan


def random_parents(n: int, rng: np.random.Generator, branch: float = 0.05, roots: float = 0.0) -> list[int]:
    """Predecessors of `n` tokens in depth-first order; each branches off its predecessor's path at random."""
    parent: list[int] = []
    for token in range(n):
        if token == 0 or rng.random() < roots:
            parent.append(-1)
        elif rng.random() < branch:
            path, at = [], token - 1
            while at >= 0:
                path.append(at)
                at = parent[at]
            parent.append(int(rng.choice(path)))
        else:
            parent.append(token - 1)
    return parent


def ancestors(parent: list[int]) -> np.ndarray:
    """bool [N, N], True where the column is the row or above it, by walking."""
    seen = np.eye(len(parent), dtype=bool)
    for token, up in enumerate(parent):
        if up >= 0:
            seen[token] |= seen[up]
    return seen


def inputs(
    plan: TreePlan,
    heads: tuple[int, int],
    width: int,
    dtype: torch.dtype,
    seed: int = 0,
    value_width: int | None = None,
) -> tuple[Any, Any, Any, Any, Any]:
    """q, k, v and the gradients of out and lse."""
    generator = torch.Generator().manual_seed(seed)
    hq, hkv = heads

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    values = width if value_width is None else value_width
    q, d_out = normal(hq, plan.n_queries, width), normal(hq, plan.n_queries, values)
    k, v = normal(hkv, plan.n_keys, width), normal(hkv, plan.n_keys, values)
    return q, k, v, d_out, normal(hq, plan.n_queries).double()


def outputs_and_gradients(
    attention: Callable[..., Any], q: torch.Tensor, k: Any, v: torch.Tensor, d_out: Any, d_lse: Any
) -> tuple[Any, Any, Any, Any, Any]:
    """out, lse, dq, dk, dv of ``attention(q, k, v) -> (out, lse)``; d_lse None leaves lse out of the loss."""
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    out, lse = attention(q, k, v)
    loss = (out * d_out.to(out.dtype)).sum()
    if d_lse is not None:
        loss = loss + (lse * d_lse.to(lse.dtype)).sum()
    loss.backward()
    return out.detach(), lse.detach(), q.grad, k.grad, v.grad
