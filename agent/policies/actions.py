"""Actions by construction and by repair: grammars and schemas from the tools at a node, and reading what is no action.

A draw under a grammar is made from the policy's distribution with every token left out that no action could go on with,
renormalised. Its log-probs are recorded under that masked distribution, where the engine gives them. They are then
exact, and the weight exp(old − behaviour) that training puts on a token is the share of the policy's own mass that the
mask kept. Where an engine gives the unmasked ones, such draws act and are not trained on.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from treewright.envs.errors import InvalidAction, TreewrightError
from treewright.envs.types import ToolSpec
from treewright.search.screen import parse_action, validate_action

__all__ = ["action_grammar", "action_schema", "cached_grammar", "repair_action"]

STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as json.dumps writes


def action_grammar(tools: Sequence[ToolSpec]) -> str:
    """A Lark grammar in llguidance's dialect for one action `name {…}` with one of the tools.

    A tool whose schema does not say so takes no further arguments. Raises TreewrightError without tools.
    """
    if not tools:
        raise TreewrightError("there is no tool to make a grammar of; draw without a grammar")
    lines = [f"start: {' | '.join(f'call_{i}' for i in range(len(tools)))}"]
    for i, tool in enumerate(tools):
        lines.append(f"call_{i}: {json.dumps(tool.name + ' ')} %json {json.dumps(_arguments(tool))}")
    return "\n".join(lines) + "\n"


def _arguments(tool: ToolSpec) -> dict[str, Any]:
    plain = {"type": "object", "properties": {}, "additionalProperties": False}
    return {"x-guidance": STYLE, **plain, **json.loads(json.dumps(dict(tool.parameters)))}


def action_schema(tools: Sequence[ToolSpec]) -> dict[str, Any]:
    """A JSON schema for one action as {"name", "arguments"}, for servers that constrain by schema."""
    if not tools:
        raise TreewrightError("there is no tool to make a schema of; draw without one")
    kinds = []
    for tool in tools:
        arguments = {k: v for k, v in _arguments(tool).items() if k != "x-guidance"}
        kinds.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": kinds}


@lru_cache(maxsize=256)
def _cached(key: str) -> str:
    return action_grammar([ToolSpec(name, "", parameters) for name, parameters in json.loads(key)])


def cached_grammar(tools: Sequence[ToolSpec]) -> str:
    """`action_grammar`, made once for the same tools."""
    return _cached(json.dumps([(tool.name, dict(tool.parameters)) for tool in tools]))


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
        except (ValueError, SyntaxError, RecursionError, MemoryError):
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
