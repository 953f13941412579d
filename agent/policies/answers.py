"""What OpenAI-compatible servers answer, read as it comes: each writes the same things a little differently.

Content is text, null or a list of parts. Arguments of a call are a JSON string, an object, "" or null. Log-probs are
left out, null, or hold nulls. Usage is null or holds fractions. An error comes with its own status, or with 200.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from treewright.envs.lines import json_value

__all__ = ["Choice", "Logprobs", "Malformed", "Refused", "Reply", "Said", "read", "refusal", "whole"]

STANDS_FOR_NONE = -9000.0  # some servers write -9999.0 for −inf, which JSON cannot spell
MOST = 1e15  # no server counts so far; JSON can spell whole numbers that no float holds
ABORTED = ("abort", "aborted", "cancelled", "canceled", "error")
PASSING_CODE = 502  # an error inside a 200 that gives no number of its own


class Malformed(Exception):
    """The server answered 200 with something that is not an answer."""


class Refused(Exception):
    """The server's own words for why not; `named` are the fields that it says are to blame."""

    def __init__(self, status: int, reason: str, named: frozenset[str] = frozenset()) -> None:
        super().__init__(reason)
        self.status, self.reason, self.named = status, reason, named


def whole(value: Any) -> Any:
    """The value with every half of a surrogate pair in its texts replaced: neither JSON nor UTF-8 can carry one."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {whole(key): whole(inner) for key, inner in value.items()}
    return [whole(inner) for inner in value] if isinstance(value, list | tuple) else value


# -- answers --------------------------------------------------------------------------------------------------------


def _text(value: Any) -> Any:
    """Content in parts as one text, what is thought left out."""
    if not isinstance(value, list):
        return value
    said = [part if isinstance(part, str) else part.get("text") for part in value if _is_said(part)]
    return "".join(text for text in said if isinstance(text, str))


def _is_said(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, dict) and part.get("type") in (None, "text", "output_text"))


def _arguments(value: Any) -> Any:
    """Arguments as a JSON text; a call without any has none, whichever way that is written."""
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return "{}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _count(value: Any) -> int | None:
    good = isinstance(value, int | float) and 0 <= value < MOST
    return math.ceil(value) if good else None


def _number(value: Any) -> float:
    """A log-prob; NaN where there is none, −inf where the server writes a number that stands for it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value > MOST:
        return math.nan
    return -math.inf if value <= STANDS_FOR_NONE else float(value)


def _mapping(value: Any) -> Any:
    return value if isinstance(value, dict) else None


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else None


def _rows(value: Any) -> list[Any] | None:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else None


def _numbers(value: Any) -> list[float] | None:
    return [_number(one) for one in value] if isinstance(value, list) else None


def _reason(value: Any) -> str:
    """'length' and 'stop' under all their names; null is a stop."""
    said = str(value or "stop").lower()
    if said.startswith(("finish_length", "max_tokens", "max_length")):
        return "length"
    return "stop" if said.startswith(("finish_matched", "eos", "stop")) else said


Count = Annotated[int | None, BeforeValidator(_count)]
Token = Annotated[int, Field(ge=0, lt=1 << 31)]
Number = Annotated[float, BeforeValidator(_number)]


class _Details(BaseModel):
    cached_tokens: Count = None


class Usage(BaseModel):
    prompt_tokens: Count = None
    completion_tokens: Count = None
    prompt_tokens_details: Annotated[_Details | None, BeforeValidator(_mapping)] = None


class _Function(BaseModel):
    name: Annotated[str, BeforeValidator(lambda value: value or "")] = ""
    arguments: Annotated[str, BeforeValidator(_arguments)] = "{}"


class _ToolCall(BaseModel):
    function: _Function


class Said(BaseModel):
    content: Annotated[str | None, BeforeValidator(_text)] = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None

    def text(self) -> str:
        """What was said, and the calls in the spelling that `parse_action` reads. What was thought is left out."""
        made = [call.function for call in self.tool_calls or ()]
        made += [self.function_call] if self.function_call is not None and not made else []
        calls = [
            f'<tool_call>{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}</tool_call>'
            for call in made
        ]
        return "\n".join(filter(None, [self.content or (self.refusal if not calls else None), *calls]))


class _Alternative(BaseModel):
    token: str
    logprob: Number


class _Token(BaseModel):
    logprob: Number = math.nan
    top_logprobs: Annotated[list[_Alternative] | None, BeforeValidator(_rows)] = None


class Logprobs(BaseModel):
    content: Annotated[list[_Token] | None, BeforeValidator(_rows)] = None
    token_logprobs: Annotated[list[float] | None, BeforeValidator(_numbers)] = None


class Choice(BaseModel):
    message: Said | None = None
    text: str | None = None
    finish_reason: Annotated[str, BeforeValidator(_reason)] = "stop"
    logprobs: Annotated[Logprobs | None, BeforeValidator(_mapping)] = None
    token_ids: list[Token] | None = None
    routed_experts: Annotated[str | None, BeforeValidator(_plain)] = None

    def said(self) -> str:
        return self.message.text() if self.message is not None else self.text or ""

    def chat_logprobs(self) -> tuple[float, ...]:
        """[T] of a chat's tokens; empty where one is missing or no number that a drawn token can have."""
        found = tuple(token.logprob for token in (self.logprobs.content or ())) if self.logprobs else ()
        return found if all(map(math.isfinite, found)) else ()


class Reply(BaseModel):
    choices: list[Choice]
    usage: Annotated[Usage | None, BeforeValidator(_mapping)] = None


def read(content: bytes) -> Reply:
    """The answer in the body of a 200.

    Raises Malformed for what is none, an aborted answer among that, and Refused for an error that came with 200.
    """
    data = whole(_json(content))
    if isinstance(data, dict) and not data.get("choices") and (error := _error(data)) is not None:
        raise error
    try:
        reply = Reply.model_validate(data)
    except ValidationError as wrong:
        first = wrong.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Malformed(f"{place or 'the whole'}: {first['msg']}") from wrong
    if not reply.choices:
        raise Malformed("no choices")
    for choice, raw in zip(reply.choices, data["choices"], strict=True):
        if choice.finish_reason in ABORTED:
            why = _error(raw) if isinstance(raw, dict) else None
            said = f": {why.reason}" if why is not None else ""
            raise Malformed(f"the server broke the answer off ({choice.finish_reason}){said}")
    return reply


def _json(content: bytes) -> Any:
    text = content.decode("utf-8", "replace").strip().removeprefix("\ufeff")
    if text.startswith((":", "data:")):  # a stream of events, though none was asked for: the answer is its last
        events = [line[5:].strip() for line in text.split("\n") if line.startswith("data:")]
        text = next((event for event in reversed(events) if event != "[DONE]"), "")
    try:
        return json_value(text)
    except ValueError as error:
        raise Malformed(f"{error}; it begins {text[:60]!r}") from error


# -- refusals -------------------------------------------------------------------------------------------------------


def refusal(status: int, content: bytes) -> Refused:
    """Why the server would not, from the body of an answer that is no 200."""
    text = content.decode("utf-8", "replace").strip()
    try:
        data = whole(json_value(text))
        found = _error(data[0] if isinstance(data, list) and data else data)
    except ValueError:
        return Refused(status, text[:400])
    return Refused(status, found.reason[:400], found.named) if found is not None else Refused(status, text[:400])


def _error(data: Any) -> Refused | None:
    """The error in a body, in the forms of OpenAI, FastAPI, Mistral, vLLM, TGI, Ollama, Gemini and OpenRouter."""
    if not isinstance(data, dict):
        return None
    inner = data.get("error")
    if isinstance(inner, str):
        return Refused(_status(data), inner)
    found = inner if isinstance(inner, dict) else data
    said = found.get("message", found.get("detail"))
    if said is None or (inner is None and "choices" in data and data["choices"]):
        return None
    reason, named = _reasons(said)
    raw = found.get("metadata")
    if isinstance(raw, dict) and raw.get("raw"):  # what the provider behind a router said
        reason += f": {raw['raw']}"
    if isinstance(param := found.get("param"), str):
        named |= {param}
    return Refused(_status(found), reason, frozenset(named))


def _reasons(said: Any) -> tuple[str, set[str]]:
    """The words of a refusal, and the fields that its entries stand for where it is a list of them."""
    if isinstance(said, dict):
        said = said.get("detail", said)
    if not isinstance(said, list):
        return (said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)), set()
    words, named = [], set[str]()
    for entry in said:
        if not isinstance(entry, dict):
            words.append(str(entry))
            continue
        steps = entry.get("loc")
        place = [str(step) for step in (steps if isinstance(steps, list) else ()) if step != "body"]
        named.update(place[:1] if place[1:] and place[0] != "messages" else place[-1:])
        words.append(f"{'.'.join(place)}: {entry.get('msg', entry)}" if place else str(entry.get("msg", entry)))
    return "; ".join(words), named


def _status(found: Mapping[str, Any]) -> int:
    """The HTTP status that an error in a body stands for."""
    for key in ("code", "status", "status_code", "http_status_code"):
        value = found.get(key)
        number = int(value) if isinstance(value, str) and value.isdigit() else value
        if isinstance(number, int) and 400 <= number < 600:
            return number
    refuses = found.get("type") in ("invalid_request_error", "BadRequestError", "not_found_error")
    return 400 if refuses else PASSING_CODE
