"""What a step takes in precision and memory: half precision, gradient checkpointing, logits a few rows at a time.

Half precision means: weights, their gradients' sums and the optimizer stay in float32.

Within `computing` the model's weights are bfloat16 copies, made once, through which gradients flow back to the float32
weights; sums over packs and chunks are float32. It is what FSDP2's mixed precision does, without its collectives, so a
model gives the same numbers on one process and on many. Buffers (rotary frequencies) keep their type.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from treewright.envs.errors import TreewrightError
from treewright.training.decoders.plans import inner_model
from treewright.training.decoders.structure import text_config

__all__ = ["checkpoint_layers", "compute_dtype", "computing", "logit_rows", "rounded"]

MOST_LOGITS = {"cpu": 1 << 24}
"""Logits that exist at once, by the kind of device, two or three times over: 64 MiB of float32, elsewhere 256 MiB."""


def compute_dtype(precision: str) -> torch.dtype | None:
    """What weights are cast to: None where they are used as they are."""
    return torch.bfloat16 if precision == "bfloat16" else None


@contextmanager
def computing(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """The model computes in `dtype` inside a `with` block; forward and backward passes must both lie in it.

    dtype  None: as the weights are. Weights that a model's class must keep in float32 are left alone, and so is a model
           that FSDP2 has sharded: its own policy casts what it gathers
    """
    if dtype is None or hasattr(inner_model(model), "reshard"):
        yield
        return
    casts: dict[int, Tensor] = {}
    changed: list[tuple[dict[str, Any], str, nn.Parameter]] = []
    strict = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    try:
        for place, module in model.named_modules():
            if any(part in strict for part in place.split(".")):
                continue
            for name, weight in module._parameters.items():
                if weight is None or not weight.is_floating_point() or weight.dtype == dtype:
                    continue
                if id(weight) not in casts:  # a tied weight is cast once
                    with torch.enable_grad():
                        casts[id(weight)] = weight.to(dtype)
                changed.append((module._parameters, name, weight))
        for weights, name, weight in changed:
            weights[name] = casts[id(weight)]
        yield
    finally:
        for weights, name, weight in changed:
            weights[name] = weight


def rounded(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Keeps the weights of a model that is not trained in `dtype`: what `computing` would cast them to."""
    strict = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    for name, weight in model.named_parameters() if dtype is not None else ():
        if weight.is_floating_point() and not any(part in strict for part in name.split(".")):
            weight.data = weight.data.to(dtype)


def checkpoint_layers(model: nn.Module, on: bool) -> None:
    """Makes transformers run the layers again in the backward pass instead of keeping their activations.

    transformers does so for layers in training mode alone; only they get there, nothing that drops out. Raises
    TreewrightError for a model that cannot, or whose layers themselves drop out.
    """
    if not on:
        return
    inner = inner_model(model)
    if not getattr(inner, "supports_gradient_checkpointing", False):
        raise TreewrightError(
            f"train.checkpointing: {type(inner).__name__} knows no gradient checkpointing; set train.chunk_tokens"
        )
    config = text_config(model)
    drops = [n for n, v in vars(config).items() if ("dropout" in n or "pdrop" in n) and isinstance(v, float) and v > 0]
    if drops:
        raise TreewrightError(
            f"train.checkpointing: {drops[0]} = {getattr(config, drops[0])} would drop other activations when a layer "
            "runs again; set it to 0 in the model's config.json"
        )
    inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in inner.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True


def logit_rows(model: nn.Module, device: str | None = None) -> int:
    """Rows whose logits exist at once: fewer where the vocabulary is large, and on a CPU.

    device  the kind that the model will be on, else the one where it is
    """
    weight = inner_model(model).get_output_embeddings().weight
    return max(64, min(4096, MOST_LOGITS.get(device or weight.device.type, 1 << 26) // int(weight.shape[0])))
