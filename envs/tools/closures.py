"""Copies of what copy.deepcopy hands on as it is: functions that close over the state, methods of it, locks.

A lambda `lambda n: self.items.append(n)` that an object holds belongs to it. Its copy closes over the copied object. A
function that can be found by its name in a module is nobody's own, and stays what it is. The parts of objects are
copied here too, as deepcopy does it by `__reduce_ex__`, so that functions are found wherever they are held.
"""

from __future__ import annotations

import copyreg
import inspect
import sys
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["LOCKS", "closes_over", "copy_code", "copy_parts", "rebuilt"]

LOCKS: dict[type, Callable[[], Any]] = {
    type(threading.Lock()): threading.Lock,
    type(threading.RLock()): threading.RLock,
}
"""Kinds of locks: a copy has a free one of its own."""
WHOLE = (
    type, types.FunctionType, types.BuiltinFunctionType, types.CodeType, types.ModuleType, weakref.ref, property, range,
)  # fmt: skip
Copier = Callable[[Any, dict[int, Any]], Any]


def closes_over(value: Any) -> bool:
    """A function with variables of its own, or a method of some object."""
    if isinstance(value, types.FunctionType):
        return bool(value.__closure__) and not _by_name(value)
    if isinstance(value, types.BuiltinFunctionType | types.MethodWrapperType):
        return not isinstance(value.__self__, types.ModuleType | type | None)
    return isinstance(value, types.MethodType)


def _by_name(function: types.FunctionType) -> bool:
    found: Any = sys.modules.get(function.__module__ or "")
    for name in function.__qualname__.split("."):
        found = inspect.getattr_static(found, name, None)
    return found is function


def copy_code(value: Any, memo: dict[int, Any], copied: Copier) -> Any:
    """Such a function or method, over copies of what it closes over; itself, where these are the same things."""
    if isinstance(value, types.MethodType):
        return type(value)(value.__func__, copied(value.__self__, memo))
    if not isinstance(value, types.FunctionType):
        new = getattr(copied(value.__self__, memo), value.__name__)
        return memo.setdefault(id(value), new)
    cells = [types.CellType() for _ in value.__closure__ or ()]
    new = types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, tuple(cells))
    memo[id(value)] = new
    changed = False
    for cell, old in zip(cells, value.__closure__ or (), strict=True):
        try:
            held = old.cell_contents
        except ValueError:  # not yet assigned
            continue
        changed |= _set(cell, copied(held, memo)) is not held
    if not changed:
        memo[id(value)] = value
        return value
    new.__qualname__, new.__module__, new.__doc__ = value.__qualname__, value.__module__, value.__doc__
    new.__annotations__, new.__kwdefaults__ = value.__annotations__, value.__kwdefaults__
    vars(new).update(copied(vars(value), memo))
    return new


def _set(cell: types.CellType, held: Any) -> Any:
    cell.cell_contents = held
    return held


def rebuilt(value: Any) -> bool:
    """Is it copied part by part? Not what says itself how, nor what is always handed on."""
    kind = type(value)
    return not isinstance(value, WHOLE) and not hasattr(kind, "__deepcopy__")


def copy_parts(value: Any, memo: dict[int, Any], copied: Copier) -> Any:
    """An object made anew of copied parts, as copy.deepcopy makes it."""
    kind = type(value)
    if kind is tuple:
        items = [copied(item, memo) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return memo.setdefault(id(value), tuple(items))
    reduce = copyreg.dispatch_table.get(kind)
    made = reduce(value) if reduce else value.__reduce_ex__(4)
    if isinstance(made, str):
        return value
    memo.setdefault(id(memo), []).append(made)  # so that no id in the memo is used again
    make, given, state, items, pairs = (*made, None, None, None)[:5]
    new = make(*[copied(part, memo) for part in given])
    memo[id(value)] = new
    if state is not None:
        state = copied(state, memo)
        memo[id(memo)].append(state)
        if hasattr(new, "__setstate__"):
            new.__setstate__(state)
        else:
            plain, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
            vars(new).update(plain) if plain else None
            for name, part in (slots or {}).items():
                setattr(new, name, part)
    for item in items or ():
        new.append(copied(item, memo)) if not isinstance(new, set) else new.add(copied(item, memo))
    for key, item in pairs or ():
        new[copied(key, memo)] = copied(item, memo)
    return new
