"""What an object holds belongs to its copy: functions that close over it, its methods, its locks."""

from __future__ import annotations

import functools
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Any

import pytest

from treewright.envs.tools.state import copy_state, state_digest


class Shop:
    def __init__(self, make: Callable[[Shop], Any]) -> None:
        self.sold: list[int] = []
        self.tell: Any = make(self)


def closing(shop: Shop) -> Callable[[int], None]:
    sold = shop.sold
    return lambda n: sold.append(n)


def counting(shop: Shop) -> Callable[[int], None]:
    count = 0

    def tell(n: int, depth: int = 0) -> None:
        nonlocal count
        count += n
        shop.sold.append(count)
        if depth:
            tell(n, depth - 1)

    return tell


@pytest.mark.parametrize(
    "make",
    [
        lambda shop: lambda n: shop.sold.append(n),
        closing,
        counting,
        lambda shop: shop.sold.append,
        lambda shop: functools.partial(shop.sold.insert, 0),
        lambda shop: functools.partial(lambda a, n: a.append(n), shop.sold),
        lambda shop: functools.partial(closing(shop)),
    ],
)
@pytest.mark.parametrize("held", [lambda it: it, lambda it: {"a": [it]}, lambda it: deque([(it,)])])
def test_a_function_over_the_state_writes_into_the_state_of_its_copy(make: Any, held: Any) -> None:
    shop = Shop(lambda shop: held(make(shop)))

    def call(one: Shop) -> None:
        tell = one.tell
        while not callable(tell):
            tell = tell["a"] if isinstance(tell, dict) else tell[0]
        tell(1)

    call(shop)
    other = copy_state(shop)
    call(other)
    call(other)
    assert (shop.sold, other.sold[-1] >= 1, len(other.sold)) == ([1], True, 3)
    call(shop)
    assert len(shop.sold) == 2 and len(other.sold) == 3


def helper(n: int) -> int:
    return n


def test_what_closes_over_nothing_that_changes_stays_what_it_is() -> None:
    def plain(n: int, most: int = len("ab")) -> int:
        return helper(n) + most + len(where)

    where = "here"
    wrapped = functools.wraps(helper)(lambda n: plain(n))
    for one in (helper, plain, wrapped, len, Shop, threading, Shop.__init__):
        assert copy_state([one])[0] is one


def test_locks_are_free_in_the_copy_and_count_as_nothing() -> None:
    state: dict[str, Any] = {"lock": threading.Lock(), "again": threading.RLock(), "n": [1]}
    with state["lock"], state["again"]:
        other = copy_state(state)
    assert other["lock"] is not state["lock"] and other["lock"].acquire(blocking=False)
    assert type(other["again"]) is type(state["again"]) and state_digest(other) == state_digest(state)


def test_collections_come_back_with_their_kind_their_items_and_what_they_hold_beside() -> None:
    class Named(dict[str, Any]):
        __slots__ = ("name",)
        name: str

    class Own(list[Any]):
        pass

    named, own = Named(a=[1]), Own([[2]])
    named.name, own.more = "n", {"k": {1}}  # type: ignore[attr-defined]
    state = [named, own, defaultdict(list, a=[1]), Counter("aab"), deque([[1]], maxlen=2), ({1}, frozenset([2])), own]
    other = copy_state(state)
    assert other == state and [type(a) for a in other] == [type(a) for a in state] and other[1] is other[6]
    assert other[0].name == "n" and other[0]["a"] is not named["a"] and other[1].more["k"] is not own.more["k"]  # type: ignore[attr-defined]
    assert other[2]["new"] == [] and other[4].maxlen == 2 and other[5][0] is not state[5][0]  # type: ignore[index]
