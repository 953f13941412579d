"""How many tokens a policy in this process keeps keys and values of at once."""

from __future__ import annotations

from typing import Any

from treewright.training.heap import give_back

__all__ = ["MANY", "batch_tokens", "tidy", "token_bytes"]

MOST_TOKENS, MOST_BYTES = 65_536, 512 << 20
MANY = 64 << 20
"""Bytes of keys and values from which a batch leaves pages behind that are worth giving back."""


def batch_tokens(model: Any, on_cpu: bool) -> int:
    """Tokens of all rows that run together: 65,536, and on a CPU no more than fit half a gigabyte."""
    each = token_bytes(model)
    return min(MOST_TOKENS, MOST_BYTES // each) if on_cpu and each else MOST_TOKENS


def token_bytes(model: Any) -> int:
    """Bytes of keys and values that a token keeps in all layers; 0 where the model's configuration does not say."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 0
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return 2 * int(getattr(config, "num_hidden_layers", 0)) * int(kv_heads) * int(width) * int(model.dtype.itemsize)


def tidy(model: Any, tokens: int) -> None:
    """Hands the pages that a batch of so many tokens left free back to the system, where they are many."""
    if tokens * token_bytes(model) > MANY:
        give_back()
