"""Which methods of a class are tools, and as what."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.envs.tools.schema import check_schema
from treewright.envs.tools.signature import Tool, tool_of
from treewright.envs.types import Effect, ToolSpec

__all__ = ["tools_of"]


def tools_of(
    kind: type, listed: Sequence[str | Callable[..., Any] | Tool] | None, effects: Mapping[str, Effect], end: ToolSpec
) -> tuple[Tool, ...]:
    """The tools named, or every public method. Raises TreewrightError for names and effects that do not exist, for two
    tools of one name and for parameters without a JSON schema."""
    if listed is None:
        listed = [name for name in dir(kind) if _is_tool(kind, name)]
    tools: list[Tool] = []
    for item in listed:
        if isinstance(item, str):
            if not callable(getattr(kind, item, None)):
                near = difflib.get_close_matches(item, dir(kind), n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise TreewrightError(f"tools names {item!r}, but {kind.__name__} has no such method{hint}")
            item = tool_of(_taking_the_object(kind, item), effects.get(item, Effect.UNKNOWN), item)
        elif not isinstance(item, Tool):
            item = tool_of(item, effects.get(item.__name__, Effect.UNKNOWN))
        elif item.spec.name in effects:
            item = Tool(dataclasses.replace(item.spec, effect=effects[item.spec.name]), item.run)
        check_schema(item.spec)
        tools.append(item)
    names = [tool.spec.name for tool in tools]
    if unknown := sorted(set(effects) - set(names)):
        near = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the tools are {', '.join(names)}"
        raise TreewrightError(f"effects names {unknown[0]!r}; {hint}")
    if end.name in names:
        raise TreewrightError(f"the object has a tool {end.name!r}, which ends the task here; give end='another name'")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise TreewrightError(f"two tools are named {twice[0]!r}; tool names must differ")
    return tuple(tools)


def _is_tool(kind: type, name: str) -> bool:
    """A public method, but for the two that bring an object back and those that pydantic gives every model."""
    if name.startswith("_") or name in ("snapshot", "restore"):
        return False
    found = inspect.getattr_static(kind, name)
    if any(name in base.__dict__ and base.__module__.startswith("pydantic.") for base in kind.__mro__):
        return False
    return inspect.isfunction(found) or isinstance(found, staticmethod | classmethod)


def _taking_the_object(kind: type, name: str) -> Callable[..., Any]:
    """The method as a function whose first parameter is the object; static and class methods leave it unread."""
    method = getattr(kind, name)
    if not isinstance(inspect.getattr_static(kind, name), staticmethod | classmethod):
        return method  # type: ignore[no-any-return]
    own = inspect.signature(method)
    first = inspect.Parameter("_object", inspect.Parameter.POSITIONAL_ONLY)

    @functools.wraps(method)
    def called(_object: Any, /, *before: Any, **named: Any) -> Any:
        return method(*before, **named)

    called.__signature__ = own.replace(parameters=[first, *own.parameters.values()])  # type: ignore[attr-defined]
    return called
