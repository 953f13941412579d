"""OpenAI Chat Completions: the request read, the answer and its stream written.

Written from the public API reference (platform.openai.com/docs/api-reference/chat).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from treewright.agent.gateway.asked import Answer, Answered, Asked, Spoken, Use
from treewright.agent.gateway.errors import ApiError
from treewright.agent.gateway.fields import (
    MOST_ANSWERS,
    entries,
    flag,
    number,
    stops,
    text_of,
    tool,
    whole_number,
    word,
    wrong,
)

__all__ = ["json_of", "parse", "pieces", "stream_of"]

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
BENDING = {"top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "logit_bias": {}, "top_k": None}
PIECE = 12  # characters of one chunk of a stream


def parse(body: Mapping[str, Any]) -> Asked:
    """Raises ApiError with the field to blame."""
    said = tuple(_message(one, f"messages[{i}]") for i, one in enumerate(entries(body, "messages", needed=True)))
    limit = whole_number(body, "max_completion_tokens", 1)
    if limit is None:
        limit = whole_number(body, "max_tokens", 1)
    must, none = choice_of(body.get("tool_choice"), "function")
    options = body.get("stream_options")
    return Asked(
        api="chat",
        model=word(body, "model"),
        said=said,
        tools=tuple(_tool(one, f"tools[{i}]") for i, one in enumerate(entries(body, "tools"))),
        n=whole_number(body, "n", 1, MOST_ANSWERS) or 1,
        max_tokens=limit,
        stop=stops(body, "stop"),
        stream=flag(body, "stream"),
        usage_in_stream=isinstance(options, dict) and options.get("include_usage") is True,
        logprobs=flag(body, "logprobs"),
        token_ids=flag(body, "return_token_ids"),
        form=_form(body.get("response_format")),
        must_call=must,
        no_calls=none,
        seed=whole_number(body, "seed", -(1 << 63)),
        ignored=ignored(body),
    )


def ignored(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields that would bend the distribution: policies sample as they were opened, so these are told, not obeyed."""
    number(body, "temperature", 0.0, 2.0)
    number(body, "top_p", 0.0, 1.0)
    bent = [name for name, plain in BENDING.items() if body.get(name) not in (None, plain)]
    return (*(["temperature"] if body.get("temperature") is not None else []), *bent)


def choice_of(value: object, inner: str) -> tuple[str, bool]:
    """(the tool that must be called: "", "*" or its name; whether none may be)."""
    if value in (None, "auto"):
        return "", False
    if value == "none":
        return "", True
    if value in ("required", "any"):
        return "*", False
    if isinstance(value, dict):
        named = value.get(inner) if isinstance(value.get(inner), dict) else value
        if isinstance(named, dict) and isinstance(named.get("name"), str):
            return str(named["name"]), False
    raise ApiError(400, "tool_choice must be none, auto, required, or name a function", "tool_choice")


def _form(value: object) -> Mapping[str, Any] | None:
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if isinstance(value, dict) and kind == "json_schema":
        inner = value.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else None
        if isinstance(schema, dict):
            return schema
    raise ApiError(
        400, "response_format must be text, json_object, or a json_schema with its schema", "response_format"
    )


def _message(one: Mapping[str, Any], where: str) -> Spoken:
    role = ROLES.get(str(one.get("role")))
    if role is None:
        raise ApiError(400, f"{where}.role must be one of {', '.join(ROLES)}", f"{where}.role")
    content = one.get("content")
    if role in ("system", "user", "tool") and content is None:
        raise wrong(f"{where}.content", "a string or an array of parts", None)
    uses = tuple(_use(use, f"{where}.tool_calls") for use in entries(one, "tool_calls", within=f"{where}."))
    answers = str(one.get("tool_call_id") or "")
    if role == "tool" and not answers:
        raise wrong(f"{where}.tool_call_id", "a string", one.get("tool_call_id"))
    kinds = ("text", "refusal") if role == "assistant" else ("text",)
    return Spoken(role, text_of(content, f"{where}.content", kinds), uses, answers)


def _use(use: Mapping[str, Any], where: str) -> Use:
    function = use.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise wrong(f"{where}.function", "an object with a name", function)
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        raise wrong(f"{where}.function.arguments", "a string", arguments)
    return Use(function["name"], arguments, str(use.get("id") or ""))


def _tool(one: Mapping[str, Any], where: str) -> Any:
    function = one.get("function")
    if one.get("type") != "function" or not isinstance(function, dict):
        raise ApiError(400, f"{where} must be of type function", where)
    return tool(function.get("name"), function.get("description"), function.get("parameters"), f"{where}.function")


# -- answers --------------------------------------------------------------------------------------------------------


def usage(answered: Answered) -> dict[str, int]:
    """Tokens of prompt and answers."""
    asked, sampled = len(answered.prompt), answered.sampled
    return {"prompt_tokens": asked, "completion_tokens": sampled, "total_tokens": asked + sampled}


def json_of(asked: Asked, answered: Answered) -> dict[str, Any]:
    """The whole response."""
    out = {
        **_head(answered, "chat.completion"),
        "choices": [_choice(asked, i, one) for i, one in enumerate(answered.answers)],
        "usage": usage(answered),
    }
    if asked.token_ids:
        out["prompt_token_ids"] = list(answered.prompt)
    return out


def _head(answered: Answered, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{answered.label}", "object": kind, "created": answered.created, "model": answered.model,
        "system_fingerprint": None, "service_tier": None,
    }  # fmt: skip


def _choice(asked: Asked, i: int, one: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": one.text or (None if one.uses else ""), "refusal": None}
    if one.uses:
        message["tool_calls"] = [_call(use) for use in one.uses]
    out = {"index": i, "message": message, "finish_reason": one.finish, "logprobs": _logprobs(asked, one)}
    if asked.token_ids:
        out["token_ids"] = list(one.completion.token_ids)
    return out


def _call(use: Use) -> dict[str, Any]:
    return {"id": use.id, "type": "function", "function": {"name": use.name, "arguments": use.arguments}}


def _logprobs(asked: Asked, one: Answer) -> dict[str, Any] | None:
    if not asked.logprobs or not one.completion.logprobs:
        return None
    return {"content": rows_of(one), "refusal": None}


def rows_of(one: Answer) -> list[dict[str, Any]]:
    """One entry for each sampled token; its text is empty where the policy does not say what it decodes to."""
    texts = one.pieces or ("",) * len(one.completion.token_ids)
    return [
        {"token": text, "logprob": value, "bytes": list(text.encode("utf-8", "replace")), "top_logprobs": []}
        for text, value in zip(texts, one.completion.logprobs, strict=True)
    ]


def pieces(text: str) -> Iterator[str]:
    """A text in the pieces in which a stream sends it."""
    for at in range(0, len(text), PIECE):
        yield text[at : at + PIECE]


def stream_of(asked: Asked, answered: Answered) -> Iterator[str]:
    """The response as server-sent events. Draws are whole before the first is sent: a tree keeps no half answer."""
    for i, one in enumerate(answered.answers):
        yield _chunk(answered, i, {"role": "assistant", "content": None if one.uses else "", "refusal": None})
        for piece in pieces(one.text):
            yield _chunk(answered, i, {"content": piece})
        for at, use in enumerate(one.uses):
            start = {"index": at, "id": use.id, "type": "function", "function": {"name": use.name, "arguments": ""}}
            yield _chunk(answered, i, {"tool_calls": [start]})
            for piece in pieces(use.arguments):
                yield _chunk(answered, i, {"tool_calls": [{"index": at, "function": {"arguments": piece}}]})
        yield _chunk(answered, i, {}, one.finish, _logprobs(asked, one))
    if asked.usage_in_stream:
        yield event({**_head(answered, "chat.completion.chunk"), "choices": [], "usage": usage(answered)})
    yield "data: [DONE]\n\n"


def _chunk(
    answered: Answered, i: int, delta: Mapping[str, Any], finish: str | None = None, logprobs: Any = None
) -> str:
    choice = {"index": i, "delta": dict(delta), "finish_reason": finish, "logprobs": logprobs}
    return event({**_head(answered, "chat.completion.chunk"), "choices": [choice]})


def event(data: Mapping[str, Any] | Sequence[Any], name: str | None = None) -> str:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n"
