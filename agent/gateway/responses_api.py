"""OpenAI Responses: the request read, the answer and its stream written.

Written from the public API reference (platform.openai.com/docs/api-reference/responses). A response is one draw, so
`n` is always 1; what was said before comes as items, or by the id of an earlier response of the same session.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from treewright.agent.gateway.asked import Answer, Answered, Asked, Spoken, Use
from treewright.agent.gateway.chat_api import choice_of, event, ignored, pieces, rows_of
from treewright.agent.gateway.errors import ApiError
from treewright.agent.gateway.fields import entries, flag, text_of, tool, whole_number, word, wrong

__all__ = ["json_of", "parse", "stream_of"]

TEXTS = ("input_text", "output_text", "text", "refusal")
SILENT = ("reasoning", "item_reference")
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def parse(body: Mapping[str, Any]) -> Asked:
    """Raises ApiError with the field to blame."""
    given = body.get("input")
    said: list[Spoken] = []
    if instructions := word(body, "instructions", needed=False):
        said.append(Spoken("system", instructions))
    if isinstance(given, str):
        said.append(Spoken("user", given))
    else:
        for i, item in enumerate(entries(body, "input", needed=True)):
            _take(said, item, f"input[{i}]")
    must, none = choice_of(body.get("tool_choice"), "function")
    include = body.get("include")
    return Asked(
        api="responses",
        model=word(body, "model"),
        said=tuple(said),
        tools=tuple(_tool(one, f"tools[{i}]") for i, one in enumerate(entries(body, "tools"))),
        max_tokens=whole_number(body, "max_output_tokens", 1),
        stream=flag(body, "stream"),
        logprobs=isinstance(include, list) and "message.output_text.logprobs" in include,
        form=_form(body.get("text")),
        must_call=must,
        no_calls=none,
        previous=word(body, "previous_response_id", needed=False),
        ignored=ignored(body),
    )


def _take(said: list[Spoken], item: Mapping[str, Any], where: str) -> None:
    """Adds an item; calls that follow one another are one message, as they were drawn."""
    kind = item.get("type", "message")
    if kind in SILENT:
        return
    if kind == "function_call":
        use = Use(word(item, "name"), word(item, "arguments", needed=False), word(item, "call_id"))
        if said and said[-1].role == "assistant":
            last = said.pop()
            said.append(Spoken("assistant", last.text, (*last.uses, use)))
        else:
            said.append(Spoken("assistant", "", (use,)))
    elif kind == "function_call_output":
        output = item.get("output")
        said.append(Spoken("tool", text_of(output, f"{where}.output", TEXTS), (), word(item, "call_id")))
    elif kind == "message":
        role = ROLES.get(str(item.get("role")))
        if role is None:
            raise ApiError(400, f"{where}.role must be one of {', '.join(ROLES)}", f"{where}.role")
        if item.get("content") is None:
            raise wrong(f"{where}.content", "a string or an array of parts", None)
        said.append(Spoken(role, text_of(item["content"], f"{where}.content", TEXTS)))
    else:
        raise ApiError(400, f"{where}: items of type {kind!r} are not taken here", where)


def _tool(one: Mapping[str, Any], where: str) -> Any:
    if one.get("type") != "function":
        raise ApiError(400, f"{where} must be of type function; hosted tools are not served here", where)
    return tool(one.get("name"), one.get("description"), one.get("parameters"), where)


def _form(text: object) -> Mapping[str, Any] | None:
    form = text.get("format") if isinstance(text, dict) else None
    kind = form.get("type") if isinstance(form, dict) else None
    if kind in (None, "text"):
        return None
    if kind == "json_object":
        return {"type": "object"}
    if isinstance(form, dict) and kind == "json_schema" and isinstance(form.get("schema"), dict):
        return dict(form["schema"])
    raise ApiError(400, "text.format must be text, json_object, or a json_schema with its schema", "text.format")


# -- answers --------------------------------------------------------------------------------------------------------


def json_of(asked: Asked, answered: Answered) -> dict[str, Any]:
    """The whole response."""
    (one,) = answered.answers
    return _response(asked, answered, _items(asked, answered, one), one)


def _response(asked: Asked, answered: Answered, output: list[dict[str, Any]], one: Answer | None) -> dict[str, Any]:
    cut = one is not None and one.finish == "length"
    tokens, sampled = len(answered.prompt), answered.sampled
    usage = {
        "input_tokens": tokens, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": sampled, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": tokens + sampled,
    }  # fmt: skip
    return {
        "id": f"resp_{answered.label}", "object": "response", "created_at": answered.created, "model": answered.model,
        "status": "in_progress" if one is None else "incomplete" if cut else "completed", "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None, "output": output,
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [_declared(t) for t in asked.tools],
        "previous_response_id": asked.previous or None, "instructions": None, "metadata": {}, "temperature": None,
        "top_p": None, "max_output_tokens": asked.max_tokens, "usage": None if one is None else usage,
    }  # fmt: skip


def _declared(spec: Any) -> dict[str, Any]:
    return {
        "type": "function", "name": spec.name, "description": spec.description, "parameters": dict(spec.parameters),
        "strict": False,
    }  # fmt: skip


def _items(asked: Asked, answered: Answered, one: Answer) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if one.text or not one.uses:
        part: dict[str, Any] = {"type": "output_text", "text": one.text, "annotations": []}
        part["logprobs"] = rows_of(one) if asked.logprobs and one.completion.logprobs else []
        items.append({**_message(answered), "status": "completed", "content": [part]})
    for i, use in enumerate(one.uses):
        items.append({**_call(answered, i, use), "status": "completed", "arguments": use.arguments})
    return items


def _message(answered: Answered) -> dict[str, Any]:
    return {"type": "message", "id": f"msg_{answered.label}", "role": "assistant"}


def _call(answered: Answered, i: int, use: Use) -> dict[str, Any]:
    return {"type": "function_call", "id": f"fc_{answered.label}_{i}", "call_id": use.id, "name": use.name}


def stream_of(asked: Asked, answered: Answered) -> Iterator[str]:
    """The response as server-sent events."""
    (one,) = answered.answers
    items, count = _items(asked, answered, one), 0

    def sent(kind: str, **more: Any) -> str:
        nonlocal count
        count += 1
        return event({"type": kind, "sequence_number": count - 1, **more}, kind)

    begun = _response(asked, answered, [], None)
    yield sent("response.created", response=begun)
    yield sent("response.in_progress", response=begun)
    for at, item in enumerate(items):
        where = {"output_index": at, "item_id": item["id"]}
        if item["type"] == "message":
            part = item["content"][0]
            bare = {**item, "status": "in_progress", "content": []}
            empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            inside = {**where, "content_index": 0}
            yield sent("response.output_item.added", output_index=at, item=bare)
            yield sent("response.content_part.added", **inside, part=empty)
            for piece in pieces(part["text"]):
                yield sent("response.output_text.delta", **inside, delta=piece, logprobs=[])
            yield sent("response.output_text.done", **inside, text=part["text"], logprobs=[])
            yield sent("response.content_part.done", **inside, part=part)
        else:
            bare = {**item, "status": "in_progress", "arguments": ""}
            yield sent("response.output_item.added", output_index=at, item=bare)
            for piece in pieces(item["arguments"]):
                yield sent("response.function_call_arguments.delta", **where, delta=piece)
            yield sent("response.function_call_arguments.done", **where, arguments=item["arguments"], name=item["name"])
        yield sent("response.output_item.done", output_index=at, item=item)
    kind = "response.incomplete" if one.finish == "length" else "response.completed"
    yield sent(kind, response=_response(asked, answered, items, one))
