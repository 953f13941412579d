"""What a server sends, made to fit the protocol before the client of the `mcp` package reads it.

That client is strict: one odd tool refuses the whole list, one block of an unknown kind, one half surrogate or content
that does not fit a tool's output schema loses the answer of a call that was made. So messages are mended on their way:
tools one by one, answers block by block. What cannot be read at all becomes an error answer of the call that waits.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from mcp.shared.message import SessionMessage
from mcp_types import (
    INTERNAL_ERROR,
    ContentBlock,
    JSONRPCError,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    jsonrpc_message_adapter,
)
from pydantic import TypeAdapter, ValidationError

from treewright.envs.tools.mend import mend_schema

__all__ = ["Wire"]

log = logging.getLogger(__name__)
# Lines that are no message are looked at here; the client would print a traceback for each of them.
logging.getLogger("mcp.client.stdio").addFilter(lambda record: "Failed to parse JSONRPC" not in record.getMessage())

TOOL_FIELDS = ("name", "title", "description", "inputSchema", "annotations", "_meta")
HINTS = ("readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint")
CHANGED = "notifications/tools/list_changed"
_BLOCK: TypeAdapter[ContentBlock] = TypeAdapter(ContentBlock)


class Wire:
    """Stands between one server and its client.

    rewrite   (path, path as shown): the first is written as the second in all that comes, and back in all that goes
    left_out  what was not taken as it came, one sentence each; said once in the log
    changed   the server said that its tools changed, and they were not listed since
    ended     the server closed its side
    """

    def __init__(self, what: str, rewrite: tuple[str, str] | None = None) -> None:
        self.what, self.rewrite = what, rewrite
        self.left_out: list[str] = []
        self.changed = self.ended = False
        self._asked: dict[str, JSONRPCRequest] = {}
        self._outputs: dict[str, Mapping[str, Any]] = {}

    @asynccontextmanager
    async def through(self, transport: AbstractAsyncContextManager[Any]) -> AsyncIterator[Any]:
        """The transport with both of its streams led through here."""
        async with transport as (read, write):
            yield _Reading(read, self), _Writing(write, self)

    def sent(self, message: SessionMessage) -> SessionMessage:
        if isinstance(request := message.message, JSONRPCRequest):
            self._asked[str(request.id)] = request
            if self.rewrite is not None and request.params is not None:
                here, shown = self.rewrite
                request.params = _renamed(request.params, shown, here)
        return message

    def came(self, item: SessionMessage | Exception) -> SessionMessage | Exception:
        """The message as the client should see it."""
        if isinstance(item, Exception):
            return self._unread(item)
        message = item.message
        if isinstance(message, JSONRPCNotification) and message.method == CHANGED:
            self.changed = True
        if isinstance(message, JSONRPCResponse | JSONRPCError):
            asked = self._asked.pop(str(message.id), None)
            if isinstance(message, JSONRPCResponse) and asked is not None:
                message.result = _renamed(self._result(asked, message.result), *(self.rewrite or ("", "")))
            elif isinstance(message, JSONRPCError) and self.rewrite is not None:
                message.error.message = message.error.message.replace(*self.rewrite)
        return item

    def note(self, sentence: str) -> None:
        """Says what was left out, once."""
        if sentence not in self.left_out:
            self.left_out.append(sentence)
            log.warning("%s: %s", self.what, sentence)

    def _result(self, asked: JSONRPCRequest, result: dict[str, Any]) -> dict[str, Any]:
        if asked.method == "tools/list":
            return self._tools(result, first=not (asked.params or {}).get("cursor"))
        if asked.method == "tools/call":
            name = str((asked.params or {}).get("name"))
            try:
                return self._answer(name, result)
            except RecursionError:
                said = f"error: {name} was called and answered, but its content is nested too deeply to be read"
                return {"content": [_text(said)], "isError": True}
        return result

    def _unread(self, error: Exception) -> SessionMessage | Exception:
        """A line that is no message: read more kindly where it can be, else the answer of the call that waits."""
        found = error.errors()[0]["input"] if isinstance(error, ValidationError) else None
        if isinstance(found, str):
            if not (found.lstrip().startswith("{") and '"jsonrpc"' in found):
                return error  # a server that talks on its standard output
            try:
                found = json.loads(found)
            except (ValueError, RecursionError):
                found = {"id": self._waiting(), "error": {"message": f"its answer cannot be read: {_said(error)}"}}
        if not isinstance(found, dict) or str(found.get("id")) not in self._asked:
            return error
        try:
            return self.came(SessionMessage(jsonrpc_message_adapter.validate_python(_message(found), by_name=False)))
        except ValidationError:
            return error

    def _waiting(self) -> str | int | None:
        """The id of the only call that has no answer yet."""
        calls = [one.id for one in self._asked.values() if one.method == "tools/call"]
        return calls[0] if len(calls) == 1 else None

    # -- tools ------------------------------------------------------------------------------------------------------

    def _tools(self, result: dict[str, Any], first: bool) -> dict[str, Any]:
        if first:
            self.changed = False
        listed = result.get("tools")
        tools = [self._readable(tool) for tool in (listed if isinstance(listed, list) else [])]
        out: dict[str, Any] = {"tools": [tool for tool in tools if tool is not None]}
        if isinstance(cursor := result.get("nextCursor"), str) and cursor:
            out["nextCursor"] = cursor
        return {key: value for key, value in result.items() if key not in ("tools", "nextCursor")} | out

    def _readable(self, tool: Any) -> dict[str, Any] | None:
        try:
            return self._tool(tool)
        except RecursionError:
            name = tool.get("name") if isinstance(tool, Mapping) else None
            self.note(f"the tool {name!r:.80} is not offered: it is nested too deeply to be read")
            return None

    def _tool(self, tool: Any) -> dict[str, Any] | None:
        """The tool as the protocol wants it; None where it cannot be called."""
        if not isinstance(tool, Mapping) or not isinstance(tool.get("name"), str) or not tool["name"]:
            self.note(f"a tool without a name is not offered: {json.dumps(tool, default=str)[:80]}")
            return None
        name = tool["name"]
        execution = tool.get("execution")
        if isinstance(execution, Mapping) and execution.get("taskSupport") == "required":
            self.note(f"the tool {name!r} runs only as a task of the server and is not offered")
            return None
        schema, notes = mend_schema(_clean(tool.get("inputSchema")))
        if schema is None:
            self.note(f"the tool {name!r} is not offered: {notes[0]}")
            return None
        for note in notes:
            self.note(f"the arguments of {name!r} are checked without {note}")
        out = {key: value for key in TOOL_FIELDS if (value := tool.get(key)) is not None} | {"inputSchema": schema}
        for key in ("title", "description"):
            if key in out and not isinstance(out[key], str):
                out[key] = json.dumps(out[key], ensure_ascii=False, default=str)
        hints = out.pop("annotations", None)
        if isinstance(hints, Mapping):
            out["annotations"] = {key: hints[key] for key in HINTS if isinstance(hints.get(key), bool)}
        if not isinstance(out.get("_meta", {}), Mapping):
            del out["_meta"]
        self._outputs.pop(name, None)
        if isinstance(tool.get("outputSchema"), Mapping):
            self._outputs[name] = tool["outputSchema"]
        cleaned: dict[str, Any] = _clean(out)
        return cleaned

    # -- answers ----------------------------------------------------------------------------------------------------

    def _answer(self, name: str, result: dict[str, Any]) -> dict[str, Any]:
        """The answer with blocks that the client knows, and with an error said where its content does not fit."""
        if result.get("resultType", "complete") != "complete":
            return result  # the server asks something first
        wrong = _no_number(result.get("structuredContent"))
        result = _clean(result)
        content = result.get("content")
        blocks = content if isinstance(content, list) else [] if content is None else [content]
        out = {**result, "content": [_block(block) for block in blocks]}
        out["isError"] = bool(result.get("isError"))
        structured = result.get("structuredContent")
        if not isinstance(structured, dict):
            out.pop("structuredContent", None)
            if structured is not None and not blocks:
                out["content"] = [_text(json.dumps(structured, ensure_ascii=False))]
        if not isinstance(out.get("_meta", {}), dict):
            del out["_meta"]
        if not out["isError"] and structured is not None and (wrong := wrong or self._misfit(name, structured)):
            if blocks:
                out.pop("structuredContent", None)  # the text says it
            out["content"] = [*out["content"], _text(f"error: {name} was called and answered, but {wrong}")]
            out["isError"] = True
        return out

    def _misfit(self, name: str, structured: Any) -> str:
        """Why structured content does not fit what the tool declares; empty where it does, or where nobody can say."""
        if name not in self._outputs:
            return ""
        schema, notes = mend_schema({"type": "object", "properties": {"it": self._outputs[name]}})
        if schema is None or notes:
            return ""
        error = best_match(Draft202012Validator(self._outputs[name]).iter_errors(structured))
        if error is None:
            return ""
        where = ".".join(map(str, error.absolute_path))
        return f"its content does not fit its output schema{' at ' + where if where else ''}: {error.message:.200}"


def _message(found: Mapping[str, Any]) -> dict[str, Any]:
    """An answer whose fields are missing or of another type, as the protocol writes it."""
    out = {"jsonrpc": "2.0", "id": found["id"]}
    if "error" not in found:
        result = _clean(found.get("result"))
        return {**out, "result": result if isinstance(result, dict) else {"content": result}}
    error = found["error"] if isinstance(found["error"], Mapping) else {"message": found["error"]}
    code = error.get("code")
    code = code if isinstance(code, int) else INTERNAL_ERROR
    message = error.get("message") or "the server gave no reason"
    return {**out, "error": {"code": code, "message": str(_clean(message))}}


def _block(block: Any) -> dict[str, Any]:
    """A block of a kind that the client knows; any other as its JSON."""
    if isinstance(block, Mapping):
        if block.get("type") == "text" and not isinstance(block.get("text"), str):
            return _text(json.dumps(block.get("text"), ensure_ascii=False))
        try:
            _BLOCK.validate_python(block, by_name=False)
        except ValidationError:
            pass
        else:
            return dict(block)
    return _text(block if isinstance(block, str) else json.dumps(block, ensure_ascii=False))


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _renamed(value: Any, old: str, new: str) -> Any:
    """The value with one piece of text exchanged for another in every string."""
    if not old:
        return value
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, Mapping):
        return {_renamed(key, old, new): _renamed(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_renamed(inner, old, new) for inner in value]
    return value


def _clean(value: Any) -> Any:
    """The value as JSON can carry it: no half surrogates, and null for NaN and the infinities."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_clean(key): _clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(inner) for inner in value]
    return value


def _no_number(value: Any, where: str = "") -> str:
    """Says where a number stands that JSON does not have; empty where there is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"its content is no JSON: {value} at {where or 'its top'}"
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    return next((said for key, part in parts if (said := _no_number(part, f"{where}.{key}".strip(".")))), "")


def _said(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        return f"{where + ': ' if where else ''}{first['msg']}"
    return repr(error)[:200]


class _Stream:
    """A stream that does what the one inside does."""

    def __init__(self, inner: Any, wire: Wire) -> None:
        self._inner, self._wire = inner, wire

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def __aenter__(self) -> Any:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *why: Any) -> Any:
        return await self._inner.__aexit__(*why)


class _Reading(_Stream):
    async def receive(self) -> SessionMessage | Exception:
        return self._wire.came(await self._inner.receive())

    def __aiter__(self) -> _Reading:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return self._wire.came(await self._inner.__anext__())
        except StopAsyncIteration:
            self._wire.ended = True
            raise


class _Writing(_Stream):
    async def send(self, message: SessionMessage) -> None:
        await self._inner.send(self._wire.sent(message))
