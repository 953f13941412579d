"""How a pack's plan reaches the layers of a model that knows nothing of trees, also when a layer is run again.

While a forward pass runs, the plan is a context variable. Gradient checkpointing calls layers again later, perhaps from
another thread; the function that transformers checkpoints with is therefore wrapped for the time of the pass, so that
what it calls sees the plan it saw first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

from treewright.kernels import BranchCache, PromptCache, TreeChunk, TreePlan

__all__ = ["Plan", "decoder_of", "plan_in", "running_plan"]

Plan = TreePlan | TreeChunk | PromptCache | BranchCache

_PLAN: ContextVar[Plan | None] = ContextVar("treewright_plan", default=None)


def running_plan() -> Plan | None:
    """What the forward pass that runs now was given, None outside of one."""
    return _PLAN.get()


@contextmanager
def plan_in(model: nn.Module, plan: Plan) -> Iterator[None]:
    """Runs `model` with `plan` in a `with` block, and what gradient checkpointing repeats of it later."""
    layers = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)
              and "_gradient_checkpointing_func" in vars(m)]  # fmt: skip
    own = [vars(m)["_gradient_checkpointing_func"] for m in layers]
    token = _PLAN.set(plan)
    try:
        for layer, checkpoint in zip(layers, own, strict=True):
            layer._gradient_checkpointing_func = functools.partial(_checkpoint, checkpoint, plan)  # type: ignore[assignment]
        yield
    finally:
        for layer, checkpoint in zip(layers, own, strict=True):
            layer._gradient_checkpointing_func = checkpoint
        _PLAN.reset(token)


def _checkpoint(checkpoint: Callable[..., Any], plan: Plan, function: Callable[..., Any], *args: Any, **more: Any) -> Any:
    return checkpoint(functools.partial(_with, plan, function), *args, **more)


def _with(plan: Plan, function: Callable[..., Any], *args: Any, **more: Any) -> Any:
    token = _PLAN.set(plan)
    try:
        return function(*args, **more)
    finally:
        _PLAN.reset(token)


def decoder_of(model: nn.Module) -> tuple[Any, Any]:
    """The transformers causal language model inside `model` (an adapter's, say), and its part without output layer."""
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return inner, inner.base_model
