"""A bound on how far one optimizer step moves the policy, whatever the model's size and the learning rate.

Adam's first steps move every weight by the full rate, whether its gradient is signal or noise. What that does to a
policy grows with the number of weights, so that a rate which is good for a small model can carry a large one out of the
region in which its trees say anything about it. Here a step is measured after it was made, on the tokens that it was
made of, and shortened along its own direction until the mean divergence is within bounds (the idea of a trust region,
Schulman et al., arXiv 1502.05477, without its natural gradient). The divergence is quadratic in a short step, so the
share of the step that fits is the root of the ratio.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Before", "divergence", "frozen", "held_back", "stepped"]

TRIES = 4  # measurements of all tokens after the first
ROOM, MORE_ROOM = 0.95, 0.9  # what these leave


Before = Sequence[tuple[nn.Parameter, Tensor]]
"""Weights, each with what it was before a step."""


@torch.no_grad()
def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, apart: bool) -> Before:
    """Takes the optimizer's step; returns the weights that have a gradient with what they were. Gradients are gone.

    apart  no weight's step depends on another's: they are taken one by one, and what a weight was is written where its
           gradient stood, so that nothing is held beside weights, gradients and moments. Else whole copies are.
    """
    trained = [p for p in model.parameters() if p.grad is not None]
    if not apart:
        copies = [(p, p.detach().clone()) for p in trained]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return copies
    gradients = [p.grad for p in trained]
    optimizer.zero_grad(set_to_none=True)
    before = []
    for weight, gradient in zip(trained, gradients, strict=True):
        assert gradient is not None
        old = weight.detach().clone()
        weight.grad = gradient
        optimizer.step()
        weight.grad = None
        before.append((weight, gradient.detach().copy_(old) if gradient.dtype == old.dtype else old))
    return before


def divergence(before: Tensor, after: Tensor) -> float:
    """Mean KL(before ‖ after) in nats of tokens drawn from `before`, by their log-probs [M] under both: the estimate
    exp(d) − 1 − d with d = after − before is unbiased and never negative. 0.0 for no tokens."""
    d = (after - before).double()
    return float((d.exp() - 1 - d).mean()) if len(d) else 0.0


@torch.no_grad()
def held_back(
    before: Before,
    most: float,
    measure: Callable[[], float],
    rough: Callable[[], float] | None = None,
    guesses: int = 2,
) -> tuple[float, float]:
    """Shortens the step from what weights were `before` to what they are until `measure` gives at most `most`.

    measure  the divergence of the model as it is from what it was, in nats
    rough    the same on a sample: guesses of how much too long the step is, which cost less
    guesses  how many of them: the first is made where the step is long, and the divergence no longer quadratic

    Returns (divergence of what was taken, share of the step that was taken), as `measure` has it. After four attempts,
    or where the divergence is not a number, the step is not taken at all: (0, 0).
    """
    share = 1.0
    for found, decides in _measurements(measure, rough, guesses):
        if found <= most and decides:
            return found, share
        if not math.isfinite(found):
            break
        if found > (most if decides else MORE_ROOM * most):
            shorter = (ROOM if decides else MORE_ROOM) * math.sqrt(most / found)
            for weight, old in before:
                weight.lerp_(old, 1 - shorter)
            share *= shorter
    for weight, old in before:
        weight.copy_(old)
    return 0.0, 0.0


def _measurements(
    measure: Callable[[], float], rough: Callable[[], float] | None, guesses: int
) -> Iterator[tuple[float, bool]]:
    """What is measured in turn, and whether the step may be taken by it."""
    if rough is not None:
        for _ in range(guesses):
            yield rough(), False
    for _ in range(TRIES + 1):
        yield measure(), True


def frozen(model: Any) -> Any:
    """A copy of the model that no training changes."""
    twin = copy.deepcopy(model).eval()
    for weight in twin.parameters():
        weight.requires_grad_(False)
    return twin
