"""Fields of a request body, checked one at a time: what is wrong is said with the field's name."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from treewright.agent.gateway.errors import ApiError, HalfPair
from treewright.envs.types import ToolSpec

__all__ = ["entries", "flag", "number", "stops", "text_of", "tool", "whole_number", "word"]

MOST_STOPS, MOST_ANSWERS = 16, 128


def wrong(name: str, wanted: str, value: object) -> ApiError:
    """The refusal of a field; the value itself is not repeated, since it may be a prompt."""
    return ApiError(400, f"{name} must be {wanted}, not {_kind(value)}", name)


def _kind(value: object) -> str:
    names = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    if isinstance(value, list) and not value:
        return "an empty array"
    return "missing" if value is None else names.get(type(value), type(value).__name__)


def word(body: Mapping[str, Any], name: str, needed: bool = True) -> str:
    value = body.get(name)
    if value is None and not needed:
        return ""
    if not isinstance(value, str) or (needed and not value):
        raise wrong(name, "a string", value)
    return value


def entries(body: Mapping[str, Any], name: str, needed: bool = False, within: str = "") -> list[dict[str, Any]]:
    """A list of objects."""
    value, path = body.get(name), within + name
    if value is None and not needed:
        return []
    if not isinstance(value, list) or (needed and not value):
        raise wrong(path, "an array with at least one entry" if needed else "an array", value)
    for i, one in enumerate(value):
        if not isinstance(one, dict):
            raise wrong(f"{path}[{i}]", "an object", one)
    return value


def flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise wrong(name, "a boolean", value)
    return value


def whole_number(body: Mapping[str, Any], name: str, least: int, most: int | None = None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    wanted = f"a whole number of at least {least}" + (f" and at most {most}" if most is not None else "")
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong(name, wanted, value)
    if value < least or (most is not None and value > most):
        raise ApiError(400, f"{name} must be {wanted}, not {value}", name)
    return value


def number(body: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(name, f"a number from {least:g} to {most:g}", value)
    value = min(max(value, -sys.float_info.max), sys.float_info.max)  # a whole number may be larger than any float
    if not least <= value <= most:
        raise ApiError(400, f"{name} must be a number from {least:g} to {most:g}, not {value:g}", name)
    return float(value)


def stops(body: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Texts at which an answer ends: one, or a list of them."""
    value = body.get(name)
    if value is None:
        return ()
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not all(isinstance(one, str) and one for one in given):
        raise wrong(name, "a string or an array of strings", value)
    if len(given) > MOST_STOPS:
        raise ApiError(400, f"{name} holds {len(given)} texts; give at most {MOST_STOPS}", name)
    return tuple(given)


def text_of(value: object, name: str, kinds: tuple[str, ...] = ("text",)) -> str:
    """Content: a string, null, or parts of the given kinds, joined. Raises ApiError for pictures and other parts."""
    if value is None:
        return ""
    if isinstance(value, str):
        return _whole(value, name)
    if not isinstance(value, list):
        raise wrong(name, "a string or an array of parts", value)
    out = []
    for i, part in enumerate(value):
        if not isinstance(part, dict):
            raise wrong(f"{name}[{i}]", "an object", part)
        kind = part.get("type")
        if kind not in kinds:
            raise ApiError(400, f"{name}[{i}]: parts of type {kind!r} are not taken here, only text", name)
        if not isinstance(part.get("text"), str):
            raise wrong(f"{name}[{i}].text", "a string", part.get("text"))
        out.append(_whole(part["text"], name))
    return "".join(out)


def _whole(text: str, name: str) -> str:
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise HalfPair(400, f"{name} holds half of a surrogate pair, which no text has", name)
    return text


def tool(name: object, description: object, parameters: object, where: str) -> ToolSpec:
    """A tool as declared in a request; its effect is UNKNOWN until somebody says otherwise."""
    if not isinstance(name, str) or not name:
        raise wrong(f"{where}.name", "a string", name)
    if parameters is not None and not isinstance(parameters, dict):
        raise wrong(f"{where}.parameters", "an object", parameters)
    try:
        json.dumps(parameters)
    except RecursionError:
        raise ApiError(400, f"{where}.parameters is nested too deeply", where) from None
    return ToolSpec(name, description if isinstance(description, str) else "", parameters or {})
