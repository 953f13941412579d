"""From what a policy wrote to an action: parse, validate, merge identical draws. Pure functions.

An action is one line, `name {"json": "arguments"}`. Two other spellings are understood because models are trained to
write them: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, where text before it is thinking and several blocks
are one composite action, and the bare JSON object. Whatever is wrong with the text is an InvalidAction: the policy's
mistake, answered in words it can act on, never a fault.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator, SchemaError, ValidationError
from jsonschema.exceptions import best_match
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from treewright.envs.errors import InvalidAction, TreewrightError
from treewright.envs.types import Action, Call, ToolSpec
from treewright.search.types import Completion, Reader

__all__ = ["FORM", "merge_identical", "parse_action", "read_by", "validate_action"]

FORM = 'name {"argument": "value"}'
MAX_DEPTH = 64
MAX_MESSAGE = 300
OPEN, CLOSE = "<tool_call>", "</tool_call>"
HEAD = re.compile(r'\s*([^\s{}\[\]"<>]+)[ \t]*(?=\{)')
SPACE = re.compile(r"\s*")


def parse_action(text: str, tools: Sequence[ToolSpec] = ()) -> Action:
    """The action that `text` spells. Raises InvalidAction, and nothing else, with a message for the policy.

    `tools` makes the message name what can be done, and lets a tool be called by its name alone; whether the call
    fits the tool is for `validate_action`. Thinking that ends with </think> is skipped.
    """
    try:
        return _parse(text, tools)
    except InvalidAction:
        _, thought, rest = text.partition("</think>")
        if not thought:
            raise
        return _parse(rest, tools)


def _parse(text: str, tools: Sequence[ToolSpec]) -> Action:
    if HEAD.match(text):
        try:
            return _checked(_lines(text), text)
        except InvalidAction:
            if OPEN not in text:
                raise
    if OPEN in text:
        return _checked(_blocks(text), text)
    bare = text.strip()
    if bare.startswith("{"):
        value, end = _json(bare, 0)
        if end != len(bare):
            raise InvalidAction(f"there is text after the action: {_short(bare[end:])}; write one action and stop")
        return _checked([_call(value)], text)
    if any(bare == tool.name for tool in tools):
        return Action((Call(bare),))
    raise InvalidAction(f"no action found in {_short(bare)}; write one line: {FORM}{_known(tools)}")


def _lines(text: str) -> list[Call]:
    """Calls of the form `name {…}`; several on one line are one composite action, as str(action) writes it."""
    calls: list[Call] = []
    at = 0
    while head := HEAD.match(text, at):
        if calls and "\n" in text[at : head.start(1)]:
            break
        value, at = _json(text, head.end())
        calls.append(Call(head[1], value))
    if rest := text[at:].strip():
        raise InvalidAction(f"there is text after the action: {_short(rest)}; write one action and stop")
    return calls


def _blocks(text: str) -> list[Call]:
    """Calls of the form <tool_call>{…}</tool_call>, one or more, with nothing between or after them."""
    calls: list[Call] = []
    at = text.index(OPEN)
    while text.startswith(OPEN, at):
        value, at = _json(text, _skip(text, at + len(OPEN)))
        at = _skip(text, at)
        if not text.startswith(CLOSE, at):
            raise InvalidAction(f"{OPEN} is not closed; write {OPEN}{{...}}{CLOSE}")
        calls.append(_call(value))
        at = _skip(text, at + len(CLOSE))
    if at != len(text):
        raise InvalidAction(f"there is text after the last {CLOSE}: {_short(text[at:])}; end the turn there")
    return calls


def _call(value: Mapping[str, Any]) -> Call:
    """A call from {"name", "arguments"}; also OpenAI's {"function": {…}} around it and arguments as a JSON string."""
    inner = value.get("function")
    if isinstance(inner, dict):
        value = inner
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters", {}))
    if not isinstance(name, str) or not name:
        raise InvalidAction('the action has no "name"; write {"name": "...", "arguments": {...}}')
    if isinstance(arguments, str):
        arguments, _ = _json(arguments, _skip(arguments, 0))
    if not isinstance(arguments, dict):
        raise InvalidAction(f'"arguments" of {_short(name)} must be a JSON object like {{"argument": "value"}}')
    return Call(name, arguments)


def _json(text: str, at: int) -> tuple[dict[str, Any], int]:
    """The JSON object at `at` and where it ends."""
    try:
        value, end = _DECODER.raw_decode(text, at)
    except RecursionError:
        raise InvalidAction(f"the arguments are nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise InvalidAction(f"the arguments are not valid JSON: {error.msg} at {_short(text[error.pos :])}") from None
    except ValueError as error:
        raise InvalidAction(f"the arguments are not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidAction(f'expected a JSON object like {{"argument": "value"}}, found {_short(text[at:end])}')
    return value, end


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{_short(digits)} is too large")
    return value


_DECODER = json.JSONDecoder(parse_constant=_constant, parse_float=_float)


def _checked(calls: list[Call], text: str) -> Action:
    """Refuses what JSON can spell but a store or a hash cannot hold: half surrogates, bottomless nesting."""
    action = Action(tuple(calls))
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(call.arguments for call in calls) > MAX_DEPTH:
        raise InvalidAction(f"the arguments are nested deeper than {MAX_DEPTH} levels")
    if "\\u" in text or not text.isascii():
        try:
            action.key.encode()
        except UnicodeEncodeError:
            raise InvalidAction("the arguments hold half of a surrogate pair; write the character itself") from None
    return action


def _depth(values: Iterable[Any]) -> int:
    depth, level = 0, list(values)
    while level:
        depth += 1
        inner = [value.values() if isinstance(value, Mapping) else value for value in level]
        level = [item for group in inner for item in group if isinstance(item, Mapping | list)]
    return depth


def _skip(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    return found.end() if found else at


def _short(text: str, limit: int = 60) -> str:
    text = text.encode("utf-8", "replace").decode()
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def _known(tools: Sequence[ToolSpec]) -> str:
    return "; tools: " + ", ".join(tool.name for tool in tools) if tools else ""


def read_by(reader: Reader, done: Completion, tools: Sequence[ToolSpec]) -> tuple[Action | None, str | None]:
    """(action, None) of a draw whose policy reads it itself, or (None, what is wrong with it)."""
    try:
        return reader.read(done, tools), None
    except InvalidAction as invalid:
        return None, str(invalid)


# -- validation ---------------------------------------------------------------------------------------------------


def validate_action(action: Action, tools: Sequence[ToolSpec]) -> None:
    """Checks every call against its tool's JSON schema.

    Raises InvalidAction for an unknown tool or arguments that do not fit, with the nearest known name; raises
    TreewrightError if a tool's own schema is broken, which no policy can mend.
    """
    for call in action.calls:
        tool = next((tool for tool in tools if tool.name == call.name), None)
        if tool is None:
            names = [tool.name for tool in tools]
            raise InvalidAction(f"no tool named {_short(call.name)}{_near(call.name, names)}")
        validator = _validator(tool)
        arguments = dict(call.arguments)
        try:
            if validator.is_valid(arguments):
                continue
            error = best_match(validator.iter_errors(arguments))
        except RecursionError:
            raise InvalidAction(f"the arguments of {tool.name} are nested too deeply") from None
        except Unresolvable as broken:
            raise TreewrightError(f"the schema of tool {tool.name!r} refers to something unknown: {broken}") from broken
        if error is not None:
            raise InvalidAction(_complaint(tool, arguments, error))


def _complaint(tool: ToolSpec, arguments: Mapping[str, Any], error: ValidationError) -> str:
    """What is wrong with the arguments, where, and what the tool takes."""
    known = list(tool.parameters.get("properties", {}))
    takes = f"; {tool.name} takes {', '.join(known)}" if known else f"; {tool.name} takes no arguments"
    if not error.absolute_path:
        unknown = [name for name in arguments if name not in known]
        missing = [name for name in tool.parameters.get("required", ()) if name not in arguments]
        if unknown and error.validator in ("additionalProperties", "required"):
            left = missing or [name for name in known if name not in arguments]
            return f"{tool.name} has no argument {_short(unknown[0])}{_near(unknown[0], left)}{takes}"
        if missing and error.validator == "required":
            return f"{tool.name} needs the argument {missing[0]!r}{takes}"
    where = ".".join(map(str, error.absolute_path))
    message = error.message if len(error.message) <= MAX_MESSAGE else error.message[: MAX_MESSAGE - 1] + "…"
    return f"{tool.name}: {where + ': ' if where else ''}{message}".encode("utf-8", "replace").decode()


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


_SEEN: dict[int, tuple[Mapping[str, Any], Validator]] = {}


def _validator(tool: ToolSpec) -> Validator:
    """The tool's compiled validator, by identity of the schema first (no hashing), by its text else.

    The mapping is held beside the validator, so its id cannot be taken by another while it is remembered.
    """
    schema = tool.parameters
    seen = _SEEN.get(id(schema))
    if seen is not None and seen[0] is schema:
        return seen[1]
    try:
        validator = _compiled(json.dumps(dict(schema), sort_keys=True))
    except (SchemaError, TypeError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise TreewrightError(f"tool {tool.name!r} has an invalid JSON schema: {first}") from error
    if len(_SEEN) >= 4096:
        _SEEN.clear()
    _SEEN[id(schema)] = (schema, validator)
    return validator


@functools.lru_cache(maxsize=4096)
def _compiled(text: str) -> Validator:
    schema = json.loads(text)
    kind = validator_for(schema, default=Draft202012Validator)
    kind.check_schema(schema)
    return kind(schema, registry=Registry())  # an empty registry: a schema never makes us fetch a URL


# -- merging ------------------------------------------------------------------------------------------------------


def merge_identical(completions: Sequence[Completion]) -> list[tuple[int, int, Completion]]:
    """(slot of the first draw, multiplicity, completion) for each distinct draw, in order of first slot.

    Draws merge only if their token ids are identical; where a server gives no ids, if their texts are. Equal actions
    written in different tokens stay apart.
    """
    first: dict[tuple[int, ...] | str, int] = {}
    count: dict[int, int] = {}
    for slot, completion in enumerate(completions):
        at = first.setdefault(completion.token_ids or completion.text, slot)
        count[at] = count.get(at, 0) + 1
    return [(slot, mult, completions[slot]) for slot, mult in count.items()]
