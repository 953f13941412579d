"""Does a Python object keep to itself? Read from its code, so that a small world needs no declaration.

    outside([Shelf])            None: whatever its methods do happens in the object alone, and a copy undoes it
    outside([Mailer])           "Mailer.send uses smtplib"

The code of every method is read, and of everything it names: what is found must be plain data, builtins that touch
nothing, modules of KEPT, or further code of which the same holds. Anything else (files, processes, the network, a
library that is not known, an object of C) counts as a way out, also where it is harmless: then the owner says so. This
is no defence against code that hides what it does; it is there so that nobody sends mail by forgetting a word.
"""

from __future__ import annotations

import asyncio
import dis
import enum
import functools
import gc
import inspect
import itertools
import re
import sys
import threading
import types
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from treewright.envs.tools.shared import AT_IMPORT, CHANGES, CONTAINERS, Changes, cell_of, named
from treewright.envs.tools.stack import words
from treewright.envs.tools.typed import is_annotation, of_annotation, of_model, of_parameters

__all__ = ["outside"]


KEPT = words("""
    abc base64 bisect calendar cmath collections contextlib copy dataclasses datetime decimal difflib enum fractions
    functools hashlib heapq itertools json math numbers operator pydantic pydantic_core random re reprlib statistics
    string textwrap time types typing typing_extensions unicodedata uuid zoneinfo __future__
""")
OWN = ("errors", "types", "tools.world", "tools.signature")
OUT = words("open exec eval compile __import__ input print breakpoint globals exit quit help memoryview")
HIDING = words("__subclasses__ __globals__ __builtins__ f_globals f_back gi_frame cr_frame")
PARTS = words("threading.Lock threading.RLock asyncio.sleep asyncio.Lock")
LOCKS: tuple[type, ...] = (type(threading.Lock()), type(threading.RLock()), asyncio.Lock)
HARMLESS = (threading.Lock, threading.RLock, asyncio.sleep, asyncio.Lock)
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
ITEMS = (list, dict, tuple, set, frozenset)
CODED = (types.FunctionType, staticmethod, classmethod)
REFLECTED = (types.CodeType, types.GetSetDescriptorType, types.MemberDescriptorType, types.WrapperDescriptorType)


def outside(things: Iterable[Any]) -> str | None:
    """What the code of these classes, functions or objects may reach beside the objects themselves; None if nothing.

    The answer names the function and what it uses, such as "Shelf.put uses open".
    """
    roots = list(things)
    return _Look(roots).answer()


Part = tuple[str, Any]
"""Who uses it, and what is used."""


class _Unseen:
    """A way out that has no object to look at."""

    def __init__(self, what: str) -> None:
        self.what = what


class _Held:
    """A part of the object itself: a copy of the object has its own."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing


class _Method:
    """A function as a method of a class, which may be one that inherits it."""

    def __init__(self, kind: type, function: types.FunctionType, of_class: bool) -> None:
        self.kind, self.function, self.of_class = kind, function, of_class


class _Look:
    """One walk over everything that the roots reach."""

    def __init__(self, roots: list[Any]) -> None:
        self.changes = Changes()
        self.seen: set[tuple[int, bool]] = set()
        self.keep: list[Any] = []  # so that no id in `seen` is used again
        self.members: list[tuple[str, str]] = []  # attributes of members of an Enum, and how to call them
        self.waiting: list[Part] = []
        for root in roots:
            holds = not isinstance(root, type | types.FunctionType | types.MethodType | types.ModuleType)
            self.waiting += [("", part) for part in _of_tools(root)]
            self.waiting.append(("", _Held(root) if holds and not isinstance(root, functools.partial) else root))

    def answer(self) -> str | None:
        while self.waiting:
            if len(self.keep) > MOST:
                return f"more than {MOST} objects, too many to look at"
            user, thing = self.waiting.pop()
            held = isinstance(thing, _Held)
            thing = thing.thing if held else thing
            if type(thing) in PLAIN or (id(thing), held) in self.seen:
                continue
            self.seen.add((id(thing), held))
            self.keep.append(thing)
            found = self._parts(thing, user, held)
            if isinstance(found, str):
                return f"{user or 'the world'} uses {found}"
            self.waiting += found
        for name, what in self.members:
            if name in self.changes.names:
                return f"the world uses {_shared(what)}"
        return None

    def _parts(self, thing: Any, user: str, held: bool) -> list[Part] | str:
        """What a thing is made of, still to be looked at; or its name, where nobody can see what it does."""
        if type(thing) in ITEMS:
            parts = [part for part in gc.get_referents(thing) if type(part) not in PLAIN]
            return [(user, _Held(part) if held else part) for part in parts]
        if isinstance(thing, _Unseen):
            return thing.what
        if isinstance(thing, PLAIN + REFLECTED + LOCKS) or any(thing is part for part in HARMLESS):
            return []
        if isinstance(thing, _Method):
            found = self.changes.of(thing.function, thing.kind, of_class=thing.of_class)
            return [(thing.function.__qualname__, _Unseen(_shared(what))) for what in found]
        if isinstance(thing, types.ModuleType):
            return [] if _kept(thing.__name__) else thing.__name__
        if is_annotation(thing):
            origin = getattr(thing, "__origin__", None)
            own = [origin] if isinstance(origin, type) and origin.__module__ not in sys.stdlib_module_names else []
            return [(user, part) for part in (*own, *of_annotation(thing))]
        if isinstance(thing, type):
            return self._of_class(thing)
        if isinstance(thing, types.FunctionType):
            return self._of_function(thing, held)
        if isinstance(thing, types.BuiltinFunctionType | types.MethodWrapperType):
            return _of_builtin(thing, held)
        if isinstance(thing, property):
            return [(user, part) for part in (thing.fget, thing.fset, thing.fdel)]
        return self._of_instance(thing, user, held)

    def _of_function(self, function: types.FunctionType, held: bool) -> list[Part]:
        name = function.__qualname__
        if _of_library(function):
            # A function of a library that keeps to itself; what it closes over may be somebody else's.
            cells = [cell_of(cell) for cell in function.__closure__ or ()]
            return [(name, part) for part in cells if not isinstance(part, weakref.ref | weakref.WeakKeyDictionary)]
        found = self.changes.of(function, held=held)
        return [*((name, _Unseen(_shared(what))) for what in found), *_of_code(function, held)]

    def _of_class(self, kind: type) -> list[Part] | str:
        name = kind.__qualname__
        parts: list[Part] = [(name, part) for part in of_model(kind)]
        if _kept(kind.__module__):
            return parts
        if issubclass(kind, enum.Enum):
            for member in kind:
                own = {n: v for n, v in vars(member).items() if not (n.startswith("_") and n.endswith("_"))}
                given = {n: v for n, v in own.items() if n not in self.changes.stored(kind)}  # not by its own code
                self.members += [(n, f"{member}.{n}") for n, v in given.items() if not isinstance(v, (*PLAIN, tuple))]
                parts += [(name, part) for part in (member.value, *own.values())]
            return parts + self._methods(kind) + [(name, v) for v in vars(kind).values() if isinstance(v, CODED)]
        if not kind.__flags__ & HEAP or not isinstance(vars(kind).get("__module__"), str) or _in_c(kind):
            return f"{kind.__module__}.{name}"
        parts += [(name, base) for base in kind.__mro__[1:]] + self._methods(kind)
        if not _kept(type(kind).__module__):
            parts.append((name, type(kind)))
        return parts + [(name, value) for field, value in vars(kind).items() if not _mark(field, value)]

    def _methods(self, kind: type) -> list[Part]:
        """The methods that a class has, its bases' with them, to see what they change of the class itself."""
        out: list[Part] = []
        for base in kind.__mro__:
            for field, value in {} if _kept(base.__module__) else vars(base).items():
                of_class = isinstance(value, classmethod) or field == "__new__"
                if isinstance(value, staticmethod) and not of_class:
                    continue
                given = (value.fget, value.fset, value.fdel) if isinstance(value, property) else (value,)
                for part in given:
                    part = getattr(part, "__func__", getattr(part, "func", part))
                    if isinstance(part, types.FunctionType) and field not in AT_IMPORT and not _of_library(part):
                        out.append((kind.__qualname__, _Method(kind, part, of_class)))
        return out

    def _of_instance(self, thing: Any, user: str, held: bool) -> list[Part] | str:
        """Everything that Python's own collector sees an object hold: items, attributes, slots, what C code keeps."""
        kind = type(thing)
        if isinstance(thing, (weakref.ref, *weakref.ProxyTypes)):
            return "a weak reference"
        if not held and isinstance(thing, Iterator):
            return _shared(f"an iterator ({kind.__name__})")
        own = getattr(thing, "__dict__", None)
        if isinstance(own, dict) and not isinstance(thing, enum.Enum):
            self.changes.own.setdefault(kind, set()).update(map(str, own))
        parts = [part for part in gc.get_referents(thing) if part is not kind]
        if isinstance(thing, functools._lru_cache_wrapper):
            parts = [thing.__wrapped__]
        if isinstance(thing, enum.Enum):
            parts = []  # its class has them
        mine = user if _kept(kind.__module__) else kind.__qualname__
        return [(user, kind), *((mine, _Held(part) if held else part) for part in parts)]


def _shared(what: str) -> str:
    return f"{what} outside the object, which all copies of it share"


def _of_tools(root: Any) -> list[Any]:
    """What the arguments of its tools are checked by."""
    kind = root if isinstance(root, type) else type(root)
    if isinstance(root, types.FunctionType | types.MethodType):
        return of_parameters(root)
    if _kept(kind.__module__):
        return []
    methods = [inspect.getattr_static(kind, name, None) for name in dir(kind) if not name.startswith("_")]
    coded = [getattr(method, "__func__", method) for method in methods if isinstance(method, CODED)]
    return [part for method in coded for part in of_parameters(method)]


def _kept(module: str | None) -> bool:
    if not isinstance(module, str):
        return False
    first = module.split(".")[0]
    own = module in (f"treewright.envs.{name}" for name in OWN)
    return own or module == "builtins" or first.lstrip("_") in KEPT or first.startswith("namedtuple_")


def _of_library(function: types.FunctionType) -> bool:
    return _kept(function.__globals__.get("__name__"))


def _of_builtin(thing: Any, held: bool) -> list[Part] | str:
    owner = thing.__self__
    if isinstance(owner, types.ModuleType) or owner is None:
        name = thing.__module__ or getattr(owner, "__name__", "?")
        return [] if _kept(name) and (name != "builtins" or thing.__name__ not in OUT) else str(thing.__qualname__)
    if thing.__name__ in HIDING:
        return str(thing.__qualname__)
    if not held and thing.__name__ in CHANGES and isinstance(owner, CONTAINERS):
        return _shared(f"{thing.__name__} of a {type(owner).__name__}")
    return [("", _Held(owner) if held else owner)]


def _in_c(kind: type) -> bool:
    """Methods that cannot be read: a class written in C, or by a library that hides its code."""
    kinds = (types.MethodDescriptorType, types.ClassMethodDescriptorType, types.BuiltinFunctionType)
    return any(isinstance(value, kinds) for name, value in vars(kind).items() if not name.startswith("__"))


def _mark(name: str, value: Any) -> bool:
    """What Python and its libraries write into a class beside the code of its author."""
    starts = ("__dataclass", "__pydantic", "__annotat", "__abstract", "_abc_impl", "__private_attr")
    made = name.startswith(starts) and not inspect.isfunction(value)
    written = words("__weakref__ __dict__ __module__ __doc__ __class_getitem__ model_fields model_computed_fields")
    return isinstance(value, REFLECTED) or made or name in written


def _of_code(function: types.FunctionType, held: bool) -> Iterator[Part]:
    """Everything that a function names: globals, cells, imports, defaults; its own, and those of functions inside."""
    name = function.__qualname__
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    for value in (function.__defaults__, function.__kwdefaults__, *vars(function).values()):
        yield name, value
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [part for part in code.co_consts if isinstance(part, types.CodeType)]
        steps = list(dis.get_instructions(code))
        for i, step in enumerate(steps):
            own = step.argval in cells and "DEREF" in step.opname
            stores = step.opname.startswith(("STORE", "DELETE"))
            if stores and (step.opname.endswith("GLOBAL") or (own and not held)):
                yield name, _Unseen(f"the variable {step.argval} outside the object")
            elif step.opname == "IMPORT_NAME":
                if not _only_parts(steps, i):
                    yield name, sys.modules.get(step.argval) or _Unseen(step.argval)
            elif step.argval in HIDING and ("ATTR" in step.opname or "METHOD" in step.opname):
                yield name, _Unseen(step.argval)
            elif own and held:
                yield name, _Held(cell_of(cells[step.argval]))
            elif own or "GLOBAL" in step.opname or step.opname == "LOAD_NAME":
                value = cell_of(cells[step.argval]) if own else _named(function, step.argval)
                if not (isinstance(value, types.ModuleType) and _is_part(value.__name__, steps[i + 1 : i + 2])):
                    yield name, value


def _is_part(module: str, after: list[dis.Instruction]) -> bool:
    """A part of a module that keeps to itself though the rest does not: a lock, a pause."""
    taken = [step.argval for step in after if "ATTR" in step.opname or "METHOD" in step.opname]
    return any(f"{module}.{name}" in PARTS for name in taken)


def _only_parts(steps: list[dis.Instruction], at: int) -> bool:
    """Does a function import a module for such parts alone?"""
    module, after = steps[at].argval, steps[at + 1 :]
    if after and after[0].opname == "IMPORT_FROM":
        taken = [step.argval for step in itertools.takewhile(lambda step: step.opname != "POP_TOP", after)]
        return all(f"{module}.{name}" in PARTS for name in taken[::2])
    local = after[0].argval if after and after[0].opname.startswith("STORE_") else None
    uses = [i for i, step in enumerate(steps) if step.opname.startswith("LOAD_") and step.argval == local]
    return bool(uses) and all(_is_part(module, steps[i + 1 : i + 2]) for i in uses)


def _named(function: types.FunctionType, name: str) -> Any:
    return _Unseen(name) if name == "__builtins__" else named(function, name)
