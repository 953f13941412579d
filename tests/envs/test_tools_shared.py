"""Ways out of an object that are easily overlooked, and plain objects that look like them."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import functools
import heapq
import itertools
import threading
import types
from typing import Annotated, Any, NamedTuple

import pytest
from pydantic import AfterValidator, BaseModel, Field, field_validator

from treewright.envs.tools.outside import outside

MADE = itertools.count()
ROWS: dict[str, list[int]] = collections.defaultdict(list)
TABLE = {"a": [1], "b": [2]}
HEAP: list[int] = []


def deliver(text: Any) -> Any:
    with open("ledger", "a") as file:
        file.write(str(text))
    return text


class Deps(NamedTuple):
    mail: Any


class Registry(dict[str, Any]):
    pass


class Backend:
    def send(self) -> None: ...


class Checked(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def told(cls, n: int) -> int:
        return int(deliver(n))


class Made(BaseModel):
    mail: Any = Field(default_factory=lambda: deliver)


@functools.singledispatch
def emit(value: Any) -> None: ...


@emit.register
def _(value: int) -> None:
    deliver(value)


@functools.cache
def box(n: int) -> list[int]:
    return []


class Level:
    n = 0
    made: list[Any] = []

    @classmethod
    def up(cls) -> None:
        cls.n += 1


class Sort(enum.Enum):
    A = 1


Sort.A.extra = []  # type: ignore[attr-defined]


class Store:
    def __init__(self) -> None:
        self.rows: list[int] = []

    def put(self, n: int) -> None:
        self.rows.append(n)


SERVICES, DEPS, HANDLERS = types.SimpleNamespace(mail=deliver), Deps(deliver), Registry(a=deliver)
QUEUE, STORE = collections.deque([deliver]), Store()
LATER: dict[str, Any] = collections.defaultdict(lambda: deliver)


def add(rows: list[int], n: int) -> None:
    rows.append(n)


class World:
    items: list[int] = []
    n = 0
    store = Store()

    def __init__(self) -> None:
        self.own: list[int] = []
        self.sort = Sort.A

    def namespace(self) -> Any:
        return SERVICES.mail(1)

    def tuple_of_services(self) -> Any:
        return DEPS.mail(1)

    def registry(self) -> Any:
        return HANDLERS["a"](1)

    def dispatched(self) -> None:
        emit(1)

    def queued(self) -> Any:
        return QUEUE[0](1)

    def made_later(self) -> Any:
        return LATER["x"](1)

    def at_exit(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(SERVICES.mail, 1)

    def subclasses(self) -> None:
        Backend.__subclasses__()[0]().send()

    def by_factory(self) -> Any:
        return Made().mail(1)

    def by_argument(self, row: Checked) -> None: ...

    def by_annotation(self, n: Annotated[int, AfterValidator(lambda n: deliver(n))]) -> None: ...

    def class_list(self) -> None:
        self.items.append(1)

    def class_list_in_place(self) -> None:
        self.items += [1]

    def class_store(self) -> None:
        self.store.put(1)

    def own_class(self) -> None:
        type(self).n += 1

    def same_class(self) -> None:
        self.__class__.n = 2

    def other_class(self) -> None:
        Level.n += 1

    def other_list(self) -> None:
        Level.made.append(self)

    def class_method(self) -> None:
        Level.up()

    def set_by_name(self) -> None:
        setattr(Level, "n", 1)  # noqa: B010

    def on_function(self) -> None:
        deep.n = 1  # type: ignore[attr-defined]

    def global_rows(self) -> None:
        ROWS["a"].append(1)

    def row_by_name(self) -> None:
        row = TABLE["a"]
        row.append(1)

    def rows_in_turn(self) -> None:
        for row in TABLE.values():
            row.clear()

    def handed_on(self) -> None:
        add(TABLE["a"], 1)

    def heap(self) -> None:
        heapq.heappush(HEAP, 1)

    def global_store(self) -> None:
        STORE.put(1)

    def cached(self) -> None:
        box(1).append(1)

    def numbered(self) -> int:
        return next(MADE)

    def default(self, rows: list[int] = []) -> None:  # noqa: B006
        rows.append(1)

    def of_member(self) -> None:
        self.sort.extra.append(1)  # type: ignore[attr-defined]


def deep() -> None: ...


class Once:
    _made: Any = None

    def __new__(cls) -> Once:
        if cls._made is None:
            cls._made = super().__new__(cls)
        return cls._made  # type: ignore[no-any-return]


def of(name: str) -> type:
    kept = ("__init__", "items", "n", "store", name)
    return type("World", (), {key: value for key, value in vars(World).items() if key in kept})


NAMES = [name for name, value in vars(World).items() if isinstance(value, types.FunctionType) and name != "__init__"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_reached_by_a_roundabout_way_or_shared_with_copies_makes_a_live_world(name: str) -> None:
    for thing in (of(name), of(name)()):
        assert (why := outside([thing])) is not None
        assert "uses open" in why or "which all copies of it share" in why or "__subclasses__" in why


def test_an_object_that_is_made_once_is_shared() -> None:
    assert outside([Once]) == "Once.__new__ uses Once._made outside the object, which all copies of it share"


@dataclasses.dataclass
class Line:
    name: str
    tags: list[str] = dataclasses.field(default_factory=list)


class Plain:
    """What looks like the worlds above, and keeps to itself."""

    table = {"a": [1]}
    tags: list[str] = []
    limits = Line("a")

    def __init__(self, rows: list[int] = []) -> None:  # noqa: B006
        from threading import Lock as Latch

        self.rows, self.tags, self.lock, self.latch = list(rows), [], threading.RLock(), Latch()
        self.more: dict[str, Any] = collections.defaultdict(list)
        self.queue, self.count, self.ids = collections.deque([1]), collections.Counter("a"), itertools.count()
        self.tell: Any = lambda n: self.rows.append(n)
        self.push = functools.partial(self.put, 1)
        self.space, self.line, self.sort = types.SimpleNamespace(a=[1]), Line("a"), Sort.A

    def put(self, n: int, more: list[int] | None = None, row: Line | None = None) -> int:
        import threading as threads

        with self.lock, threads.Lock():
            self.tags.append("a")
            self.rows += TABLE["a"]
            self.more["a"].append(n)
            self.queue.append(next(self.ids))
            self.count["a"] += 1
            self.space.a.append(1)
            self.line.tags.append("b")
        mine = dict(self.table)
        mine["b"] = [2]
        found = TABLE["a"]
        found = list(found)
        try:
            found.append(1)
        except ValueError:
            found[0] = 2
        some: list[Any] = sorted(ROWS) if n else list(box(1))
        some.append(0 if self.sort is Sort.A else 1)
        store = Store()
        store.put(n)
        add(self.rows, len(self.limits.name))
        return len([row for row in self.table["a"] if row in found])


@pytest.mark.parametrize("thing", [Plain, Plain(), lambda: Plain(), functools.partial(Plain)])
def test_what_an_object_holds_itself_is_no_way_out(thing: Any) -> None:
    assert outside([thing]) is None
