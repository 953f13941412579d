"""Pictures in observations, and messages of chat servers that hold them."""

from __future__ import annotations

import base64
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation
from treewright.search.types import Message

__all__ = ["message_json", "observation_images", "picture_type"]

_PICTURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


def picture_type(raw: bytes) -> str | None:
    """image/png or image/jpeg, by the first bytes."""
    return next((kind for magic, kind in _PICTURES.items() if raw.startswith(magic)), None)


def observation_images(observation: Observation) -> tuple[bytes, ...]:
    """The pictures of an observation as files. Raises TreewrightError for parts that are no PNG or JPEG pictures."""
    found = []
    for part in observation.shown:
        kind = part.get("type")
        raw = next((value for value in part.values() if isinstance(value, bytes)), b"")
        if not raw and isinstance(part.get("base64"), str):
            raw = base64.b64decode(part["base64"])
        if kind != "image" or picture_type(raw) is None:
            raise TreewrightError(f"the observation has a part of type {kind} that is no PNG or JPEG picture")
        found.append(raw)
    return tuple(found)


def message_json(message: Message) -> dict[str, Any]:
    """A message as chat servers take it; with pictures, its content is a list of parts."""
    if not message.images:
        return {"role": message.role, "content": message.content}
    parts: list[dict[str, Any]] = [{"type": "text", "text": message.content}]
    for raw in message.images:
        url = f"data:{picture_type(raw)};base64,{base64.b64encode(raw).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return {"role": message.role, "content": parts}
