"""The state of a Python object: copied, and hashed.

`copy_state` is copy.deepcopy with a short cut for what states are mostly made of (lists, dicts, pydantic models);
everything else goes to deepcopy itself, and objects shared inside the state stay shared. `state_digest` walks the
same structure; equal states give equal hashes whatever the order of dict keys, on every machine and run.
"""

from __future__ import annotations

import copy
import datetime
import decimal
import enum
import gc
import random
import re
import sys
import types
import uuid
import weakref
from collections.abc import Mapping, Set
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

from treewright.envs.errors import TreewrightError
from treewright.envs.types import digest

__all__ = ["ATOMS", "CODE", "copy_state", "state_digest", "state_size"]

ATOMS: frozenset[type] = frozenset(
    {
        type(None), bool, int, float, complex, str, bytes, type(...), decimal.Decimal, uuid.UUID, re.Pattern,
        datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone,
    }
)  # fmt: skip
CODE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type)
_SHARED = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type, weakref.ref)
_MODEL_SLOTS = ("__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")


def copy_state(value: Any) -> Any:
    """A deep copy. Raises TreewrightError naming the type of what cannot be copied."""
    try:
        return _copy(value, {})
    except (TypeError, copy.Error) as error:
        raise TreewrightError(
            f"a {type(value).__name__} cannot be copied: {error}; give copy=, or methods snapshot() -> bytes and "
            "restore(bytes)"
        ) from error


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in ATOMS:
        return value
    found = memo.get(id(value))
    if found is not None:
        return found
    new: Any
    if kind is list:
        memo[id(value)] = new = []
        for item in value:
            new.append(item if type(item) in ATOMS else _copy(item, memo))
    elif kind is dict:
        memo[id(value)] = new = {}
        for key, item in value.items():
            new[_copy(key, memo)] = item if type(item) in ATOMS else _copy(item, memo)
    elif isinstance(value, enum.Enum):
        return value
    elif isinstance(value, BaseModel) and kind.__deepcopy__ is BaseModel.__deepcopy__:
        memo[id(value)] = new = object.__new__(kind)
        object.__setattr__(new, "__dict__", _copy(value.__dict__, memo))
        for slot in _MODEL_SLOTS:
            object.__setattr__(new, slot, copy.copy(getattr(value, slot)) if slot == _MODEL_SLOTS[0] else
                               _copy(getattr(value, slot), memo))  # fmt: skip
    else:
        new = copy.deepcopy(value, memo)
    return new


def state_digest(value: Any) -> str:
    """A 128-bit hash of everything reachable. Raises TreewrightError naming the place that has no readable state."""
    return digest(_text(value))


def state_size(value: Any) -> int:
    """How many bytes everything takes that a copy would copy; for the cap on kept snapshots.

    Counts what Python can see: memory that an extension module holds behind an object is not known.
    """
    seen: set[int] = set()
    waiting, total = [value], 0
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, _SHARED):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item, 64)
        if type(item) in ATOMS:
            continue
        base = getattr(item, "base", None) if hasattr(item, "dtype") else None
        if base is not None:  # a view: the numbers lie in another array
            waiting.append(base)
        elif hasattr(item, "untyped_storage"):
            total += item.untyped_storage().nbytes()
        waiting.extend(gc.get_referents(item))
    return total or sys.getsizeof(value, 64)


def _text(value: Any) -> str:
    out: list[str] = []
    _walk(value, out, "state", [])
    return "".join(out)


def _walk(value: Any, out: list[str], where: str, above: list[int]) -> None:
    kind = type(value)
    if kind in ATOMS or isinstance(value, enum.Enum | PurePath):
        out.append(f"{kind.__name__}:{value!r};")
        return
    if isinstance(value, CODE):
        out.append(f"{kind.__name__}:{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)};")
        return
    if id(value) in above:
        out.append(f"^{len(above) - above.index(id(value))};")
        return
    above.append(id(value))
    out.append(f"{kind.__name__}(")
    _walk_inside(value, out, where, above)
    out.append(")")
    above.pop()


def _walk_inside(value: Any, out: list[str], where: str, above: list[int]) -> None:
    if isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            out.append(f"{key!r}=" if type(key) in ATOMS else f"{state_digest(key)}=")
            _walk(value[key], out, f"{where}[{key!r}]", above)
        if type(value) in (dict,):
            return
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _walk(item, out, f"{where}[{i}]", above)
        if type(value) in (list, tuple):
            return
    elif isinstance(value, Set):
        out.extend(sorted(state_digest(item) for item in value))
        return
    elif isinstance(value, random.Random):
        out.append(repr(value.getstate()))
        return
    elif hasattr(value, "tobytes") and hasattr(value, "dtype"):
        out.append(f"{value.dtype} {getattr(value, 'shape', '')} {value.tobytes().hex()}")
        return
    for name, inner in sorted(_fields(value, where).items()):
        out.append(f"{name}=")
        _walk(inner, out, f"{where}.{name}", above)


def _fields(value: Any, where: str) -> dict[str, Any]:
    """What an object holds in its __dict__ and slots, by name; collections that are not plain give their items."""
    if isinstance(value, BaseModel):
        return {**value.__dict__, **(value.__pydantic_private__ or {}), **(value.__pydantic_extra__ or {})}
    try:
        state = value.__getstate__()
        if state is None:
            value.__reduce_ex__(2)  # a lock or a socket refuses here; an empty object does not
    except TypeError as error:
        raise TreewrightError(
            f"{where} holds a {type(value).__name__}, which has no state that could be hashed; leave it out in "
            "__getstate__, or give fingerprint="
        ) from error
    if isinstance(state, tuple) and len(state) == 2 and all(part is None or isinstance(part, dict) for part in state):
        return {**(state[0] or {}), **(state[1] or {})}
    if hasattr(value, "__iter__") and hasattr(value, "__len__"):
        return {"items": list(value), "state": state}
    if isinstance(state, dict):
        return {str(name): inner for name, inner in state.items()}
    return {} if state is None else {"state": state}
