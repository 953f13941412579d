"""One copy of the weights for acting and training."""

from __future__ import annotations

from typing import Any

from treewright.agent.config import Config

__all__ = ["shared_model"]


def shared_model(config: Config, trainer: Any) -> Any:
    """The trainer's model, where a loop of this configuration can draw from it: it acts and trains in turn, in this
    process, nothing says that the two should differ, and the sampler reads plain weights. Else None: a second copy."""
    from treewright.agent.policies.slim import is_slim

    here = config.policy.spec.partition(":")[0] in ("seedling", "hf")
    free = not config.loop.steps_behind and not {"device", "dtype", "model"} & set(config.policy.options)
    train = trainer.settings
    whole = getattr(trainer, "ranks", None) is None and not train.lora.rank
    return trainer.model if here and free and whole and is_slim(trainer.model) else None
