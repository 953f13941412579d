"""An MCP tool's answer as a policy reads it: text for every block, images as parts."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

__all__ = ["answer_parts", "answer_text"]

SHOWN_BLOB = 2_000
"""Characters of base64 that are shown; of longer contents size and hash are told."""


def answer_text(result: CallToolResult) -> str:
    """The blocks, one per line, and the structured content as JSON where no block says it already."""
    lines = [line for block in result.content if (line := _line(block)) is not None]
    structured = result.structured_content
    if structured is not None and not _said_already(structured, result.content):
        lines.append(json.dumps(structured, sort_keys=True, ensure_ascii=False))
    return "\n".join(lines)


def answer_parts(result: CallToolResult) -> list[Mapping[str, Any]]:
    """The images."""
    return [
        {"type": "image", "mime_type": block.mime_type, "base64": block.data}
        for block in result.content
        if isinstance(block, ImageContent)
    ]


def _line(block: Any) -> str | None:
    """The block as text; None for an image, which is a part."""
    if isinstance(block, TextContent):
        return block.text
    if isinstance(block, ResourceLink):
        about = [block.name, f"<{block.uri}>", block.mime_type, f"{block.size} bytes" if block.size else None]
        told = f": {block.description}" if block.description else ""
        return f"[resource {' '.join(word for word in about if word)}{told}]"
    if isinstance(block, EmbeddedResource):
        inside = block.resource
        if isinstance(inside, TextResourceContents):
            return inside.text
        if isinstance(inside, BlobResourceContents):
            return f"[resource <{inside.uri}> {_bytes(inside.mime_type, inside.blob)}]"
    if isinstance(block, AudioContent):
        return f"[audio {_bytes(block.mime_type, block.data)}]"
    return None if isinstance(block, ImageContent) else f"[{getattr(block, 'type', 'unknown')}]"


def _bytes(kind: str | None, data: str) -> str:
    """Kind, size and content of bytes; of long ones a hash, by which two of them can be told apart."""
    try:
        size = len(base64.b64decode(data))
    except (binascii.Error, ValueError):
        size = len(data)
    content = f"base64 {data}"
    if len(data) > SHOWN_BLOB:
        content = f"sha256 {hashlib.sha256(data.encode()).hexdigest()[:16]} of the base64"
    return f"{kind or 'application/octet-stream'} {size} bytes {content}"


def _said_already(structured: Any, content: Sequence[Any]) -> bool:
    """Does the text say what the structured content says? Servers write it as JSON, whole or one block an entry."""
    texts = [block.text for block in content if isinstance(block, TextContent)]
    if not texts:
        return False
    inner = structured
    if isinstance(structured, Mapping) and len(structured) == 1:  # libraries wrap a plain answer: {"result": …}
        (inner,) = structured.values()
    read = [_json(text) for text in texts]
    wanted = (structured, inner, str(inner))
    return any(value in wanted for value in [*read, *texts, read, texts, "\n".join(texts)])


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
