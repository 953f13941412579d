"""Hashes of states: shared and deep objects, sets of objects, loggers; old hashes stay where nothing is shared."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import pytest

from treewright.envs.errors import TreewrightError
from treewright.envs.tools import state
from treewright.envs.tools.state import copy_state, state_digest


class Room:
    def __init__(self, name: str) -> None:
        self.name = name
        self.exits: dict[str, Any] = {}
        self.items: list[Any] = []


class Person:
    def __init__(self, name: str) -> None:
        self.name = name
        self.friends: Any = None


class Point(NamedTuple):
    x: Any
    y: Any


@dataclass(frozen=True)
class Card:
    suit: str
    value: int


@dataclass
class Cell:
    value: Any
    up: Cell | None = None
    rows: list[Any] = field(default_factory=list)


class Stack(list):  # type: ignore[type-arg]
    pass


def grid(side: int) -> Room:
    rooms = {(x, y): Room(f"r{x}{y}") for x in range(side) for y in range(side)}
    for (x, y), room in rooms.items():
        for way, place in {"east": (x + 1, y), "west": (x - 1, y), "north": (x, y + 1), "south": (x, y - 1)}.items():
            if place in rooms:
                room.exits[way] = rooms[place]
    return rooms[0, 0]


def friends(count: int, kind: Callable[[Iterable[Any]], Any]) -> list[Person]:
    people = [Person(f"p{i}") for i in range(count)]
    for person in people:
        person.friends = kind(other for other in people if other is not person)
    return people


def pieces(value: Any) -> int:
    return len(state._Writer().written(value, lambda: "state")[0])


def test_rooms_that_know_their_neighbours_are_written_once_each() -> None:
    assert pieces(grid(20)) < 450 * pieces(Room("r")) * 4
    assert state_digest(grid(5)) == state_digest(grid(5)) == state_digest(copy_state(grid(5)))
    moved = grid(5)
    moved.exits["east"].exits["north"].items.append("lamp")
    assert state_digest(moved) != state_digest(grid(5))


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset, dict.fromkeys, deque])
def test_everybody_who_knows_everybody_is_hashed_alike_each_time(kind: Callable[[Iterable[Any]], Any]) -> None:
    first = state_digest(friends(40, kind))
    assert first == state_digest(friends(40, kind)) == state_digest(copy_state(friends(40, kind)))
    other = friends(40, kind)
    other[7].name = "somebody else"
    assert state_digest(other) != first


def test_an_object_here_and_there_is_not_two_equal_ones() -> None:
    row: list[int] = [1]
    assert state_digest([row, row]) != state_digest([row, [1]]) == state_digest([[1], [1]])
    assert state_digest(copy_state([row, row])) == state_digest([row, row])


def test_whether_equal_values_that_cannot_change_are_one_object_does_not_matter() -> None:
    def both(made: Callable[[], Any]) -> bool:
        one = made()
        return state_digest([one, one, [one]]) == state_digest([made(), made(), [made()]])

    word = "".join(["a", "b"])
    assert all(both(made) for made in (
        lambda: (1, f"{word}c"), lambda: Card("a", 10**6), lambda: Point(1, (2, 10**6)), lambda: Fraction(10**6, 7),
        lambda: frozenset({Card("spades", 2)}), lambda: b"%d" % 10**6, lambda: (Card("a", 1), Point(Card("b", 2), 3)),
    ))  # fmt: skip


def test_sets_and_keys_of_objects_are_hashed_by_what_these_hold_not_by_where_they_lie() -> None:
    def world(rng: random.Random) -> dict[str, Any]:
        waste = [object() for _ in range(rng.randrange(50))]
        cells = {i: Cell(i, rows=[i]) for i in rng.sample(range(30), 30)}
        up = Cell("top")
        for cell in cells.values():
            cell.up = up
        hold = [Card("a", 1), *waste][:1]
        hashed = {type("Key", (), {"cell": cells[i]})(): i for i in range(30)}
        return {"keys": hashed, "free": {type("Token", (), {"n": i})() for i in range(30)}, "hold": hold}

    assert len({state_digest(world(random.Random(seed))) for seed in range(5)}) == 1


def test_two_that_a_set_and_the_rest_hold_are_told_apart_by_what_is_far_behind_them() -> None:
    def world(left: str, right: str) -> list[Any]:
        ends = [Person("x"), Person("y")]
        for person, word in zip(ends, (left, right), strict=True):
            person.friends = {Person("")}
            at: Any = person
            for _ in range(20):
                at = next(iter(at.friends))
                at.friends = {Person(word if _ == 19 else "")}
            at.up = person
        return [set(ends), ends]

    assert state_digest(world("a", "b")) == state_digest(world("a", "b")) != state_digest(world("b", "a"))


OLD = {
    "plain": ({"a": [1, 2.5, None], "b": {"c": (1, "x")}, 3: {"y", "z"}}, "f9c90421ecec8218b02de7e9aab81ebe"),
    "keys": ({(1, 2): [3], (0, 1): [4], Card("a", 1): {"n": 1}, Point(1, 2): [5]}, "67781097ef9c9b49a92e4432deac35cb"),
    "objects": (
        [Cell(1, Cell(2), [3]), Point(1, [2]), Stack([[1], 2]), deque([1, [2]]), Card("a", 1)],
        "5263a29b3d51f62bb91feab396e82cac",
    ),
    "set": ({frozenset({1}), frozenset({2, 3}), Card("b", 2)}, "f9503bedbbbd59788b8cb5d0636d2578"),
}


def upwards() -> Cell:
    top = Cell("top")
    top.rows = [Cell(i, top) for i in range(3)]
    return top


@pytest.mark.parametrize(
    ("value", "digest"), [*OLD.values(), (upwards(), "a1374d4223c7cb9c3a2c0b6ec04390b7")], ids=[*OLD, "up"]
)
def test_hashes_of_states_that_share_nothing_are_those_of_older_stores(value: Any, digest: str) -> None:
    assert state_digest(value) == digest


def test_hashes_are_the_same_in_another_process() -> None:
    code = (
        "import test_tools_state as t\n"
        "print(*(t.state_digest(t.friends(9, kind)) for kind in (list, set, dict.fromkeys)))"
    )
    folder = __file__.rpartition("/")[0]
    told = {
        subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {folder!r})\n{code}"],
            env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert told == {" ".join(state_digest(friends(9, kind)) for kind in (list, set, dict.fromkeys)) + "\n"}


def test_a_long_chain_is_hashed_and_what_cannot_be_copied_is_named() -> None:
    chain: Any = None
    for i in range(3000):
        chain = (i, chain) if i % 3 else Point(i, [chain])
    room = Room("deep")
    room.chain = chain  # type: ignore[attr-defined]
    changed = Room("deep")
    changed.chain = (0, chain)  # type: ignore[attr-defined]
    assert state_digest(room) != state_digest(changed)
    with pytest.raises(TreewrightError, match=r"^state\.chain cannot be copied: it is nested deeper than .*give copy="):
        copy_state(room)


def test_a_logger_is_code_and_no_state() -> None:
    room = Room("logged")
    room.log = logging.getLogger("treewright.test.rooms")  # type: ignore[attr-defined]
    before = state_digest(room)
    assert copy_state(room).log is room.log  # type: ignore[attr-defined]
    room.log.setLevel("ERROR")  # type: ignore[attr-defined]
    assert state_digest(room) == before
    room.log = logging.getLogger("treewright.test.halls")  # type: ignore[attr-defined]
    assert state_digest(room) != before
    assert state.state_size(room) < 10_000


def test_a_state_that_is_endless_is_named_by_its_place() -> None:
    class Endless:
        def __getstate__(self) -> Any:
            return self.__getstate__()

    with pytest.raises(
        TreewrightError, match=r"^state\['a'\]\.items\[0\] cannot be hashed: .*deeper than Python allows"
    ):
        room = Room("r")
        room.items = [Endless()]
        state_digest({"a": room})
