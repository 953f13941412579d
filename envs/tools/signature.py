"""A tool from a Python function: a JSON schema from its signature, arguments checked and converted by pydantic."""

from __future__ import annotations

import inspect
import random
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError

from treewright.envs.errors import InvalidAction, TreewrightError
from treewright.envs.types import Effect, ToolSpec

__all__ = ["RNG", "Tool", "tool_of"]

RNG = "rng"
"""A parameter of this name is not an argument: it gets a random.Random seeded by the step's key."""

_LOOSE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Tool:
    """What the policy sees of a tool, and what it does: (object, arguments, random numbers) -> its answer.

    `run` may be a coroutine function. What it raises is shown to the policy as an error, but for TreewrightError.
    """

    spec: ToolSpec
    run: Callable[[Any, Mapping[str, Any], random.Random], Any]


def tool_of(function: Callable[..., Any], effect: Effect = Effect.UNKNOWN, name: str | None = None) -> Tool:
    """A tool from a function whose first parameter is the object, such as a method taken from its class.

    Raises TreewrightError naming the parameter that a JSON schema cannot describe.
    """
    name = name or function.__name__
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters:
        raise TreewrightError(f"tool {name!r} has no parameter for the object; its first one receives it")
    hints = _hints(name, function)
    takes_rng = any(p.name == RNG for p in parameters[1:])
    named = [p for p in parameters[1:] if p.name != RNG]
    fields: dict[str, Any] = {}
    for i, parameter in enumerate(named):
        if parameter.kind in _LOOSE:
            raise TreewrightError(f"tool {name!r}: parameter {parameter} takes anything; wrap it in a plain function")
        given = ... if parameter.default is inspect.Parameter.empty else parameter.default
        # Aliases, since pydantic keeps some names, such as model_config, for itself.
        fields[f"p{i}"] = (hints.get(parameter.name, Any), Field(given, alias=parameter.name))
    try:
        model = create_model(name, __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=False), **fields)
        schema = model.model_json_schema()
    except (PydanticUserError, TypeError) as error:
        first = str(error).partition("\n")[0]
        raise TreewrightError(f"tool {name!r}: its parameters have no JSON schema: {first}") from error
    schema.pop("title", None)
    for inner in schema.get("properties", {}).values():
        inner.pop("title", None)

    def run(obj: Any, arguments: Mapping[str, Any], rng: random.Random) -> Any:
        try:
            checked = model.model_validate(dict(arguments))
        except ValidationError as error:
            first = error.errors()[0]
            raise InvalidAction(f"{name} {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        before: list[Any] = []
        after: dict[str, Any] = {RNG: rng} if takes_rng else {}
        for i, parameter in enumerate(named):
            value = getattr(checked, f"p{i}")
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                before.append(value)
            else:
                after[parameter.name] = value
        return function(obj, *before, **after)

    return Tool(ToolSpec(name, _first_paragraph(function), schema, effect), run)


def _hints(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as error:
        raise TreewrightError(f"tool {name!r}: a type of its parameters cannot be found: {error}") from error


def _first_paragraph(function: Callable[..., Any]) -> str:
    text = inspect.getdoc(function) or ""
    return " ".join(text.partition("\n\n")[0].split())
