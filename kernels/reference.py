"""What the kernels mean: the slow true version, kept to check the fast ones against.

Attention after Vaswani et al. 2017 (arXiv:1706.03762), masked by a `TreePlan`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from treewright.kernels.tree_plan import TreePlan

__all__ = ["dense_attention", "dense_logp", "relative_error"]


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: TreePlan,
    scale: float | None = None,
    *,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Tree attention by one masked softmax over all pairs, differentiable by autograd.

    q [Hq, Tq, D]; k [Hkv, Tk, D], v [Hkv, Tk, Dv], Hq a multiple of Hkv; ``dtype`` is what it computes in; window,
    chunk and softcap as `tree_attention` has them. Returns out [Hq, Tq, Dv] and the log-sum-exp of the scaled scores [Hq, Tq], both in ``dtype``. Memory grows with Tq · Tk.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    groups = q.shape[0] // k.shape[0]
    q, k, v = q.to(dtype), k.to(dtype).repeat_interleave(groups, 0), v.to(dtype).repeat_interleave(groups, 0)
    hidden = ~plan.to(q.device).dense_mask(window, chunk)
    scores = q @ k.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(hidden, -math.inf)
    lse = torch.logsumexp(scores, -1)
    return torch.exp(scores - lse[..., None]) @ v, lse


def dense_logp(h: Tensor, weight: Tensor, row: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities [M] of ``target`` after hidden state ``h[row]`` and entropies [N] in nats, in float64.

    h [N, H]; weight [V, H]; row, target int64 [M]. All logits at once.
    """
    logits = h.double() @ weight.double().T
    log_probs = torch.log_softmax(logits, -1)
    return log_probs[row, target], -(log_probs.exp() * log_probs).sum(-1)


def relative_error(found: Tensor, true: Tensor) -> float:
    """Root mean square of the difference over that of the truth: the measure of every gate here."""
    true = true.detach().double()
    difference = found.detach().double() - true
    return float(difference.norm().item() / max(true.norm().item(), 1e-300))
