"""What code changes that a copy of an object does not bring back: globals, classes, caches, defaults, iterators.

    Changes().of(Shelf.put, Shelf)          ["Shelf.items"], a list of the class

The bytecode is read once from top to bottom, and beside every value on its stack stands where the value comes from: an
argument, or a thing that the process holds once. A store into such a thing, or a call of a method that changes it, is
a change; functions that are called are read too, so that a thing handed on is not lost. What a name stands for is
looked up as it is now. Values that come from elsewhere have no origin, and nothing is said of them.
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
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from treewright.envs.tools.stack import Frame, merged, words

__all__ = ["AT_IMPORT", "CHANGES", "CONTAINERS", "Changes", "cell_of", "named"]

CHANGES = words("""
    append add update extend insert pop popitem remove discard clear setdefault sort reverse appendleft popleft
    extendleft rotate subtract move_to_end difference_update intersection_update symmetric_difference_update
    __setitem__ __delitem__ __iadd__ __ior__
""")
READS = words("get values items setdefault pop popitem popleft copy __getitem__ elements")
# builtins and functions of the standard library that change their first argument
WRITERS = words("""
    setattr delattr next heappush heappop heapify heapreplace heappushpop insort insort_left insort_right shuffle
    setitem delitem iadd iconcat ior
""")
THROUGH = words("iter reversed enumerate zip getattr min max filter map")
AT_IMPORT = frozenset(["__init_subclass__", "__set_name__", "__class_getitem__"])
CONTAINERS = (list, dict, set, bytearray, collections.deque)
PLAIN = (
    str, bytes, int, float, complex, type(None), type(...), type(NotImplemented), range, slice, re.Pattern,
)  # fmt: skip
CACHE = type(functools.cache(len))
UNKNOWN: Any = object()
DEEP, MOST = 40, 64


@dataclass(frozen=True)
class Origin:
    """Where a value comes from: an argument of the function, or something that the process holds once."""

    what: str = ""  # how a sentence calls it; empty for arguments
    argument: int = -1
    kind: type | None = None  # the class of the argument itself
    value: Any = field(default=UNKNOWN, compare=False)
    key: int = 0  # the id of `value`
    name: str = ""  # the attribute that was taken from `owner`
    owner: Origin | None = None


Origins = frozenset[Origin]
NONE: Origins = frozenset()


@dataclass
class Summary:
    """What a function does to what it gets, and where its result comes from."""

    found: list[str] = field(default_factory=list)
    writes: set[int] = field(default_factory=set)
    returns: Origins = NONE


class Changes:
    """Reads functions; `names` collects the attributes that they change on objects that cannot be told."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.own: dict[type, set[str]] = {}  # what instances of a class hold themselves
        self._known: dict[tuple[int, int, bool, bool], Summary] = {}
        self._keep: list[Any] = []
        self._depth = 0

    def of(
        self, function: types.FunctionType, kind: type | None = None, held: bool = False, of_class: bool = False
    ) -> list[str]:
        """What a function changes that is not its object's; `kind` is the class of its first argument, if it is known.

        held      the function is a part of the object, copied with it: so are the variables that it closes over
        of_class  its first argument is the class itself
        """
        return list(dict.fromkeys(self.summary(function, kind, held, of_class).found))

    def summary(
        self, function: types.FunctionType, kind: type | None, held: bool = False, of_class: bool = False
    ) -> Summary:
        key = (id(function), id(kind), held, of_class)
        if key in self._known:
            return self._known[key]
        self._known[key] = made = Summary()
        self._keep += [function, kind]
        if self._depth < DEEP:
            self._depth += 1
            reader = Reader(self, function, kind, held, made)
            if of_class and kind is not None and reader.names:
                reader.first[reader.names[0]] = shared(kind.__name__, kind)
            reader.read()
            self._depth -= 1
        return made

    def stored(self, kind: type) -> set[str]:
        """The names that the methods of a class set on self."""
        if kind not in self.own:
            self.own[kind] = set()
        known = self.own[kind]
        if "__stored__" not in known:
            known.add("__stored__")
            for base in kind.__mro__:
                for value in vars(base).values():
                    for code in _codes(inspect.unwrap(value)) if inspect.isfunction(value) else ():
                        known |= _set_by(code)
        return known


class Reader(Frame):
    """One function, read."""

    def __init__(
        self, changes: Changes, function: types.FunctionType, kind: type | None, held: bool, made: Summary
    ) -> None:
        self.changes, self.function, self.made = changes, function, made
        code = function.__code__
        self.names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        self.first: dict[str, Any] = {
            name: frozenset([Origin(argument=i, kind=kind if i == 0 else None)]) for i, name in enumerate(self.names)
        }
        placed = code.co_varnames[: code.co_argcount]
        given = dict(zip(reversed(placed), reversed(function.__defaults__ or ()), strict=False))
        for name, value in {**given, **(function.__kwdefaults__ or {})}.items():
            if isinstance(value, CONTAINERS):
                self.first[name] = self.first[name] | shared(f"the default of {name}", value)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self.first[name] = NONE if held else shared(name, cell_of(cell))

    def read(self) -> None:
        waiting = [(self.function.__code__, self.first)]
        while waiting:
            code, first = waiting.pop()
            ever = self.run(code, first)
            for inner in code.co_consts:
                if isinstance(inner, types.CodeType):
                    waiting.append((inner, {name: ever.get(name, NONE) for name in inner.co_freevars}))

    # -- what the steps mean -------------------------------------------------------------------------------------------

    def returned(self, value: Origins) -> None:
        self.made.returns |= value

    def named(self, name: str) -> Origins:
        return shared(name, named(self.function, name))

    def imported(self, name: str) -> Origins:
        return shared(name.split(".")[0], sys.modules.get(name.split(".")[0]))

    def wrote(self, target: Origins, name: str = "") -> None:
        for origin in target:
            if origin.argument >= 0:
                self.made.writes.add(origin.argument)
                self.changes.names.update({name, origin.name} - {""})
            else:
                self.made.found.append(f"{origin.what}.{name}" if name and origin.value is not UNKNOWN else origin.what)

    def wrote_in_place(self, target: Origins) -> None:
        self.wrote(frozenset(o for o in target if o.argument >= 0 or isinstance(o.value, CONTAINERS)))

    def attribute(self, target: Origins, name: str) -> Origins:
        return merged(*(self._attribute(origin, name) for origin in target))

    def element(self, target: Origins) -> Origins:
        return merged(*(self._element(origin) for origin in target))

    def _attribute(self, origin: Origin, name: str) -> Origins:
        value = origin.value
        if origin.argument >= 0:
            return self._of_instance(origin, origin.kind, name) if origin.kind else taken(origin, name)
        if value is UNKNOWN or isinstance(value, CONTAINERS):
            return taken(origin, name)
        if isinstance(value, types.ModuleType | types.FunctionType):
            return shared(f"{origin.what}.{name}", vars(value).get(name))
        if isinstance(value, type):
            return self._of_class(origin, value, name)
        held = getattr(value, "__dict__", None)
        if isinstance(held, dict) and name in held:
            return shared(f"{origin.what}.{name}", held[name])
        return self._of_instance(origin, type(value), name)

    def _of_class(self, origin: Origin, kind: type, name: str) -> Origins:
        owner, value = _found(kind, name)
        if isinstance(value, classmethod):
            return bound(value.__func__, origin, name)
        if isinstance(value, staticmethod):
            return shared(f"{origin.what}.{name}", value.__func__)
        if owner is None or isinstance(value, types.MethodDescriptorType | types.WrapperDescriptorType):
            return taken(origin, name)
        return shared(f"{owner.__name__}.{name}", value)

    def _of_instance(self, origin: Origin, kind: type, name: str) -> Origins:
        if name == "__class__":
            return shared(kind.__name__, kind)
        owner, value = _found(kind, name)
        if owner is None or isinstance(value, PLAIN):
            return taken(origin, name)
        if isinstance(value, types.FunctionType):
            return bound(value, origin, name)
        if isinstance(value, classmethod):
            return bound(value.__func__, next(iter(shared(kind.__name__, kind))), name)
        if isinstance(value, staticmethod):
            return shared(f"{owner.__name__}.{name}", value.__func__)
        getter = value.fget if isinstance(value, property) else getattr(type(value), "__get__", None)
        if inspect.isfunction(getter) and not isinstance(value, CACHE) and not _library(getter):
            given = [frozenset([origin])] if isinstance(value, property) else [shared(name, value), frozenset([origin])]
            return self._called(getter, given, {}, kind if isinstance(value, property) else type(value))
        mutable = isinstance(value, CONTAINERS) or (type(value).__module__ != "builtins" and not _described(value))
        if isinstance(value, CACHE | type) or (mutable and name not in self.changes.stored(kind)):
            return shared(f"{owner.__name__}.{name}", value)
        return taken(origin, name)

    def _element(self, origin: Origin) -> Origins:
        value = origin.value
        if origin.argument >= 0:
            return frozenset([Origin(argument=origin.argument, name=origin.name)])
        if isinstance(value, type) and issubclass(value, enum.Enum):
            value = list(value)
        if isinstance(value, dict | list | tuple | set | frozenset | collections.deque):
            items = list(dict.values(value)) if isinstance(value, dict) else list(value)
            if items:
                return merged(*(shared(origin.what, item) for item in items[:MOST] if not plain(item)))
        getter = getattr(type(value), "__getitem__", None)
        if value is not UNKNOWN and inspect.isfunction(getter):
            return self._called(getter, [frozenset([origin]), NONE], {}, type(value))
        return frozenset([Origin(origin.what)])

    # -- calls ---------------------------------------------------------------------------------------------------------

    def call(self, callee: Origins, given: Sequence[Origins], by_name: dict[str, Origins]) -> Origins:
        return merged(*(self._call(origin, list(given), by_name) for origin in callee))

    def _call(self, origin: Origin, given: list[Origins], by_name: dict[str, Origins]) -> Origins:
        value, owner = origin.value, origin.owner
        if isinstance(value, types.MethodType) and isinstance(value.__func__, types.FunctionType):
            if _library(value.__func__):
                return self._built_in(value.__func__, given)
            return self._called(value.__func__, [shared(origin.what, value.__self__), *given], by_name, None)
        if isinstance(value, types.FunctionType):
            kind = None if owner is None else owner.kind or (None if owner.value is UNKNOWN else type(owner.value))
            before = [] if owner is None else [frozenset([owner])]
            return self._called(value, [*before, *given], by_name, kind)
        if isinstance(value, CACHE):
            function = value.__wrapped__
            if isinstance(function, types.FunctionType):
                self._called(function, given, by_name, None)
            return frozenset([Origin(f"what {getattr(function, '__name__', 'a cache')} has cached")])
        if value is type:
            return merged(*(self.attribute(part, "__class__") for part in given[:1]))
        if isinstance(value, type):
            return self._made(value, given, by_name)
        if isinstance(value, types.BuiltinFunctionType) or inspect.isroutine(value):
            return self._built_in(value, given)
        if owner is not None and value is UNKNOWN:
            return self._method(origin, owner, given)
        _, maker = _found(type(value), "__call__")
        if value is not UNKNOWN and isinstance(maker, types.FunctionType):
            return self._called(maker, [frozenset([origin]), *given], by_name, type(value))
        return NONE

    def _method(self, origin: Origin, owner: Origin, given: list[Origins]) -> Origins:
        """A method of something unknown, or of a container of Python's own."""
        if isinstance(owner.value, type):  # list.append(things, 1)
            if origin.name in CHANGES | {"__setattr__", "__delattr__"} and given:
                self.wrote(given[0])
            return NONE
        if origin.name in CHANGES and (owner.value is UNKNOWN or isinstance(owner.value, CONTAINERS)):
            self.wrote(frozenset([owner]))
        items = self._element(owner) if origin.name in READS else NONE
        through = origin.name in ("values", "items")  # what is read comes in turn, or in pairs
        return frozenset(Origin(o.what, o.argument, name=o.name) for o in items) if through else items

    def _built_in(self, value: Any, given: list[Origins]) -> Origins:
        name = getattr(value, "__name__", "")
        of = getattr(value, "__self__", None)
        if name in CHANGES and isinstance(of, CONTAINERS):
            self.made.found.append(f"{name} of a {type(of).__name__}")
        if name in WRITERS and given:
            self.wrote(given[0])
        if name == "vars":
            return merged(*given[:1])
        if name not in THROUGH:
            return NONE
        passed = [o for part in given for o in part if not plain(o.value)]
        return frozenset(Origin(o.what, o.argument, name=o.name) for o in passed)

    def _made(self, kind: type, given: list[Origins], by_name: dict[str, Origins]) -> Origins:
        if kind.__name__ in THROUGH and kind.__module__ == "builtins":
            return self._built_in(kind, given)
        _, maker = _found(kind, "__init__")
        if isinstance(maker, types.FunctionType):
            self._called(maker, [NONE, *given], by_name, kind)
        return NONE

    def _called(
        self, function: types.FunctionType, given: list[Origins], by_name: dict[str, Origins], kind: type | None
    ) -> Origins:
        if _library(function):
            return self._built_in(function, given[1:] if kind is not None else given)
        told = self.changes.summary(function, kind)
        code = function.__code__
        for name, value in by_name.items():
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            if name in names:
                given = given + [NONE] * (names.index(name) + 1 - len(given))
                given[names.index(name)] = value
        for i in told.writes & set(range(len(given))):
            self.wrote(frozenset(o for o in given[i] if o.argument >= 0 or _changes(o.value)))
        out = set()
        for origin in told.returns:
            if origin.argument < 0:
                out.add(origin)
            for at in given[origin.argument] if 0 <= origin.argument < len(given) else ():
                near = not origin.name and origin.owner is None
                out.add(at if near else Origin(at.what, at.argument, name=origin.name, owner=at))
        return frozenset(out)


def _library(function: types.FunctionType) -> bool:
    first = str(function.__globals__.get("__name__")).split(".")[0]
    return first in sys.stdlib_module_names or first.startswith(("pydantic", "namedtuple_"))


def _changes(value: Any) -> bool:
    return value is UNKNOWN or not plain(value)


def _described(value: Any) -> bool:
    """A descriptor of Python's own, such as a slot: what it gives is the instance's."""
    return hasattr(type(value), "__get__")


def _found(kind: type, name: str) -> tuple[type | None, Any]:
    for base in kind.__mro__:
        if name in vars(base):
            return base, vars(base)[name]
    return None, None


def _set_by(code: types.CodeType) -> set[str]:
    """The attributes that a code sets, but for those that it changes in place, as `self.items += [1]` does."""
    steps, known = list(dis.get_instructions(code)), set()
    for i, step in enumerate(steps):
        before = [s for s in steps[max(0, i - 3) : i] if s.opname not in ("SWAP", "CACHE")][-1:]
        if step.opname == "STORE_ATTR" and not any(s.opname == "BINARY_OP" and s.argrepr.endswith("=") for s in before):
            known.add(step.argval)
    return known


def _codes(function: Any) -> list[types.CodeType]:
    codes = [function.__code__] if inspect.isfunction(function) else []
    for code in codes:
        codes += [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return codes


def taken(origin: Origin, name: str) -> Origins:
    what = f"{origin.what}.{name}" if origin.what and origin.value is UNKNOWN else origin.what
    return frozenset([Origin(what, origin.argument, name=name, owner=origin)])


def bound(function: Any, owner: Origin, name: str) -> Origins:
    if not isinstance(function, types.FunctionType):
        return NONE
    return frozenset([Origin(owner.what, value=function, key=id(function), name=name, owner=owner)])


def plain(value: Any) -> bool:
    if isinstance(value, enum.Enum):
        return False
    return isinstance(value, PLAIN) or (type(value) in (tuple, frozenset) and all(plain(part) for part in value))


def shared(what: str, value: Any) -> Origins:
    return NONE if plain(value) else frozenset([Origin(what, value=value, key=id(value))])


def named(function: types.FunctionType, name: str) -> Any:
    if name in function.__globals__:
        return function.__globals__[name]
    return getattr(builtins, name, None)


def cell_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None
