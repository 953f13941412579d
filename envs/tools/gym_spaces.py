"""Gymnasium's spaces as JSON schemas: bounds, character sets, and what a state allows at the moment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from treewright.envs.errors import InvalidAction, TreewrightError

__all__ = ["action_schema", "allowed_now", "as_member"]

MASKS = ("action_mask", "action_masks")
LISTS = ("admissible_commands", "legal_actions", "valid_actions", "available_actions", "legal_moves")
EACH = 64  # numbers of an array that are described one by one where their bounds differ


def action_schema(space: Any) -> dict[str, Any]:
    """The JSON schema of a space's members. Raises TreewrightError for kinds that JSON cannot say."""
    kind = _kind(space)
    if kind == "Discrete":
        return {"type": "integer", "minimum": int(space.start), "maximum": int(space.start + space.n - 1)}
    if kind == "Box":
        return _array(space.dtype, np.asarray(space.low), np.asarray(space.high))
    if kind == "MultiDiscrete":
        low = np.asarray(getattr(space, "start", np.zeros_like(space.nvec)), int)
        return _array(space.dtype, low, low + np.asarray(space.nvec, int) - 1)
    if kind == "MultiBinary":
        return _array(space.dtype, np.zeros(space.shape, int), np.ones(space.shape, int))
    if kind == "Text":
        return _text(space)
    if kind == "Dict":
        inner = {key: action_schema(value) for key, value in space.spaces.items()}
        return {"type": "object", "properties": inner, "required": list(inner), "additionalProperties": False}
    if kind == "Tuple":
        return _fixed([action_schema(value) for value in space.spaces])
    if kind == "Sequence":
        return {"type": "array", "items": action_schema(space.feature_space)}
    if kind == "OneOf":
        return {"anyOf": [_fixed([{"const": i}, action_schema(one)]) for i, one in enumerate(space.spaces)]}
    raise TreewrightError(f"actions of a {type(space).__name__} space cannot be written as JSON; wrap the environment")


def _kind(space: Any) -> str:
    """The name of Gymnasium's own class that a space is of or comes from; its own name where it is of none."""
    named = [kind for kind in type(space).__mro__ if kind.__module__.startswith("gymnasium.spaces.")]
    return named[0].__name__ if named and named[0].__name__ != "Space" else type(space).__name__


def _fixed(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"type": "array", "prefixItems": list(items), "minItems": len(items), "maxItems": len(items)}


def _array(dtype: Any, low: np.ndarray, high: np.ndarray) -> dict[str, Any]:
    """Numbers in nested arrays of this shape, each within its bounds."""
    if not low.shape:
        return _number(dtype, low, high)
    rows = list(zip(low, high, strict=True))
    alike = all(np.array_equal(a, low[0]) and np.array_equal(b, high[0]) for a, b in rows[1:])
    if not alike and low.size <= EACH:
        return _fixed([_array(dtype, a, b) for a, b in rows])
    inner = _array(dtype, low.min(0), high.max(0)) if rows else {}
    return {"type": "array", "items": inner, "minItems": len(rows), "maxItems": len(rows)}


def _number(dtype: Any, low: Any, high: Any) -> dict[str, Any]:
    whole = not np.issubdtype(dtype, np.floating)
    schema: dict[str, Any] = {"type": "integer" if whole else "number"}
    ends = (np.iinfo(dtype).min, np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else (-np.inf, np.inf)
    for name, bound, end in (("minimum", low, ends[0]), ("maximum", high, ends[1])):
        if np.isfinite(bound) and bound != end:
            # A float32 bound of 0.7 is written as 0.7, not as the double beside it.
            schema[name] = int(bound) if whole else float(str(np.asarray(bound, dtype)[()]))
    return schema


def _text(space: Any) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": "string", "minLength": int(space.min_length), "maxLength": int(space.max_length),
    }  # fmt: skip
    own = getattr(type(space).contains, "__module__", "").startswith("gymnasium.spaces.")
    if own and space.character_set:  # a space that judges by itself may take more than its character set
        schema["pattern"] = f"^[{_characters(frozenset(space.character_set))}]*$"
    return schema


@lru_cache(maxsize=256)
def _characters(known: frozenset[str]) -> str:
    """The inside of a character class; neighbours are written as a range."""
    out: list[str] = []
    runs: list[list[int]] = []
    for code in sorted(map(ord, known)):
        if runs and code == runs[-1][1] + 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    for first, last in runs:
        out.append(_escaped(first) if first == last else f"{_escaped(first)}{'-' * (last > first + 1)}{_escaped(last)}")
    return "".join(out)


def _escaped(code: int) -> str:
    return f"\\{chr(code)}" if chr(code) in "\\[]^-" else chr(code)


# -- what a state allows ----------------------------------------------------------------------------------------------


def allowed_now(space: Any, schema: Mapping[str, Any], info: Any, seen: Any) -> Mapping[str, Any]:
    """The schema narrowed to what `info` (or an observation with a mask in it) allows in this state.

    Read are `action_mask`, in the form that the space's own sample(mask=…) takes, and lists such as TextWorld's
    `admissible_commands`. Where they say nothing, or that nothing is allowed, the schema comes back as it is: then
    the world refuses.
    """
    for source in (info, seen):
        if not isinstance(source, Mapping):
            continue
        for name in MASKS:
            if (found := _unmasked(space, source.get(name))) is not None:
                return found
        for name in LISTS:
            given = source.get(name)
            if isinstance(given, (list, tuple, set, frozenset, np.ndarray)) and (listed := _listed(space, given)):
                return {"type": schema["type"], "enum": listed}
    return schema


def _unmasked(space: Any, mask: Any) -> dict[str, Any] | None:
    if mask is None:
        return None
    if _kind(space) == "Discrete":
        allowed = _marked(mask, space.n, space.start)
        return {"type": "integer", "enum": allowed} if allowed else None
    if _kind(space) == "MultiDiscrete" and len(space.shape) == 1 and len(mask) == len(space.nvec):
        starts = getattr(space, "start", np.zeros_like(space.nvec))
        rows = [_marked(row, n, start) for row, n, start in zip(mask, space.nvec, starts, strict=True)]
        return _fixed([{"type": "integer", "enum": row} for row in rows]) if all(rows) else None
    return None


def _marked(mask: Any, count: Any, start: Any) -> list[int]:
    marks = np.asarray(mask)
    return [int(i + start) for i in np.flatnonzero(marks)] if marks.shape == (int(count),) else []


def _listed(space: Any, given: Any) -> list[Any]:
    items = sorted(given, key=repr) if isinstance(given, (set, frozenset)) else list(given)
    plain = [item.item() if isinstance(item, np.generic) else item for item in items]
    kind: type = int if _kind(space) == "Discrete" else str
    return list(dict.fromkeys(plain)) if all(isinstance(item, kind) for item in plain) else []


# -- values -----------------------------------------------------------------------------------------------------------


def as_member(space: Any, given: Any) -> Any:
    """The member of the space that JSON spells. Raises InvalidAction where there is none."""
    value = _value(space, given)
    try:
        inside = bool(space.contains(value))
    except (TypeError, ValueError, AttributeError):
        inside = False
    if not inside:
        raise InvalidAction(f"act action: {json.dumps(given, ensure_ascii=False)[:200]} is not in {str(space)[:200]}")
    return value


def _value(space: Any, given: Any) -> Any:
    kind = _kind(space)
    try:
        if kind == "Discrete":
            return int(given)
        if kind == "Dict":
            return {key: _value(inner, given[key]) for key, inner in space.spaces.items()}
        if kind == "Tuple":
            return tuple(_value(inner, item) for inner, item in zip(space.spaces, given, strict=True))
        if kind == "OneOf":
            return (int(given[0]), _value(space.spaces[int(given[0])], given[1]))
        if kind == "Sequence":
            members = [_value(space.feature_space, item) for item in given]
            return np.stack(members) if getattr(space, "stack", False) and members else tuple(members)
        return given if kind == "Text" else np.asarray(given, dtype=space.dtype)
    except (OverflowError, TypeError, ValueError, KeyError, IndexError) as error:
        raise InvalidAction(f"act action: {error}") from error
