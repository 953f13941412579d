"""Actions by construction and by repair: grammars and schemas from the tools at a node, and reading what is no action.

A draw under a grammar is made from the policy's distribution with every token left out that no action could go on with,
renormalised. Its log-probs are recorded under that masked distribution, where the engine gives them. They are then
exact, and the weight exp(old − behaviour) that training puts on a token is the share of the policy's own mass that the
mask kept. Where an engine gives the unmasked ones, such draws act and are not trained on.
"""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from treewright.envs.errors import InvalidAction, TreewrightError
from treewright.envs.types import ToolSpec
from treewright.search.screen import parse_action, validate_action

log = logging.getLogger(__name__)

__all__ = ["action_grammar", "action_schema", "cached_grammar", "plain_schema", "repair_action"]

STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as json.dumps writes
# What engines that hold a draw to a schema understand alike. Of anything else the draw is free: what was drawn is
# checked against the whole schema, and a wrong argument is the policy's to learn from.
KEPT = {"type", "enum", "const", "properties", "required", "additionalProperties", "items", "prefixItems"}
KEPT |= {"anyOf", "allOf", "$ref", "$defs", "definitions", "minItems", "maxItems", "minLength", "maxLength", "pattern"}
KEPT |= {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format"}
FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
# Looking around, ends of words, references back: no automaton has them.
BEYOND = re.compile(r"\(\?[=!<]|\\[bB1-9AZzGk]|\(\?P=")


def action_grammar(tools: Sequence[ToolSpec], free: Collection[str] = ()) -> str:
    """A Lark grammar in llguidance's dialect for one action `name {…}` with one of the tools.

    A tool whose schema does not say so takes no further arguments; those named in `free` take any. Raises
    TreewrightError without tools.
    """
    if not tools:
        raise TreewrightError("there is no tool to make a grammar of; draw without a grammar")
    lines = [f"start: {' | '.join(f'call_{i}' for i in range(len(tools)))}"]
    for i, tool in enumerate(tools):
        arguments = {"x-guidance": STYLE, "type": "object"} if tool.name in free else _arguments(tool)
        lines.append(f"call_{i}: {json.dumps(tool.name + ' ')} %json {json.dumps(arguments)}")
    return "\n".join(lines) + "\n"


def _arguments(tool: ToolSpec) -> dict[str, Any]:
    plain = {"type": "object", "properties": {}, "additionalProperties": False}
    return {"x-guidance": STYLE, **plain, **plain_schema(json.loads(json.dumps(dict(tool.parameters))))}


def plain_schema(schema: Any) -> Any:
    """The part of a schema that a grammar can hold a draw to; it allows all that the schema allows."""
    if not isinstance(schema, Mapping):
        return schema
    out = {key: value for key, value in schema.items() if key in KEPT}
    if "oneOf" in schema and "anyOf" not in out:
        out["anyOf"] = schema["oneOf"]
    if out.get("format") not in FORMATS:
        out.pop("format", None)
    if BEYOND.search(pattern := out.get("pattern", "").replace("(?P<", "(")) or "format" in out:
        out.pop("pattern", None)
    elif pattern:
        out["pattern"] = pattern
    for key in ("items", "additionalProperties"):
        if key in out:
            out[key] = plain_schema(out[key])
    for key in ("anyOf", "allOf", "prefixItems"):
        if key in out:
            out[key] = [plain_schema(part) for part in out[key]]
    for key in ("properties", "$defs", "definitions"):
        if key in out:
            out[key] = {name: plain_schema(part) for name, part in out[key].items()}
    if schema.get("patternProperties"):
        out["additionalProperties"] = True
    return out


def action_schema(tools: Sequence[ToolSpec]) -> dict[str, Any]:
    """A JSON schema for one action as {"name", "arguments"}, for servers that constrain by schema."""
    if not tools:
        raise TreewrightError("there is no tool to make a schema of; draw without one")
    kinds: list[dict[str, Any]] = []
    shared: dict[str, Any] = {}
    for i, tool in enumerate(tools):
        arguments = {k: v for k, v in _arguments(tool).items() if k != "x-guidance"}
        arguments = _led(arguments, i)
        for key in ("$defs", "definitions"):
            shared |= {f"{i}_{name}": part for name, part in arguments.pop(key, {}).items()}
        kinds.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": kinds, "$defs": shared} if shared else {"anyOf": kinds}


def _led(schema: Any, tool: int) -> Any:
    """The schema with references that lead on from where it stands among the tools' schemas."""
    if isinstance(schema, list):
        return [_led(part, tool) for part in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: value if key in ("enum", "const") else _led(value, tool) for key, value in schema.items()}
    if isinstance(reference := out.get("$ref"), str):
        _, _, rest = reference.partition("#")
        head, _, name = rest.removeprefix("/").partition("/")
        here = f"#/anyOf/{tool}/properties/arguments{rest}"
        out["$ref"] = f"#/$defs/{tool}_{name}" if head in ("$defs", "definitions") else here
    return out


@lru_cache(maxsize=256)
def _cached(key: str) -> str:
    tools = [ToolSpec(name, "", parameters) for name, parameters in json.loads(key)]
    return action_grammar(tools, _too_much(tools))


def cached_grammar(tools: Sequence[ToolSpec]) -> str:
    """`action_grammar`, made once for the same tools; one whose schema makes no grammar takes any arguments in it."""
    return _cached(json.dumps([(tool.name, dict(tool.parameters)) for tool in tools]))


def _too_much(tools: Sequence[ToolSpec]) -> frozenset[str]:
    """The tools whose arguments llguidance cannot hold a draw to, where it is there to be asked."""
    try:
        from llguidance import LLMatcher, LLTokenizer
    except ImportError:
        return frozenset()
    plain = LLTokenizer("byte")
    names = {tool.name for tool in tools if LLMatcher(plain, action_grammar([tool])).is_error()}
    for name in sorted(names):
        log.warning("the arguments of %r are drawn as any JSON object: its schema makes no grammar", name)
    return frozenset(names)


# -- repair ---------------------------------------------------------------------------------------------------------

FENCE = re.compile(r"```[a-z]*\s*(.*?)```", re.DOTALL)


def repair_action(text: str, tools: Sequence[ToolSpec]) -> str:
    """`text`, or the first action that can be read in it where it cannot be read as one itself.

    Understands code fences, talk before and after, Python's quotes and words, missing closing brackets. For servers
    that hide their tokens, whose draws are not trained on: what a trained policy writes is never mended.
    """
    if _valid(text, tools):
        return text
    places = [text, *FENCE.findall(text)]
    for place in places:
        for tool in tools:
            for found in re.finditer(rf"\b{re.escape(tool.name)}\b\s*[:(]?\s*", place):
                if (mended := _mended(place[found.end() :])) is not None:
                    said = f"{tool.name} {json.dumps(mended, ensure_ascii=False)}"
                    if _valid(said, tools):
                        return said
        at = place.find("{")
        if at >= 0 and (mended := _mended(place[at:])) is not None and _valid(json.dumps(mended), tools):
            return json.dumps(mended, ensure_ascii=False)
    return text


def _valid(text: str, tools: Sequence[ToolSpec]) -> bool:
    try:
        validate_action(parse_action(text, tools), tools)
    except InvalidAction:
        return False
    return True


def _mended(text: str) -> Mapping[str, Any] | None:
    """The object at the beginning of `text`, if it is one but for its quotes, commas or ends."""
    if not text.startswith("{"):
        return None
    end, closing = _end(text)
    whole = text[:end].rstrip().rstrip(",") + closing if closing else text[:end]
    bare = re.sub(r",\s*([}\]])", r"\1", whole)
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(bare)
            json.dumps(value, allow_nan=False)  # Python's sets, bytes and ... are no arguments
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return value
    return None


def _end(text: str) -> tuple[int, str]:
    """Where the object at the beginning ends, and what is missing there: quotes and brackets that were not closed."""
    stack: list[str] = []
    quote, skip = "", False
    for at, char in enumerate(text):
        if skip or quote:
            if skip:
                skip = False
            elif char == "\\":
                skip = True
            elif char == quote:
                quote = ""
        elif char in "\"'":
            quote = char
        elif char in "{[":
            stack.append("}" if char == "{" else "]")
        elif char in "}]":
            if not stack or stack.pop() != char:
                return at, ""
            if not stack:
                return at + 1, ""
    return len(text), quote + "".join(reversed(stack))
