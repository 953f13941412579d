"""What can be seen in a model without running it: parts for which a tree cannot give what its rows give."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from treewright.training.decoders.attention import UnsupportedModel
from treewright.training.decoders.plans import inner_model

__all__ = ["length_limit", "refuse_tokens", "seen_wrong", "text_config"]

MEDIA_TOKENS = ("image_token_id", "video_token_id", "audio_token_id", "image_token_index", "video_token_index",
                "audio_token_index", "audio_token")  # fmt: skip
BY_LENGTH = ("dynamic", "longrope")
"""Rotary embeddings whose frequencies change once a sequence is longer than what the model was first trained on."""


def text_config(model: nn.Module) -> Any:
    """The configuration of the language part."""
    config: Any = inner_model(model).config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def seen_wrong(model: nn.Module) -> list[str]:
    """Why the model cannot run on trees, as far as its configuration and signature say so."""
    inner = inner_model(model)
    config, text = inner.config, text_config(model)
    wrong = []
    if getattr(config, "is_encoder_decoder", False) or not getattr(text, "is_causal", True):
        wrong.append("it is not a causal decoder")
    if not callable(getattr(inner, "get_output_embeddings", None)) or inner.get_output_embeddings() is None:
        wrong.append("it has no output layer over a vocabulary")
    if (getattr(text, "attention_dropout", 0.0) or 0.0) > 0:
        wrong.append(f"attention dropout {text.attention_dropout} (set config.attention_dropout = 0)")
    return wrong


def _rope(text: Any) -> list[dict[str, Any]]:
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    return [part for part in (rope, *rope.values()) if isinstance(part, dict)]


def length_limit(model: nn.Module) -> tuple[str, int] | None:
    """The kind of rotary embedding that changes with a row's length, and up to how many tokens it does not; or None."""
    text = text_config(model)
    for part in _rope(text):
        kind = part.get("rope_type")
        known = part.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None)
        limit = known or getattr(text, "max_position_embeddings", None)
        if kind in BY_LENGTH and limit is not None:
            return str(kind), int(limit)
    return None


def refuse_tokens(model: nn.Module, ids: Tensor, longest: int) -> None:
    """Raises UnsupportedModel for what this model cannot have in a tree: images, paths longer than it is exact for."""
    inner = inner_model(model)
    for name in MEDIA_TOKENS:
        token = getattr(inner.config, name, None)
        if isinstance(token, int) and bool((ids == token).any()):
            raise UnsupportedModel(f"token {token} ({name}) stands for an image, video or sound; trees hold text only")
    limited = length_limit(model)
    if limited is not None and longest > limited[1]:
        raise UnsupportedModel(
            f"a path of {longest} tokens: beyond {limited[1]} the {limited[0]} rotary embedding depends on the length "
            "of the whole row, so branches of different lengths differ. Shorten the episodes, or set another rope_type"
        )
