"""How a pack's plan reaches the layers of a model that knows nothing of trees, also when a layer is run again.

While a forward pass runs, the plan is a context variable. Gradient checkpointing calls layers again later, perhaps from
another thread; the function that transformers checkpoints with is therefore wrapped for the time of the pass, so that
what it calls sees the plan it saw first.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from treewright.kernels import BranchCache, PromptCache, TreeChunk, TreePlan

__all__ = [
    "Plan",
    "counts_positions",
    "inner_model",
    "plan_in",
    "replay_in",
    "running_plan",
    "running_replay",
    "states_on",
    "turn",
]

Plan = TreePlan | TreeChunk | PromptCache | BranchCache

_PLAN: ContextVar[Plan | None] = ContextVar("treewright_plan", default=None)
_REPLAY: ContextVar[Any] = ContextVar("treewright_replay", default=None)
_TURNS: ContextVar[dict[Hashable, int]] = ContextVar("treewright_turns")


def running_plan() -> Plan | None:
    """What the forward pass that runs now was given, None outside of one."""
    return _PLAN.get()


def running_replay() -> Any:
    """What `replay_in` was given around the forward pass that runs now, None outside of one."""
    return _REPLAY.get()


@contextmanager
def replay_in(replay: Any) -> Iterator[None]:
    """Layers that run in a `with` block find `replay`, and so do those that gradient checkpointing runs again later."""
    token = _REPLAY.set(replay)
    try:
        yield
    finally:
        _REPLAY.reset(token)


def turn(layer: Hashable) -> tuple[Hashable, int]:
    """A name for what `layer` does now in this pass: first (layer, 0), then (layer, 1), and on.

    A layer that attends twice, or runs several times, keeps the parts of a chunk apart by it; a part that gradient
    checkpointing runs again has its name again.
    """
    turns = _TURNS.get({})
    count = turns.get(layer, 0)
    turns[layer] = count + 1
    return layer, count


@contextmanager
def plan_in(model: nn.Module, plan: Plan) -> Iterator[None]:
    """Runs `model` with `plan` in a `with` block, and what gradient checkpointing repeats of it later."""
    layers = [
        module for module in model.modules()
        if getattr(module, "gradient_checkpointing", False) and "_gradient_checkpointing_func" in vars(module)
    ]  # fmt: skip
    own = [vars(m)["_gradient_checkpointing_func"] for m in layers]
    tokens = _PLAN.set(plan), _TURNS.set({})
    try:
        for layer, checkpoint in zip(layers, own, strict=True):
            layer._gradient_checkpointing_func = functools.partial(_checkpoint, checkpoint)  # type: ignore[assignment]
        yield
    finally:
        for layer, checkpoint in zip(layers, own, strict=True):
            layer._gradient_checkpointing_func = checkpoint
        _PLAN.reset(tokens[0])
        _TURNS.reset(tokens[1])


def _checkpoint(checkpoint: Callable[..., Any], function: Callable[..., Any], *args: Any, **more: Any) -> Any:
    plan, turns, replay = _PLAN.get(), _TURNS.get(), _REPLAY.get()
    before = dict(turns)

    def repeatable(*given: Any, **named: Any) -> Any:
        own = dict(before)
        tokens = _PLAN.set(plan), _TURNS.set(own)
        try:
            with replay_in(replay):
                return function(*given, **named)
        finally:
            _PLAN.reset(tokens[0])
            _TURNS.reset(tokens[1])
            turns.update(own)

    return checkpoint(repeatable, *args, **more)


def inner_model(model: nn.Module) -> Any:
    """The transformers causal language model inside `model`, which may be an adapter's."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def counts_positions(model: Any) -> bool:
    """Whether the model can be told at which depth a token stands."""
    return "position_ids" in inspect.signature(model.forward).parameters


def states_on(model: Any, plan: Plan, ids: Tensor) -> Tensor:
    """What the output layer would read, [B, T, H], for ids int64 [B, T] of `plan`; no logits are computed.

    Raises ValueError where the model does not run its output layer once on the states of all tokens.
    """
    kept: list[Tensor] = []

    def take(module: nn.Module, args: Any) -> Any:
        kept.append(args[0])
        return (args[0][:, :0],)

    depth = plan.positions if isinstance(plan, PromptCache | BranchCache) else _depth(plan)[None]
    inputs: dict[str, Any] = {"position_ids": depth.to(ids.device)} if counts_positions(model) else {}
    # No padding; without this mask transformers would look for several rows in one.
    inputs["attention_mask"] = torch.ones_like(ids)
    hook = model.get_output_embeddings().register_forward_pre_hook(take)
    try:
        with plan_in(model, plan):
            model(input_ids=ids, use_cache=False, **inputs)
    finally:
        hook.remove()
    if len(kept) != 1 or kept[0].dim() != 3 or kept[0].shape[:2] != ids.shape:
        raise ValueError("its output layer does not run once on the states of all tokens")
    return kept[0]


def _depth(plan: TreePlan | TreeChunk) -> Tensor:
    return plan.plan.depth if isinstance(plan, TreeChunk) else plan.depth
