"""A tool as one line of text: its name, its arguments with their types, what it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from treewright.envs.types import ToolSpec

__all__ = ["tool_line"]

DEPTH = 3  # objects within objects whose fields are shown


def tool_line(tool: ToolSpec) -> str:
    """`- name(argument: type, optional?: type): description`."""
    arguments = _fields(tool.parameters, tool.parameters, DEPTH)
    return f"- {tool.name}({arguments})" + (f": {tool.description}" if tool.description else "")


def _fields(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> str:
    needed = schema.get("required", ())
    fields = schema.get("properties", {}).items()
    return ", ".join(f"{name}{'' if name in needed else '?'}: {_type(kind, root, depth)}" for name, kind in fields)


def _type(schema: Any, root: Mapping[str, Any], depth: int) -> str:
    """What a schema allows in a few words: string, a|b, integer|null, string[], {name: string, size?: s|m}."""
    if not isinstance(schema, Mapping):
        return "any"
    if "$ref" in schema:
        found = _pointed(root, schema["$ref"])
        return _type(found, root, depth - 1) if found is not None and depth > 0 else "any"
    if "enum" in schema:
        return "|".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            words = dict.fromkeys(_type(kind, root, depth) for kind in schema[key])
            return "any" if "any" in words else "|".join(words)
    if len(parts := schema.get("allOf", ())) == 1:
        return _type(parts[0], root, depth)
    kinds = schema.get("type", "any")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return "|".join(_kind(str(kind), schema, root, depth) for kind in kinds)


def _kind(kind: str, schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> str:
    if kind == "array" and "prefixItems" in schema:
        return f"[{', '.join(_type(part, root, depth) for part in schema['prefixItems'])}]"
    if kind == "array" and isinstance(schema.get("items"), Mapping):
        inner = _type(schema["items"], root, depth)
        return kind if inner == "any" else f"({inner})[]" if "|" in inner and inner[0] != "{" else f"{inner}[]"
    if kind == "object" and schema.get("properties") and depth > 0:
        return "{" + _fields(schema, root, depth - 1) + "}"
    return kind


def _pointed(root: Mapping[str, Any], reference: Any) -> Any:
    """What a reference within the schema points at; None where there is nothing."""
    found: Any = root
    for step in str(reference).removeprefix("#").split("/")[1:]:
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found
