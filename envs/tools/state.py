"""The state of a Python object: copied, and hashed.

`copy_state` is copy.deepcopy with a short cut for what states are mostly made of (lists, dicts, pydantic models), and
functions that close over the state, its bound methods and locks are new ones in the copy (see `closures`); everything
else goes to deepcopy itself, and objects shared inside the state stay shared. `state_digest` walks the
same structure; equal states give equal hashes whatever the order of dict keys, on every machine and run.
"""

from __future__ import annotations

import copy
import datetime
import decimal
import enum
import gc
import logging
import random
import re
import sys
import types
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from itertools import chain
from pathlib import PurePath
from typing import Any, NamedTuple

from pydantic import BaseModel

from treewright.envs.errors import TreewrightError
from treewright.envs.tools.closures import LOCKS, closes_over, copy_code, copy_parts, rebuilt
from treewright.envs.types import digest

__all__ = ["ATOMS", "CODE", "copy_state", "state_digest", "state_size"]

ATOMS: frozenset[type] = frozenset(
    {
        type(None), bool, int, float, complex, str, bytes, type(...), decimal.Decimal, uuid.UUID, re.Pattern,
        datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone,
    }
)  # fmt: skip
CODE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type)
_SHARED = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type, weakref.ref, logging.Logger)
TWICE = 256  # pieces of a named tuple's text that are written twice; longer ones would double at every level
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
    except RecursionError as error:
        raise TreewrightError(
            f"{_deep(value)} cannot be copied: it is nested deeper than Python's own copies go; keep long chains in a "
            "list, or give copy=, or methods snapshot() -> bytes and restore(bytes)"
        ) from error


def _deep(value: Any) -> str:
    """The field, or the item, whose copy goes too deep; only asked where the whole could not be copied."""
    fields = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    for name, inner in fields.items():
        try:
            _copy(inner, {})
        except RecursionError:
            return _place("state", [(name,) if isinstance(value, dict) else f".{name}"])
        except Exception:
            continue  # its own trouble is another
    return f"a {type(value).__name__}"


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
    elif isinstance(value, enum.Enum | types.ModuleType):
        return value
    elif isinstance(value, BaseModel) and kind.__deepcopy__ is BaseModel.__deepcopy__:
        memo[id(value)] = new = object.__new__(kind)
        object.__setattr__(new, "__dict__", _copy(value.__dict__, memo))
        for slot in _MODEL_SLOTS:
            object.__setattr__(new, slot, copy.copy(getattr(value, slot)) if slot == _MODEL_SLOTS[0] else
                               _copy(getattr(value, slot), memo))  # fmt: skip
    elif kind in LOCKS:
        memo[id(value)] = new = LOCKS[kind]()
    elif closes_over(value):
        new = copy_code(value, memo, _copy)
    elif rebuilt(value):
        new = copy_parts(value, memo, _copy)
    else:
        new = copy.deepcopy(value, memo)
    return new


def state_digest(value: Any) -> str:
    """A 128-bit hash of everything reachable. Raises TreewrightError naming the place that has no readable state.

    What can change is written where it is met first, and referred to by its number from then on, as pickle does: the
    time grows with the state, not with the ways through it. What cannot change is written each time, since whether two
    equal texts or tuples are one object is chance.
    """
    try:
        return digest("".join(_Writer().written(value, lambda: "state")[0]))
    except _Tangled:
        return _by_colours(value)


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


# -- what is hashed -------------------------------------------------------------------------------------------------


class _Child(NamedTuple):
    """Something inside a value, and where: '.name', or (key,). `fresh` is made by the walk; no state holds it."""

    value: Any
    label: str | tuple[Any]
    fresh: bool = False


class _Loose(NamedTuple):
    """Items without an order: of a set, or keys, with what they stand for."""

    items: list[tuple[Any, _Child | None]]


AGAIN = _Loose([])
"""The items of a list or tuple of one's own kind once more: they are written as such, and as what its class holds."""


class _Tangled(Exception):
    """An item of a set, or a key, that can be reached on other ways, too: neither order nor number tells it apart."""


def _simple(value: Any) -> str | None:
    """The text of a value that has nothing inside; None for all others."""
    kind = type(value)
    if kind in ATOMS or isinstance(value, enum.Enum | PurePath):
        return f"{kind.__name__}:{value!r};"
    if kind in LOCKS:
        return "lock;"
    if isinstance(value, CODE):
        return f"{kind.__name__}:{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)};"
    return f"{kind.__name__}:{value.name};" if isinstance(value, logging.Logger) else None


def _parts(value: Any, where: Callable[[], str]) -> Iterator[str | _Child | _Loose]:
    """What is written of a value between its parentheses, in pieces."""
    kind, text = type(value), ""
    if kind is dict or isinstance(value, Mapping):
        if ATOMS.issuperset(map(type, value)):
            for key in sorted(value, key=repr):
                item = value[key]
                if type(item) in ATOMS:
                    text += f"{key!r}={type(item).__name__}:{item!r};"
                else:
                    yield f"{text}{key!r}="
                    yield _Child(item, (key,))
                    text = ""
        else:
            yield _Loose([(key, _Child(value[key], (key,))) for key in value])
        if kind is dict:
            yield text
            return
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            if type(item) in ATOMS:
                text += f"{type(item).__name__}:{item!r};"
            else:
                yield text
                yield _Child(item, (i,))
                text = ""
        if kind in (list, tuple):
            yield text
            return
    elif isinstance(value, Set):
        yield _Loose([(item, None) for item in value])
        return
    elif isinstance(value, random.Random):
        yield repr(value.getstate())
        return
    elif hasattr(value, "tobytes") and hasattr(value, "dtype"):
        yield f"{value.dtype} {getattr(value, 'shape', '')} {value.tobytes().hex()}"
        return
    for name, (inner, fresh) in sorted(_fields(value, where).items()):
        if name == "items" and fresh and isinstance(value, list | tuple):
            yield text
            yield AGAIN
            text = ""
        elif type(inner) in ATOMS:
            text += f"{name}={type(inner).__name__}:{inner!r};"
        else:
            yield f"{text}{name}="
            yield _Child(inner, f".{name}", fresh)
            text = ""
    yield text


def _fixed(kind: type) -> bool:
    """Can a value of this kind not be changed, but for what is inside?"""
    if issubclass(kind, BaseModel):
        return bool(kind.model_config.get("frozen"))
    params = getattr(kind, "__dataclass_params__", None)
    return issubclass(kind, (tuple, frozenset)) or (params is not None and params.frozen)


def _by_value(kind: type) -> bool:
    """Are two of this kind equal by what they hold, as fractions and addresses are?"""
    own: Any = kind.__hash__
    return own is not None and own is not object.__hash__


class _Frame:
    """A value that is being written; `plain` while nothing in it can change."""

    __slots__ = ("fresh", "label", "parts", "plain", "start", "value")

    def __init__(self, child: _Child, parts: Iterator[str | _Child | _Loose], start: int) -> None:
        self.value, self.label, self.fresh = child
        self.parts, self.start, self.plain = parts, start, True


class _Writer:
    """Writes a state as text; items of sets, and keys, each as if they stood alone, as a hash of their own."""

    def __init__(self) -> None:
        self.numbers: dict[int, tuple[dict[int, int], int]] = {}
        self.above: list[dict[int, int]] = []
        self.kept: list[Any] = []  # so that no id in `numbers` is used again

    def written(self, root: Any, where: Callable[[], str]) -> tuple[list[str], bool]:
        """The pieces of its text, and whether nothing in it can change. Walks as deep as the state goes."""
        out: list[str] = []
        here: dict[int, int] = {}  # depth by id, of what is being written
        frames: list[_Frame] = []

        def place() -> str:
            return _place(where(), [frame.label for frame in frames[1:]])

        self.above.append(here)
        top = frame = _Frame(_Child(root, ""), iter((_Child(root, ""),)), 0)
        count = 0
        try:
            while True:
                part = next(frame.parts, None)
                if part is None:
                    if not frames:
                        break
                    frames.pop()
                    out.append(")")
                    del here[id(frame.value)]
                    over = frames[-1] if frames else top
                    if frame.fresh or _fixed(type(frame.value)) or (frame.plain and _by_value(type(frame.value))):
                        over.plain = over.plain and frame.plain
                    else:
                        self.numbers[id(frame.value)], count = (here, count), count + 1
                        self.kept.append(frame.value)
                        over.plain = False
                    frame = over
                elif isinstance(part, str):
                    out.append(part)
                elif part is AGAIN:
                    once = out[frame.start :] if len(out) - frame.start <= TWICE else None
                    out += ["items=^0;"] if once is None else ["items=list(", *once, ")"]
                elif isinstance(part, _Loose):
                    self._loose(frame, part, place)
                elif (text := _simple(part.value)) is not None:
                    out.append(text)
                elif (known := self._known(id(part.value), here, len(frames))) is not None:
                    out.append(known)
                    frame.plain = False
                else:
                    here[id(part.value)] = len(frames)
                    out.append(f"{type(part.value).__name__}(")
                    frame = _Frame(part, _parts(part.value, place), len(out))
                    frames.append(frame)
        except RecursionError as error:
            raise TreewrightError(
                f"{place()} cannot be hashed: reading it goes deeper than Python allows; leave it out in __getstate__, "
                "or give fingerprint="
            ) from error
        self.above.pop()
        return out, top.plain

    def _known(self, number: int, here: dict[int, int], depth: int) -> str | None:
        """How one refers to what was met before. Raises _Tangled if that was elsewhere."""
        if number in here:
            return f"^{depth - here[number]};"
        walk, n = self.numbers.get(number, (None, 0))
        if walk is here:
            return f"@{n};"
        if walk is not None or (len(self.above) > 1 and any(number in other for other in self.above)):
            raise _Tangled
        return None

    def _loose(self, frame: _Frame, part: _Loose, where: Callable[[], str]) -> None:
        """Puts the items of a set, or the keys of a mapping, in an order that does not depend on where they lie."""
        rows: list[tuple[str, str, _Child | None]] = []
        for item, child in part.items:
            if child is not None and type(item) in ATOMS:
                rows.append((repr(item), repr(item), child))
                continue
            name, plain = self._item(item, lambda: f"{where()}{{…}}")
            frame.plain = frame.plain and plain
            shown = repr(item) if plain and child is not None else ""
            rows.append(("" if " at 0x" in shown else shown, name, child))
        rest: list[str | _Child | _Loose] = []
        for _, name, child in sorted(rows, key=lambda row: row[:2]):
            rest += [name] if child is None else [f"{name}=", child]
        frame.parts = chain(rest, frame.parts)

    def _item(self, item: Any, where: Callable[[], str]) -> tuple[str, bool]:
        text = _simple(item)
        out, plain = ([text], True) if text is not None else self.written(item, where)
        return digest("".join(out)), plain


def _place(where: str, labels: Sequence[str | tuple[Any]]) -> str:
    steps = [label if isinstance(label, str) else f"[{_short(label[0])}]" for label in labels]
    return where + "".join(steps if len(steps) <= 12 else [*steps[:4], f"…({len(steps) - 8} more)…", *steps[-4:]])


def _short(key: Any) -> str:
    return f"{key!r:.60}" if type(key) in ATOMS else f"a {type(key).__name__}"


def _by_colours(root: Any) -> str:
    """A hash of a state whose sets or keys are tangled with the rest: colours of its objects, refined until they stay.

    The colour of an object is a hash of what it holds and of the colours around it, so no order is needed.
    """
    index: dict[int, int] = {}
    held: list[Any] = []
    places: list[tuple[int, str | tuple[Any]]] = []
    firm: list[bool] = []

    def node(child: _Child, above: int) -> str | int:
        text = _simple(child.value)
        if text is not None:
            return text
        if id(child.value) not in index:
            index[id(child.value)] = len(held)
            held.append(child.value)
            places.append((above, child.label))
            firm.append(child.fresh or _fixed(type(child.value)) or _by_value(type(child.value)))
        return index[id(child.value)]

    def place(i: int) -> str:
        labels = []
        while i > 0:
            i, label = places[i]
            labels.append(label)
        return _place("state", labels[::-1])

    node(_Child(root, ""), 0)
    rows: list[tuple[list[str | int], list[tuple[str | int, str | int]]]] = []
    while len(rows) < len(held):  # grows meanwhile
        i = len(rows)
        inner: list[str | int] = [type(held[i]).__name__]
        loose: list[tuple[str | int, str | int]] = []
        for part in _parts(held[i], lambda i=i: place(i)):  # type: ignore[misc]
            if isinstance(part, str):
                inner.append(part)
            elif isinstance(part, _Child):
                inner.append(node(part, i))
            else:
                for item, child in part.items:
                    loose.append((node(_Child(item, "{…}"), i), "" if child is None else node(child, i)))
        rows.append((inner, loose))
    colours, count = [""] * len(rows), 0

    def seen(part: str | int) -> str:
        return part if isinstance(part, str) else colours[part]

    while count < (count := len(set(colours))):
        colours = [
            digest(*map(seen, inner), *sorted(digest(*map(seen, two)) for two in loose)) for inner, loose in rows
        ]
    changing = sorted(colour for colour, stays in zip(colours, firm, strict=True) if not stays)
    return digest("colours", colours[0], *changing, *sorted(set(colours)))


def _fields(value: Any, where: Callable[[], str]) -> dict[str, tuple[Any, bool]]:
    """What an object holds in its __dict__ and slots, by name, and whether that was made here; collections that are
    not plain give their items."""
    if isinstance(value, BaseModel):
        held = {**value.__dict__, **(value.__pydantic_private__ or {}), **(value.__pydantic_extra__ or {})}
        return {name: (inner, False) for name, inner in held.items()}
    try:
        state = value.__getstate__()
        if state is None:
            value.__reduce_ex__(2)  # a lock or a socket refuses here; an empty object does not
    except TypeError as error:
        raise TreewrightError(
            f"{where()} holds a {type(value).__name__}, which has no state that could be hashed; leave it out in "
            "__getstate__, or give fingerprint="
        ) from error
    if isinstance(state, tuple) and len(state) == 2 and all(part is None or isinstance(part, dict) for part in state):
        return {name: (inner, False) for part in state for name, inner in (part or {}).items()}
    if hasattr(value, "__iter__") and hasattr(value, "__len__"):
        return {"items": (list(value), True), "state": (state, True)}
    if isinstance(state, dict):
        return {str(name): (inner, False) for name, inner in state.items()}
    return {} if state is None else {"state": (state, True)}
