"""Attention over a whole token forest in one call, with exact gradients."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from treewright.kernels.dispatch import choose_backend
from treewright.kernels.reference import dense_attention
from treewright.kernels.sdpa import sdpa_attention
from treewright.kernels.tree_plan import TreePlan
from treewright.kernels.triton_backend import triton_attention

__all__ = ["tree_attention"]


@overload
def tree_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: TreePlan,
    scale: float | None = None,
    *,
    return_lse: Literal[False] = False,
    deterministic: bool = False,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    backend: str = "auto",
) -> Tensor: ...


@overload
def tree_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: TreePlan,
    scale: float | None = None,
    *,
    return_lse: Literal[True],
    deterministic: bool = False,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...


def tree_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: TreePlan,
    scale: float | None = None,
    *,
    return_lse: bool = False,
    deterministic: bool = False,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Each query attends to itself and its ancestors, as `plan` has them.

    q [Hq, Tq, D]; k [Hkv, Tk, D], v [Hkv, Tk, Dv] with Hq a multiple of Hkv, in float32, float64, bfloat16 or float16,
    all the same. Dv may differ from D.
    scale          multiplies the scores; None means 1/√D
    return_lse     also return the log-sum-exp of the scaled scores, [Hq, Tq] in float32 (float64 for float64);
                   gradients through it are exact
    deterministic  the same bits every time, forward and backward; may be slower on a GPU
    window         see only keys with ``depth[query] − depth[key] < window``; None means the whole path
    chunk          see only keys with ``depth[key] // chunk == depth[query] // chunk``
    softcap        c bends each scaled score s to c · tanh(s / c)
    sinks          [Hq] logits that take part in each softmax and have no value; differentiable

    Returns out [Hq, Tq, Dv] in q's dtype. Raises ValueError where shapes, dtypes or the plan do not fit.
    """
    _check(q, k, v, plan, {"window": window, "chunk": chunk}, sinks)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    chosen = choose_backend(backend, q.device, q.dtype, q.shape[-1], v.shape[-1]) if plan.n_queries else "dense"
    plan, width = plan.to(q.device), v.shape[-1]
    if chosen in ("sdpa", "flex"):
        q, k, v = _one_width(q, k, v)
    if chosen == "sdpa":
        out, lse = sdpa_attention(q, k, v, plan, scale, window, chunk, softcap)
    elif chosen in ("triton", "triton_ptr"):
        tma = chosen == "triton"
        out, lse = triton_attention(
            q, k, v, plan, scale, window, chunk=chunk, softcap=softcap, tma=tma, deterministic=deterministic
        )
    elif chosen == "flex":
        from treewright.kernels.flex import flex_tree_attention  # its import is slow, and few need it

        out, lse = flex_tree_attention(q, k, v, plan, scale, window, chunk=chunk, softcap=softcap)
    else:
        wide = torch.promote_types(q.dtype, torch.float32)
        out, lse = dense_attention(q, k, v, plan, scale, window=window, chunk=chunk, softcap=softcap, dtype=wide)
        out = out.to(q.dtype)
    out = out[..., :width]
    if sinks is not None:
        # A sink only adds exp(sink) to the denominator, so it rescales what attention without it gives.
        kept = torch.sigmoid(lse - sinks.to(lse.dtype)[:, None])
        out = (out * kept[..., None]).to(q.dtype)
        lse = torch.logaddexp(lse, sinks.to(lse.dtype)[:, None].expand_as(lse))
    return (out, lse) if return_lse else out


def _one_width(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros behind the narrower of queries and values: neither scores nor results change."""
    more = q.shape[-1] - v.shape[-1]
    if more > 0:
        return q, k, F.pad(v, (0, more))
    return (F.pad(q, (0, -more)), F.pad(k, (0, -more)), v) if more else (q, k, v)


def _check(q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, reach: dict[str, int | None], sinks: Tensor | None) -> None:
    if q.dim() != 3 or k.dim() != 3 or k.shape[:-1] != v.shape[:-1] or q.shape[-1] != k.shape[-1]:
        shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        raise ValueError(f"{shapes}: give q [Hq, Tq, D], k [Hkv, Tk, D] and v [Hkv, Tk, Dv]; a pack has no batch axis")
    if q.shape[0] % k.shape[0]:
        raise ValueError(f"{q.shape[0]} query heads are no multiple of {k.shape[0]} key heads")
    if (q.shape[1], k.shape[1]) != (plan.n_queries, plan.n_keys):
        found = f"{q.shape[1]} queries and {k.shape[1]} keys"
        raise ValueError(f"{found}, but the plan has {plan.n_queries} and {plan.n_keys}: is it another pack's plan?")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}; cast them to one dtype")
    for name, size in reach.items():
        if size is not None and size < 1:
            raise ValueError(f"{name} {size} would hide a token from itself; give at least 1, or None for no {name}")
    if sinks is not None and sinks.shape != (q.shape[0],):
        raise ValueError(f"sinks have shape {tuple(sinks.shape)}; give one logit per query head, [{q.shape[0]}]")
