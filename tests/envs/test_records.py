from __future__ import annotations

import copy
import inspect
import pickle
import typing
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, field, replace

import pytest

from treewright.envs.records import quick
from treewright.envs.types import Call
from treewright.search.types import Completion, Context, Draft, Outcome


@quick
@dataclass(frozen=True, slots=True)
class Point:
    """A record with a default that is made anew."""

    x: int
    y: int = 2
    more: list[int] = field(default_factory=list)


class Named(Point):
    pass


@quick
@dataclass(frozen=True, slots=True)
class Awkward:
    """Fields named as parts of its own making are."""

    record: int = 1
    bare: list[int] = field(default_factory=list)
    plain: int = 3


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Deep(Point):
    z: int = 3


def test_a_quick_record_is_the_frozen_record_that_it_was() -> None:
    point = Point(1)
    assert point == Point(1, 2, []) and type(point) is Point and point.more is not Point(1).more
    assert repr(point) == "Point(x=1, y=2, more=[])" and replace(point, y=5) == Point(1, 5)
    assert pickle.loads(pickle.dumps(point)) == point
    with pytest.raises(FrozenInstanceError):
        point.x = 3  # type: ignore[misc]
    with pytest.raises(TypeError, match="x"):
        Point()  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        object.__setattr__(point, "other", 1)


def test_classes_derived_from_a_quick_record_keep_their_own_type() -> None:
    assert type(Named(4)) is Named and Named(4).y == 2
    deep = Deep(x=1, z=9)
    assert (type(deep), deep.x, deep.y, deep.z) == (Deep, 1, 2, 9) and isinstance(deep, Point)
    with pytest.raises(FrozenInstanceError):
        deep.z = 1  # type: ignore[misc]


def test_records_that_do_more_than_hold_fields_are_refused() -> None:
    @dataclass(frozen=True)
    class Loose:
        x: int

    with pytest.raises(TypeError, match="Loose is no plain frozen record"):
        quick(Loose)


def test_the_records_of_a_search_cannot_be_changed() -> None:
    for record, name in ((Completion("a"), "text"), (Context(keep=0, delta=(), ids=()), "keep")):
        with pytest.raises(FrozenInstanceError):
            setattr(record, name, 1)
    assert hash(Completion("a")) == hash(Completion("a")) and Draft.__slots__ and Outcome.__slots__


def test_a_record_says_what_it_takes_as_its_dataclass_does() -> None:
    signature = inspect.signature(Call, eval_str=True)
    assert signature.parameters["arguments"].annotation == Mapping[str, typing.Any]
    assert "<factory>" in str(signature) and typing.get_type_hints(Call.__init__)["name"] is str


def test_names_of_fields_do_not_get_in_the_way_of_making_them() -> None:
    made = Awkward(plain=9)
    assert (made.record, made.bare, made.plain) == (1, [], 9) and made == Awkward(1, [], 9)
    assert type(made) is Awkward and copy.copy(made) == copy.deepcopy(made) == made
