"""Which field of a session differs: two sessions are laid beside each other, not their fingerprints."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Set
from pathlib import PurePath
from random import Random
from typing import Any

from treewright.envs.tools.state import ATOMS, CODE
from treewright.envs.types import digest

__all__ = ["differing", "fields_of", "text_difference"]

MOST, DEEPEST = 20_000, 24
AROUND = 60


def fields_of(env: Any) -> dict[str, str]:
    """Everything in a session that a fingerprint could depend on: the place of each value, and the value as text.

    Looked at is the object behind the session where it has one (a property `object`), else the session itself.
    """
    out: dict[str, str] = {}
    try:
        behind = env.object
    except Exception:  # none, or none yet
        behind = env
    _walk(behind, "", out, [])
    return out


def differing(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """The places whose values differ or stand on one side only, in the order of `found`."""
    places = [*found, *(place for place in expected if place not in found)]
    return [place for place in places if found.get(place) != expected.get(place)]


def text_difference(found: str, expected: str) -> str:
    """'is …, expected …', of long texts only the part around the first difference."""
    if max(len(found), len(expected)) <= 2 * AROUND:
        return f"is {found!r}, expected {expected!r}"
    pairs = enumerate(zip(found, expected, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(found), len(expected)))
    start = max(at - AROUND // 2, 0)
    seen, wanted = found[start : at + AROUND], expected[start : at + AROUND]
    return f"differs at character {at}: …{seen!r}…, expected …{wanted!r}…"


def _walk(value: Any, place: str, out: dict[str, str], above: list[int]) -> None:
    kind = type(value)
    if len(out) >= MOST or isinstance(value, CODE):
        return
    if kind in ATOMS or isinstance(value, enum.Enum | PurePath):
        out[place or "state"] = repr(value)
        return
    if id(value) in above or len(above) > DEEPEST:
        return
    above.append(id(value))
    for name, inner in _inside(value, place, out):
        _walk(inner, name, out, above)
    above.pop()


def _inside(value: Any, place: str, out: dict[str, str]) -> list[tuple[str, Any]]:
    """What a value holds, with the place of each; what can only be told as a whole goes to `out`."""
    if isinstance(value, Mapping):
        return [(f"{place}[{key!r}]", value[key]) for key in value]
    if isinstance(value, list | tuple):
        return [(f"{place}[{i}]", item) for i, item in enumerate(value)]
    if isinstance(value, Set):
        out[place or "state"] = "{" + ", ".join(sorted(map(repr, value))) + "}"
        return []
    if isinstance(value, Random):
        out[place or "state"] = f"random numbers at {digest(repr(value.getstate()))[:8]}"
        return []
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):
        out[place or "state"] = f"{value.dtype} {getattr(value, 'shape', '')} {digest(value.tobytes())[:8]}"
        return []
    names = [name for kind in type(value).__mro__ for name in _slots(kind)]
    held = {**{name: getattr(value, name) for name in names if hasattr(value, name)}, **getattr(value, "__dict__", {})}
    return [(f"{place}.{name}" if place else name, inner) for name, inner in sorted(held.items())]


def _slots(kind: type) -> tuple[str, ...]:
    given = kind.__dict__.get("__slots__", ())
    names = (given,) if isinstance(given, str) else tuple(given)
    return tuple(name for name in names if name not in ("__weakref__", "__dict__"))
