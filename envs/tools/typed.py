"""What types bring into a call: pydantic checks the arguments of tools, with the validators that their types name."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

__all__ = ["is_annotation", "of_annotation", "of_model", "of_parameters"]


def is_annotation(thing: Any) -> bool:
    return isinstance(thing, types.GenericAlias | types.UnionType) or type(thing).__module__.startswith("typing")


def of_parameters(function: Any) -> list[Any]:
    """What runs when a tool's arguments are checked."""
    try:
        hints = typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    except (NameError, TypeError, AttributeError):
        return []
    return [part for name, hint in hints.items() if name != "return" for part in of_annotation(hint)]


def of_annotation(hint: Any) -> Iterator[Any]:
    """The metadata of every Annotated inside, and the classes that pydantic makes by the user's own code."""
    waiting, seen = [hint], set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield from getattr(one, "__metadata__", ())
        waiting += typing.get_args(one) or ()
        waiting += [part for name in ("__origin__", "__value__", "__bound__") if (part := getattr(one, name, None))]
        if isinstance(one, type) and _checked(one):
            yield one
        if isinstance(one, type) and typing.is_typeddict(one):
            waiting += vars(one).get("__annotations__", {}).values()


def _checked(kind: type) -> bool:
    if kind.__module__.split(".")[0] in sys.stdlib_module_names:
        return False
    made = dataclasses.is_dataclass(kind) or issubclass(kind, BaseModel | enum.Enum)
    return made or hasattr(kind, "_fields") or hasattr(kind, "__get_pydantic_core_schema__")


def of_model(kind: type) -> Iterator[Any]:
    """The validators, default factories and annotations of a pydantic model or dataclass."""
    fields = getattr(kind, "__pydantic_fields__", None) or vars(kind).get("model_fields") or {}
    for info in fields.values() if isinstance(fields, dict) else ():
        yield from (info.default, info.default_factory, *info.metadata)
        yield from of_annotation(info.annotation)
    for private in (getattr(kind, "__private_attributes__", None) or {}).values():
        yield from (getattr(private, "default", None), getattr(private, "default_factory", None))
    found = getattr(kind, "__pydantic_decorators__", None)
    for group in vars(found).values() if found is not None and hasattr(found, "__dict__") else _slots_of(found):
        yield from (each.func for each in group.values() if hasattr(each, "func")) if isinstance(group, dict) else ()


def _slots_of(thing: Any) -> list[Any]:
    return [getattr(thing, name, None) for name in getattr(type(thing), "__slots__", ())]
