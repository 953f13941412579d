"""Anthropic Messages: the request read, the answer and its stream written.

Written from the public API reference (docs.anthropic.com/en/api/messages).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from treewright.agent.gateway.asked import Answer, Answered, Asked, Spoken, Use
from treewright.agent.gateway.chat_api import event, pieces
from treewright.agent.gateway.errors import ApiError
from treewright.agent.gateway.fields import entries, flag, number, stops, text_of, tool, whole_number, word, wrong
from treewright.envs.lines import json_value

__all__ = ["json_of", "parse", "stream_of"]

SILENT = ("thinking", "redacted_thinking")


def parse(body: Mapping[str, Any], counting: bool = False) -> Asked:
    """counting: only the prompt matters, so max_tokens may be left out. Raises ApiError with the field to blame."""
    said: list[Spoken] = []
    if system := text_of(body.get("system"), "system"):
        said.append(Spoken("system", system))
    for i, one in enumerate(entries(body, "messages", needed=True)):
        said += _message(one, f"messages.{i}")
    limit = whole_number(body, "max_tokens", 1)
    if limit is None and not counting:
        raise ApiError(400, "Field required", "max_tokens")
    must, none = _choice(body.get("tool_choice"))
    number(body, "temperature", 0.0, 1.0)
    bent = [name for name in ("temperature", "top_p", "top_k") if body.get(name) is not None]
    return Asked(
        api="messages",
        model=word(body, "model"),
        said=tuple(said),
        tools=tuple(_tool(one, f"tools.{i}") for i, one in enumerate(entries(body, "tools"))),
        max_tokens=limit,
        stop=stops(body, "stop_sequences"),
        stream=flag(body, "stream"),
        must_call=must,
        no_calls=none,
        ignored=tuple(bent),
    )


def _choice(value: object) -> tuple[str, bool]:
    kind = value.get("type") if isinstance(value, dict) else None
    if value is None or kind == "auto":
        return "", False
    if kind == "none":
        return "", True
    if kind == "any":
        return "*", False
    if isinstance(value, dict) and kind == "tool" and isinstance(value.get("name"), str):
        return str(value["name"]), False
    raise ApiError(400, "tool_choice must be of type auto, any, none, or tool with its name", "tool_choice")


def _message(one: Mapping[str, Any], where: str) -> Iterator[Spoken]:
    """One message; the results of tools in it become messages of their own, in order."""
    role, content = one.get("role"), one.get("content")
    if role not in ("user", "assistant", "system"):
        raise ApiError(400, f"{where}.role must be user or assistant", f"{where}.role")
    if isinstance(content, str):
        yield Spoken(role, text_of(content, f"{where}.content"))
        return
    if not isinstance(content, list):
        raise wrong(f"{where}.content", "a string or an array of blocks", content)
    text: list[str] = []
    uses: list[Use] = []
    for i, block in enumerate(content):
        path = f"{where}.content.{i}"
        if not isinstance(block, dict):
            raise wrong(path, "an object", block)
        kind = block.get("type")
        if kind == "text":
            text.append(text_of([block], path))
        elif kind == "tool_use" and role == "assistant":
            given = block.get("input")
            if not isinstance(given, dict):
                raise wrong(f"{path}.input", "an object", given)
            uses.append(Use(word(block, "name"), json.dumps(given, ensure_ascii=False), word(block, "id")))
        elif kind == "tool_result" and role == "user":
            if text:
                yield Spoken("user", "".join(text))
                text = []
            yield Spoken("tool", text_of(block.get("content"), f"{path}.content"), (), word(block, "tool_use_id"))
        elif kind not in SILENT:
            raise ApiError(400, f"blocks of type {kind!r} are not taken in messages of role {role}", path)
    if text or uses or role == "assistant":
        yield Spoken(role, "".join(text), tuple(uses))


def _tool(one: Mapping[str, Any], where: str) -> Any:
    if one.get("type") not in (None, "custom"):
        raise ApiError(400, f"{where}: tools of type {one.get('type')!r} are not served here", where)
    return tool(one.get("name"), one.get("description"), one.get("input_schema"), where)


# -- answers --------------------------------------------------------------------------------------------------------


def json_of(asked: Asked, answered: Answered) -> dict[str, Any]:
    """The whole response."""
    (one,) = answered.answers
    usage = {"input_tokens": len(answered.prompt), "output_tokens": answered.sampled}
    return {**_head(answered), "content": _blocks(one), **_end(one), "usage": usage}


def _head(answered: Answered) -> dict[str, Any]:
    return {"id": f"msg_{answered.label}", "type": "message", "role": "assistant", "model": answered.model}


def _end(one: Answer) -> dict[str, Any]:
    reasons = {"length": "max_tokens", "tool_calls": "tool_use"}
    reason = "stop_sequence" if one.stopped else reasons.get(one.finish, "end_turn")
    return {"stop_reason": reason, "stop_sequence": one.stopped or None}


def _blocks(one: Answer) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = [{"type": "text", "text": one.text}] if one.text or not one.uses else []
    return [*blocks, *(_use(use, input_of(use)) for use in one.uses)]


def _use(use: Use, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": use.id, "name": use.name, "input": dict(given)}


def input_of(use: Use) -> dict[str, Any]:
    """The arguments of a call as an object; what is none stands under the empty name."""
    try:
        given = json_value(use.arguments or "{}", finite=True)
    except ValueError:
        given = None
    return given if isinstance(given, dict) else {"": use.arguments}


def stream_of(asked: Asked, answered: Answered) -> Iterator[str]:
    """The response as server-sent events."""
    (one,) = answered.answers
    usage = {"input_tokens": len(answered.prompt), "output_tokens": 0}
    begun = {**_head(answered), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    yield _sent("message_start", message=begun)
    at = 0
    if one.text or not one.uses:
        yield _sent("content_block_start", index=0, content_block={"type": "text", "text": ""})
        for piece in pieces(one.text):
            yield _sent("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
        yield _sent("content_block_stop", index=0)
        at = 1
    for i, use in enumerate(one.uses, at):
        yield _sent("content_block_start", index=i, content_block=_use(use, {}))
        for piece in pieces(json.dumps(input_of(use), ensure_ascii=False)):
            yield _sent("content_block_delta", index=i, delta={"type": "input_json_delta", "partial_json": piece})
        yield _sent("content_block_stop", index=i)
    yield _sent("message_delta", delta=_end(one), usage={"output_tokens": answered.sampled})
    yield _sent("message_stop")


def _sent(kind: str, **more: Any) -> str:
    return event({"type": kind, **more}, kind)
