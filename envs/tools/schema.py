"""Checks a policy's calls against the tools on offer, with messages that a policy can learn from."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from referencing.exceptions import Unresolvable

from treewright.envs.errors import InvalidAction, TreewrightError
from treewright.envs.types import Action, Call, ToolSpec

__all__ = ["check_action", "check_schema"]


def check_schema(spec: ToolSpec) -> None:
    """Raises TreewrightError naming the tool and the place where its argument schema is not a valid JSON schema."""
    try:
        try:
            written = json.dumps(spec.parameters, sort_keys=True)
        except (TypeError, ValueError, RecursionError):  # a mapping of another kind, a default that is no JSON
            Draft202012Validator.check_schema(dict(spec.parameters))
        else:
            _checked(written)
    except SchemaError as error:
        where = "/".join(map(str, error.absolute_path)) or "top level"
        raise TreewrightError(f"tool {spec.name!r} has a broken argument schema at {where}: {error.message}") from error
    if spec.parameters.get("type", "object") != "object":
        raise TreewrightError(f"tool {spec.name!r} takes arguments of type {spec.parameters['type']!r}, not 'object'")


def check_action(action: Action, tools: Sequence[ToolSpec]) -> None:
    """Raises InvalidAction for an empty action, an unknown tool, or arguments that its schema refuses."""
    if not action.calls:
        raise InvalidAction("no call given; call one tool")
    specs = {spec.name: spec for spec in tools}
    for call in action.calls:
        if call.name not in specs:
            raise InvalidAction(f"unknown tool {call.name!r}{_hint(call.name, list(specs))}")
        _check_arguments(call, specs[call.name].parameters)
    ends = [call.name for call in action.calls if specs[call.name].terminal]
    if ends and len(action.calls) > 1:
        raise InvalidAction(f"{ends[0]!r} ends the task and must be called alone")


def _check_arguments(call: Call, schema: Mapping[str, Any]) -> None:
    try:
        json.dumps(dict(call.arguments), allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as broken:
        raise InvalidAction(f"{call.name}: the arguments are not plain JSON: {broken}") from broken
    properties = schema.get("properties", {})
    # A schema that says nothing of further arguments would let a misspelt one pass; one that forbids them names none.
    if schema.get("additionalProperties", False) is False and "patternProperties" not in schema:
        for name in call.arguments:
            if name not in properties:
                raise InvalidAction(f"{call.name} has no argument {name!r}{_hint(name, list(properties))}")
    try:
        error = best_match(_validator(json.dumps(schema, sort_keys=True)).iter_errors(dict(call.arguments)))
    except (re.error, Unresolvable):  # no fault of the policy
        return  # a reference or pattern that cannot be followed here; the server judges
    if error is not None:
        where = ".".join(map(str, error.absolute_path))
        raise InvalidAction(f"{call.name}{' ' + where if where else ''}: {error.message}")


@lru_cache(maxsize=1024)
def _checked(schema: str) -> None:
    """Once for the same schema, which every session of a world brings again: the check takes long."""
    Draft202012Validator.check_schema(json.loads(schema))


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema))


def _hint(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(sorted(known))}" if known else ""
