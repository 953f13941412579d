"""What the kernels mean: the slow true version, kept to check the fast ones against.

Attention after Vaswani et al. 2017 (arXiv:1706.03762), masked by a `TreePlan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from treewright.kernels.tree_plan import TreePlan

__all__ = [
    "delta_step",
    "dense_attention",
    "dense_logp",
    "lightning_step",
    "path_convolution",
    "path_states",
    "relative_error",
    "ssd_step",
]


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
    chunk and softcap as `tree_attention` has them. Returns out [Hq, Tq, Dv] and the log-sum-exp of the scaled scores
    [Hq, Tq], both in ``dtype``. Memory grows with Tq · Tk.
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


def path_states(
    step: Callable[..., tuple[Tensor, Tensor]], inputs: Sequence[Tensor], zero: Tensor, plan: TreePlan
) -> Tensor:
    """A recurrence token by token along each path: [Tk, …].

    step    (state of the token before, its inputs …) → output of the token, its state
    inputs  [Tk, …] each;  zero  the state before a first token. The plan is a whole one, not a cut
    """
    states: list[Tensor] = []
    outputs = []
    for token, up in enumerate(plan.parent.tolist()):
        out, state = step(states[up] if up >= 0 else zero, *(x[token] for x in inputs))
        outputs.append(out)
        states.append(state)
    return torch.stack(outputs)


def delta_step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464), and KDA (arXiv:2510.26692) where each channel decays.

    state [H, K, V]; q, k [H, K]; v [H, V]; beta [H]; decay, a logarithm, [H] or [H, K]. Queries are scaled by 1/√K.
    """
    decay = decay if decay.dim() == 2 else decay[:, None]
    state = state * decay.exp()[..., None]
    wrong = v - (k[..., None] * state).sum(1)
    state = state + k[..., None] * (beta[:, None] * wrong)[:, None]
    return (q[..., None] * state).sum(1) / math.sqrt(q.shape[-1]), state


def ssd_step(
    state: Tensor, x: Tensor, dt: Tensor, b: Tensor, c: Tensor, a: Tensor, skip: Tensor
) -> tuple[Tensor, Tensor]:
    """Mamba-2 (Dao and Gu 2024, arXiv:2405.21060): state [H, P, N]; x [H, P]; dt, a, skip [H]; b, c [H, N]."""
    state = state * (dt * a).exp()[:, None, None] + dt[:, None, None] * x[..., None] * b[:, None]
    return (state * c[:, None]).sum(-1) + skip[:, None] * x, state


def lightning_step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Lightning attention (Qin et al. 2024, arXiv:2401.04658): state [H, K, V]; q, k [H, K]; v [H, V]; slope [H]."""
    state = state * (-slope).exp()[:, None, None] + k[..., None] * v[:, None]
    return (q[..., None] * state).sum(1), state


def path_convolution(x: Tensor, weight: Tensor, plan: TreePlan) -> Tensor:
    """A causal depthwise convolution along each path: x [Tk, C], weight [C, K] → [Tk, C]."""
    parent, outputs = plan.parent.tolist(), []
    for token in range(len(parent)):
        at, total = token, torch.zeros_like(x[0])
        for lag in range(weight.shape[1]):
            total = total + x[at] * weight[:, -1 - lag] if at >= 0 else total
            at = parent[at] if at >= 0 else -1
        outputs.append(total)
    return torch.stack(outputs)
