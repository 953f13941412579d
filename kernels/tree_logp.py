"""Log-probabilities and entropies from hidden states, without ever holding all logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["tree_logp", "tree_logp_dot", "tree_logp_grad"]


def tree_logp(
    h: Tensor, weight: Tensor, row: Tensor, target: Tensor, chunk: int = 4096,
    bias: Tensor | None = None, softcap: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Log-probability of each (row, target) pair and entropy of each row's next-token distribution, in nats.

    h       [N, H] hidden states, only of the tokens that predict something (a branch point predicts several)
    weight  [V, H] of the output layer
    row     int64 [M], index into h of the token that predicts; target int64 [M], index into the vocabulary
    chunk   rows whose logits exist at once: chunk · V numbers
    bias    [V] added to the logits;  softcap  c bends each logit s to c · tanh(s / c), after the bias

    Returns logp [M] and entropy [N], float32 (float64 for float64), both differentiable. The backward pass computes
    the logits again. Raises ValueError where shapes do not fit or an index is out of range.
    """
    if h.dim() != 2 or weight.dim() != 2 or h.shape[1] != weight.shape[1]:
        raise ValueError(f"h {tuple(h.shape)} and weight {tuple(weight.shape)}: give [N, H] and [V, H]")
    if row.shape != target.shape or row.dim() != 1:
        raise ValueError(f"row {tuple(row.shape)}, target {tuple(target.shape)}: give two index vectors of one length")
    for name, index, size in (("row", row, h.shape[0]), ("target", target, weight.shape[0])):
        if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < size):
            raise ValueError(f"{name} runs from {int(index.min())} to {int(index.max())}, outside 0..{size - 1}")
    logp, entropy = _TreeLogp.apply(h, weight, bias, row, target, chunk, softcap)  # type: ignore[no-untyped-call]
    return logp, entropy


def tree_logp_grad(
    h: Tensor,
    weight: Tensor,
    row: Tensor,
    target: Tensor,
    d_logp: Tensor | None,
    d_entropy: Tensor | None = None,
    chunk: int = 4096,
    bias: Tensor | None = None,
    softcap: float | None = None,
    frozen: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients [N, H] of h, [V, H] of weight and [V] of bias where those of logp [M] and entropy [N] are known.

    One pass, three matrix products per chunk; weight's gradient is summed in float32 or wider.
    frozen  weight is not trained: its gradient is None, and costs neither time nor memory
    """
    wide = torch.promote_types(h.dtype, torch.float32)
    d_h = torch.empty_like(h)
    d_weight = None if frozen else torch.zeros(weight.shape, dtype=wide, device=weight.device)
    d_bias = None if bias is None else torch.zeros(bias.shape, dtype=wide, device=bias.device)
    for start, stop, pairs in _chunks(h.shape[0], row, chunk):
        logits = _logits(h[start:stop], weight, bias, softcap)
        log_probs = torch.log_softmax(logits, -1)
        bend = None if softcap is None else logits.div_(softcap).square_().neg_().add_(1)
        del logits  # a chunk's numbers exist twice, three times with an entropy's gradient
        probs = log_probs.exp()
        factor = torch.zeros(stop - start, 1, dtype=wide, device=h.device)
        g = None if d_logp is None else d_logp[pairs].to(wide)
        if g is not None:
            factor.index_add_(0, row[pairs] - start, -g[:, None])
        if d_entropy is not None:
            entropy = -(probs * log_probs).sum(-1, keepdim=True)
            factor = log_probs.add_(entropy).mul_(-d_entropy[start:stop, None].to(wide)).add_(factor)
        d_logits = probs.mul_(factor)
        del log_probs, factor
        if g is not None:
            d_logits.index_put_((row[pairs] - start, target[pairs]), g, accumulate=True)
        if bend is not None:
            d_logits.mul_(bend)
        if d_bias is not None:
            d_bias += d_logits.sum(0)
        d_logits = d_logits.to(h.dtype)
        d_h[start:stop] = d_logits @ weight
        if d_weight is not None:
            _add_product(d_weight, d_logits.T, h[start:stop])
        del probs, d_logits, bend  # before the next chunk's are made
    return (
        d_h,
        None if d_weight is None else d_weight.to(weight.dtype),
        None if d_bias is None or bias is None else d_bias.to(bias.dtype),
    )


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, without a second array of its size where the types allow it."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _logits(h: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    logits = (h @ weight.T).to(torch.promote_types(h.dtype, torch.float32))
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def tree_logp_dot(
    h: Tensor,
    weight: Tensor,
    row: Tensor,
    target: Tensor,
    d_logp: Tensor,
    d_entropy: Tensor | None = None,
    chunk: int = 4096,
    bias: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """A scalar whose gradient is that of Σ d_logp · logp + Σ d_entropy · entropy; its value is 0.

    For a second pass over the same tokens, where the loss's gradient is known: `backward()` on it costs no further
    matrix product, since h's and weight's gradients were computed with the logits at hand. Shapes as `tree_logp_grad`.
    """
    zero: Tensor = _KnownGradient.apply(  # type: ignore[no-untyped-call]
        h, weight, bias, row, target, d_logp, d_entropy, chunk, softcap
    )
    return zero


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        row, target, d_logp, d_entropy, chunk, softcap = rest
        frozen = not ctx.needs_input_grad[1]
        ctx.save_for_backward(*tree_logp_grad(h, weight, row, target, d_logp, d_entropy, chunk, bias, softcap, frozen))
        return torch.zeros((), dtype=torch.promote_types(h.dtype, torch.float32), device=h.device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        known = [None if d is None else d * grads[0].to(d.dtype) for d in ctx.saved_tensors]
        return *known, None, None, None, None, None, None


class _TreeLogp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
        row, target, chunk, softcap = rest
        wide = torch.promote_types(h.dtype, torch.float32)
        logp = torch.empty(row.shape, dtype=wide, device=h.device)
        entropy = torch.empty(h.shape[0], dtype=wide, device=h.device)
        for start, stop, pairs in _chunks(h.shape[0], row, chunk):
            log_probs = torch.log_softmax(_logits(h[start:stop], weight, bias, softcap), -1)
            logp[pairs] = log_probs[row[pairs] - start, target[pairs]]
            entropy[start:stop] = -log_probs.exp().mul_(log_probs).sum(-1)
            del log_probs
        ctx.save_for_backward(h, weight, bias, row, target)
        ctx.chunk, ctx.softcap = chunk, softcap
        ctx.set_materialize_grads(False)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        h, weight, bias, row, target = ctx.saved_tensors
        d_logp, d_entropy = grads
        frozen = not ctx.needs_input_grad[1]
        known = tree_logp_grad(h, weight, row, target, d_logp, d_entropy, ctx.chunk, bias, ctx.softcap, frozen)
        return *known, None, None, None, None


def _chunks(n_rows: int, row: Tensor, chunk: int) -> list[tuple[int, int, Tensor]]:
    """(first row, last row + 1, indices of the pairs whose row lies between) for each chunk."""
    order = torch.argsort(row, stable=True)
    starts = range(0, n_rows, chunk)
    bounds = torch.searchsorted(row[order], torch.tensor([*starts, n_rows], device=row.device)).tolist()
    return [(start, min(start + chunk, n_rows), order[bounds[i] : bounds[i + 1]]) for i, start in enumerate(starts)]
