"""Messages in the forms that others write, brought into OpenAI's: parts, items of the Responses API, legacy calls.

What is not known here is refused by its place; nothing that was said or called is left out in silence.

    content parts of an assistant   text, thinking, tool_use (Anthropic), tool_call, function_call, refusal
    content parts of others         text, tool_result, function_call_output, images and other media
    messages without a role         function_call, function_call_output, reasoning, message (OpenAI's Responses API)
    function_call of a message      OpenAI's first form
    tool_calls with name and args   LangChain's form
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.envs.lines import json_value

__all__ = ["Sparse", "given_arguments", "known_tools", "openai_messages"]

TEXTS = ("text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text")
THOUGHTS = ("thinking", "reasoning")
HIDDEN = ("redacted_thinking",)
CALLS = ("tool_use", "tool_call", "function_call")
RESULTS = ("tool_result", "function_call_output")
MEDIA = (
    "image_url", "image", "input_image", "input_audio", "audio", "video", "video_url", "file", "input_file", "document",
)  # fmt: skip

Message = dict[str, Any]


class Sparse(dict[str, Any]):
    """A JSON object out of a table with fixed columns: null where the object had no such key, or null."""


def openai_messages(messages: Sequence[Any]) -> list[Message]:
    """The messages in OpenAI's form, each with `at`, its index among those given.

    Raises TreewrightError naming the place of what has no such form.
    """
    out: list[Message] = []
    for at, message in enumerate(messages):
        place = f"messages[{at}]"
        if not isinstance(message, Mapping):
            raise TreewrightError(f"{place}: expected an object, found {_kind(message)}")
        given = {k: v for k, v in message.items() if v is not None}
        loose = "role" not in given and given.get("type") in (*CALLS, *RESULTS, *THOUGHTS)
        if loose or (given.get("type"), given.get("role")) == ("message", "assistant"):
            _item(given, place, at, out)
        else:
            _message(given, place, at, out)
    return out


def _item(item: Message, place: str, at: int, out: list[Message]) -> None:
    """An item of the Responses API: calls that stand together belong to one message."""
    kind = item["type"]
    if kind in RESULTS:
        out += _results(item, place, at)
        return
    if not out or out[-1].get("role") != "assistant":
        out.append({"role": "assistant", "content": "", "at": at})
    last = out[-1]
    if kind in CALLS:
        last.setdefault("tool_calls", []).append(_call(item, place))
    elif kind in THOUGHTS:
        last["reasoning_content"] = _joined(last.get("reasoning_content"), _thought(item, place))
    else:
        last["content"] = (last.get("content") or "") + _texts(item.get("content"), f"{place}.content")


def _message(message: Message, place: str, at: int, out: list[Message]) -> None:
    done: Message = {**message, "at": at}
    if message.get("role") == "assistant":
        if "tool_calls" in message:
            calls = message["tool_calls"]
            if not isinstance(calls, Sequence) or isinstance(calls, str):
                raise TreewrightError(f"{place}.tool_calls: expected a list, found {_kind(calls)}")
            done["tool_calls"] = [_call(call, f"{place}.tool_calls[{i}]") for i, call in enumerate(calls)]
        if legacy := done.pop("function_call", None):
            done["tool_calls"] = [*done.get("tool_calls", ()), _call(legacy, f"{place}.function_call")]
        if isinstance(message.get("content"), list):
            _spoken(done, message["content"], f"{place}.content")
        elif "content" not in message and "refusal" in message:
            done["content"] = message["refusal"]
        out.append(done)
    elif isinstance(message.get("content"), list):
        out += _shown(done, message["content"], f"{place}.content", at)
    else:
        out.append(done)


def _spoken(message: Message, parts: Sequence[Any], place: str) -> None:
    """An assistant's parts: what it thought, said and called."""
    said: list[str] = []
    for i, part in enumerate(parts):
        here, kind = f"{place}[{i}]", _type(part, f"{place}[{i}]")
        if kind in TEXTS:
            said.append(_text(part, here))
        elif kind in THOUGHTS:
            message["reasoning_content"] = _joined(message.get("reasoning_content"), _thought(part, here))
        elif kind in CALLS:
            message.setdefault("tool_calls", []).append(_call(part, here))
        elif kind not in HIDDEN:
            known = ", ".join((*TEXTS[:1], *THOUGHTS[:1], *CALLS))
            raise TreewrightError(f"{here}.type: {kind!r} of an assistant cannot be taken over; known: {known}")
    message["content"] = "".join(said) or ("" if message.get("tool_calls") or said else None)


def _shown(message: Message, parts: Sequence[Any], place: str, at: int) -> list[Message]:
    """The parts of a user or tool: answers to calls as messages of their own, in order, the rest as one message."""
    out: list[Message] = []
    kept: list[Message] = []
    for i, part in enumerate(parts):
        here, kind = f"{place}[{i}]", _type(part, f"{place}[{i}]")
        if kind in RESULTS:
            out += _results(part, here, at)
        elif kind in TEXTS:
            kept.append({"type": "text", "text": _text(part, here)})
        elif kind in MEDIA:
            kept.append(dict(part))
        else:
            known = ", ".join((*TEXTS[:1], *RESULTS[:1], *MEDIA[:2]))
            raise TreewrightError(f"{here}.type: {kind!r} is not known; known: {known}, …")
    return [*out, {**message, "content": kept}] if kept or not out else out


def _results(part: Mapping[str, Any], place: str, at: int) -> list[Message]:
    """The answer to a call as a tool's message."""
    content = part.get("content", part.get("output"))
    shown: Any = content if isinstance(content, list) else _plain(content)
    answer: Message = {"role": "tool", "content": shown, "at": at}
    call = part.get("tool_use_id") or part.get("call_id") or part.get("tool_call_id")
    if call:
        answer["tool_call_id"] = call
    return _shown(answer, shown, f"{place}.content", at) if isinstance(shown, list) else [answer]


def _call(call: Any, place: str) -> Message:
    """A call as OpenAI writes it: {"id", "function": {"name", "arguments"}}; arguments as they were given."""
    if not isinstance(call, Mapping):
        raise TreewrightError(f"{place}: expected an object, found {_kind(call)}")
    inner = call.get("function")
    inner = inner if isinstance(inner, Mapping) else call
    found: Message = {k: inner[k] for k in ("name", "arguments") if inner.get(k) is not None}
    for other in ("args", "input", "parameters"):
        if "arguments" not in found and inner.get(other) is not None:
            found["arguments"] = inner[other]
    number = call.get("call_id") or call.get("id")
    return {"function": found, **({"id": number} if number else {})}


def _thought(part: Mapping[str, Any], place: str) -> str:
    text = part.get("thinking") or part.get("text") or part.get("summary") or part.get("content") or ""
    return text if isinstance(text, str) else _texts(text, place)


def _texts(content: Any, place: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise TreewrightError(f"{place}: expected a string or a list of parts, found {_kind(content)}")
    return "".join(_text(part, f"{place}[{i}]") for i, part in enumerate(content))


def _text(part: Any, place: str) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text", part.get("refusal")) if isinstance(part, Mapping) else None
    if not isinstance(text, str):
        raise TreewrightError(f"{place}.text: expected a string, found {_kind(text)}")
    return text


def _type(part: Any, place: str) -> str:
    if isinstance(part, str):
        return "text"
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise TreewrightError(f'{place}: a part is an object with a "type", such as {{"type": "text", "text": "…"}}')
    return str(part["type"])


def _plain(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _joined(before: str | None, text: str) -> str:
    return f"{before}\n\n{text}" if before else text


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


# -- arguments and tools ----------------------------------------------------------------------------------------------


def known_tools(tools: Any) -> list[dict[str, Any]]:
    """The tools of a line, in OpenAI's form or Anthropic's, without the nulls that tables put into schemas.

    Raises TreewrightError naming the place of what is no tool.
    """
    if isinstance(tools, str):
        try:
            tools = json_value(tools or "[]")
        except json.JSONDecodeError as error:
            raise TreewrightError(f"tools: not JSON: {error.msg}; write a list of tools as OpenAI has it") from None
    if not isinstance(tools, Sequence):
        raise TreewrightError(f"tools: expected a list, found {_kind(tools)}")
    out = []
    for i, tool in enumerate(tools):
        inner = tool.get("function") if isinstance(tool, Mapping) and "function" in tool else tool
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
            raise TreewrightError(f'tools[{i}]: expected {{"type": "function", "function": {{"name": …}}}}')
        schema = inner.get("parameters") or inner.get("input_schema") or inner.get("inputSchema") or {}
        if not isinstance(schema, Mapping):
            raise TreewrightError(f"tools[{i}].parameters: expected an object, found {_kind(schema)}")
        named = {"name": inner["name"], "description": inner.get("description") or ""}
        out.append({"type": "function", "function": {**named, "parameters": _schema(schema)}})
    return out


def _schema(value: Any) -> Any:
    """A JSON schema without keywords that are null; null may only be a default, a constant or one of an enum."""
    if isinstance(value, Mapping):
        meant = () if isinstance(value, Sparse) else ("default", "const")
        return {k: _schema(v) for k, v in value.items() if v is not None or k in meant}
    return [_schema(v) for v in value] if isinstance(value, list) else value


def given_arguments(arguments: Mapping[str, Any], schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments without nulls that nobody gave: `datasets` puts a null wherever another row has the key.

    schema  that of the tool; None if it is not known, then only nulls of a `Sparse` object go
    """
    sparse = isinstance(arguments, Sparse)
    known = (schema or {}).get("properties") or {}

    def meant(key: str) -> bool:
        if schema is None:
            return not sparse
        if key not in known:
            return False
        return not sparse or key in (schema.get("required") or ()) or _takes_null(known[key])

    return {k: _inner(v) for k, v in arguments.items() if v is not None or meant(k)}


def _inner(value: Any) -> Any:
    if isinstance(value, Sparse):
        return {k: _inner(v) for k, v in value.items() if v is not None}
    if isinstance(value, Mapping):
        return {k: _inner(v) for k, v in value.items()}
    return [_inner(v) for v in value] if isinstance(value, list) else value


def _takes_null(schema: Any) -> bool:
    if not isinstance(schema, Mapping):
        return schema is True
    kinds = schema.get("type", ())
    if "null" in ([kinds] if isinstance(kinds, str) else kinds):
        return True
    return any(_takes_null(s) for name in ("anyOf", "oneOf") for s in schema.get(name) or ())
