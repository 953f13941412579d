"""Does a Python object keep to itself? Read from its code, so that a small world needs no declaration.

    outside([Shelf])            None: whatever its methods do happens in the object alone, and a copy undoes it
    outside([Mailer])           "Mailer.send uses smtplib"

The code of every method is read, and of everything it names: what is found must be plain data, builtins that touch
nothing, modules of KEPT, or further code of which the same holds. Anything else (files, processes, the network, a
library that is not known, an object of C) counts as a way out, also where it is harmless: then the owner says so. This
is no defence against code that hides what it does; it is there so that nobody sends mail by forgetting a word.
"""

from __future__ import annotations

import builtins
import collections
import dis
import enum
import functools
import inspect
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["outside"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


KEPT = _words("""
    abc base64 bisect calendar cmath collections contextlib copy dataclasses datetime decimal difflib enum fractions
    functools hashlib heapq itertools json math numbers operator pydantic pydantic_core random re reprlib statistics
    string textwrap time types typing typing_extensions unicodedata uuid zoneinfo __future__
""")
OWN = ("errors", "types", "tools.world", "tools.signature")
OUT = _words("open exec eval compile __import__ input print breakpoint globals exit quit help memoryview")
CHANGES = _words("""
    append add update extend insert pop popitem remove discard clear setdefault sort reverse appendleft popleft
    extendleft rotate subtract
""")
PARTS = _words("threading.Lock threading.RLock asyncio.sleep asyncio.Lock")
MOST = 100_000
HEAP = 1 << 9  # of a class that was made by a class statement
PLAIN = (
    str,
    bytes,
    bytearray,
    int,
    float,
    complex,
    type(None),
    type(...),
    type(NotImplemented),
    range,
    slice,
    re.Pattern,
)


def outside(things: Iterable[Any]) -> str | None:
    """What the code of these classes, functions or objects may reach beside the objects themselves; None if nothing.

    The answer names the function and what it uses, such as "Shelf.put uses open".
    """
    seen: set[int] = set()
    waiting = [("", thing) for thing in things]
    keep: list[Any] = []  # so that no id in `seen` is used again
    while waiting:
        if len(keep) > MOST:
            return f"more than {MOST} objects, too many to look at"
        user, thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        keep.append(thing)
        found = _parts(thing, user)
        if isinstance(found, str):
            return f"{user or 'the world'} uses {found}"
        waiting += found
    return None


Part = tuple[str, Any]
"""Who uses it, and what is used."""


def _parts(thing: Any, user: str) -> list[Part] | str:
    """What a thing is made of, still to be looked at; or its name, where nobody can see what it does."""
    if isinstance(thing, _Unseen):
        return thing.what
    if isinstance(thing, PLAIN):
        return []
    if isinstance(thing, types.ModuleType):
        return [] if _kept(thing.__name__) else thing.__name__
    if isinstance(thing, type):
        return _of_class(thing)
    if isinstance(thing, types.FunctionType):
        return _of_wrapper(thing) if _kept(thing.__globals__.get("__name__")) else list(_of_code(thing))
    if isinstance(thing, types.MethodType):
        return [(user, thing.__func__), (user, thing.__self__)]
    if isinstance(thing, types.BuiltinFunctionType):
        return _of_builtin(thing)
    if isinstance(thing, staticmethod | classmethod):
        return [(user, thing.__func__)]
    if isinstance(thing, property):
        return [(user, part) for part in (thing.fget, thing.fset, thing.fdel)]
    if isinstance(thing, functools.cached_property):
        return [(user, thing.func)]
    if isinstance(thing, functools.partial | functools.partialmethod):
        return [(user, thing.func), (user, thing.args), (user, thing.keywords)]
    if isinstance(thing, Mapping) and _kept(type(thing).__module__):
        return [(user, part) for pair in thing.items() for part in pair]
    if isinstance(thing, list | tuple | set | frozenset) and _kept(type(thing).__module__):
        return [(user, part) for part in thing]
    if inspect.isfunction(wrapped := getattr(thing, "__wrapped__", None)):
        return [(user, wrapped)]  # functools.cache and its like
    return _of_instance(thing, user)


def _kept(module: str | None) -> bool:
    if module is None:
        return False
    first = module.split(".")[0]
    own = module in (f"treewright.envs.{name}" for name in OWN)
    return own or module == "builtins" or first.lstrip("_") in KEPT or first.startswith("namedtuple_")


def _of_wrapper(function: types.FunctionType) -> list[Part]:
    """A function of a library that keeps to itself; what it wraps is somebody else's."""
    held = [_cell(cell) for cell in function.__closure__ or ()]
    return [
        (function.__qualname__, part) for part in held if isinstance(part, types.FunctionType | types.MethodType | type)
    ]


def _of_builtin(thing: types.BuiltinFunctionType) -> list[Part] | str:
    owner = thing.__self__
    if isinstance(owner, types.ModuleType) or owner is None:
        name = thing.__module__ or getattr(owner, "__name__", "?")
        return [] if _kept(name) and (name != "builtins" or thing.__name__ not in OUT) else thing.__qualname__
    return [("", owner)]


def _of_class(kind: type) -> list[Part] | str:
    if _kept(kind.__module__):
        return []
    if issubclass(kind, enum.Enum):
        coded = (types.FunctionType, staticmethod, classmethod)
        own = [value for value in vars(kind).values() if isinstance(value, coded)]
        return [(kind.__qualname__, part) for part in (*own, *(member.value for member in kind))]
    if not kind.__flags__ & HEAP or not isinstance(vars(kind).get("__module__"), str) or _in_c(kind):
        return f"{kind.__module__}.{kind.__qualname__}"
    parts: list[Part] = [(kind.__qualname__, base) for base in kind.__mro__[1:]]
    members = {name: value for name, value in vars(kind).items() if not _mark(name, value)}
    return parts + [(kind.__qualname__, value) for value in members.values()]


def _in_c(kind: type) -> bool:
    """Methods that cannot be read: a class written in C, or by a library that hides its code."""
    kinds = (types.MethodDescriptorType, types.ClassMethodDescriptorType, types.BuiltinFunctionType)
    return any(isinstance(value, kinds) for name, value in vars(kind).items() if not name.startswith("__"))


def _mark(name: str, value: Any) -> bool:
    """What Python and its libraries write into a class beside the code of its author."""
    described = isinstance(value, types.GetSetDescriptorType | types.MemberDescriptorType | types.WrapperDescriptorType)
    made = name.startswith(("__dataclass", "__pydantic", "__annotat", "__abstract", "_abc", "model_")) and not (
        inspect.isfunction(value)
    )
    return described or made or name in ("__weakref__", "__dict__", "__module__", "__doc__", "__class_getitem__")


def _of_instance(thing: Any, user: str) -> list[Part] | str:
    kind = type(thing)
    if _kept(kind.__module__) and not isinstance(thing, types.FrameType | types.GeneratorType):
        return []
    held = [getattr(thing, name) for c in kind.__mro__ for name in _slots(c) if hasattr(thing, name)]
    held += vars(thing).values() if hasattr(thing, "__dict__") else []
    return [(user, kind), *((kind.__qualname__, part) for part in held)]


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _of_code(function: types.FunctionType) -> Iterator[Part]:
    """Everything that a function names: globals, cells, imports, defaults; its own, and those of functions inside."""
    name = function.__qualname__
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    for value in (function.__defaults__, function.__kwdefaults__):
        yield name, value
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [part for part in code.co_consts if isinstance(part, types.CodeType)]
        steps = list(dis.get_instructions(code))
        for i, step in enumerate(steps):
            own = step.argval in cells and "DEREF" in step.opname
            if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") or (
                own and step.opname.startswith(("STORE", "DELETE"))
            ):
                yield name, _Unseen(f"the variable {step.argval} outside the object")
            elif step.opname == "IMPORT_NAME":
                yield name, sys.modules.get(step.argval) or _Unseen(step.argval)
            elif own or "GLOBAL" in step.opname or step.opname == "LOAD_NAME":
                value = _cell(cells[step.argval]) if own else _named(function, step.argval)
                if not _harmless(value, steps[i + 1 :]):
                    yield (
                        name,
                        _Unseen(f"{step.argval} outside the object") if _changed(value, steps[i + 1 :]) else value,
                    )


def _harmless(value: Any, after: Sequence[dis.Instruction]) -> bool:
    """A part of a module that keeps to itself though the rest does not: a lock, a pause."""
    names = [step.argval for step in after[:1] if "ATTR" in step.opname or "METHOD" in step.opname]
    return isinstance(value, types.ModuleType) and any(f"{value.__name__}.{name}" in PARTS for name in names)


def _changed(value: Any, after: Sequence[dis.Instruction]) -> bool:
    """A container that all objects share, and that this code plainly writes to."""
    if not isinstance(value, list | dict | set | bytearray | collections.deque):
        return False
    calls = any(step.argval in CHANGES and ("ATTR" in step.opname or "METHOD" in step.opname) for step in after[:1])
    return calls or any(step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR") for step in after[:2])


class _Unseen:
    """A way out that has no object to look at."""

    def __init__(self, what: str) -> None:
        self.what = what


def _named(function: types.FunctionType, name: str) -> Any:
    if name == "__builtins__":
        return _Unseen(name)
    if name in function.__globals__:
        return function.__globals__[name]
    return getattr(builtins, name, None)


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None
