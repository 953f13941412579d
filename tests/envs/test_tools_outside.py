"""What a plain object may reach is read from its code: small worlds need no declaration, careless ones are found."""

from __future__ import annotations

import asyncio
import enum
import functools
import json
import logging
import math
import random
import smtplib
import sqlite3
import subprocess
import threading
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from not_none import not_none
from pydantic import BaseModel

from treewright.envs import InvalidAction, Task
from treewright.envs.tools.gym import GymEnvironment
from treewright.envs.tools.outside import outside
from treewright.envs.tools.world import ToolWorld

PRICES = {"apple": 2}
SENT: list[Any] = []
LOG = logging.getLogger(__name__)
Pair = namedtuple("Pair", "a b")


class Colour(enum.Enum):
    RED = "red"


class Row(BaseModel):
    n: int = 0


@dataclass
class Item:
    name: str
    tags: list[str] = field(default_factory=list)
    colour: Colour = Colour.RED


class Shelf:
    """What small worlds are made of."""

    most = 3

    def __init__(self) -> None:
        self.items: dict[str, Any]
        self.items, self.row, self.pair = {}, Row(n=1), Pair(1, 2)

    async def wait(self) -> None:
        with threading.Lock():
            await asyncio.sleep(0)

    def put(self, name: str, *, rng: random.Random) -> str:
        if name not in PRICES or len(self.items) >= self.most:
            raise InvalidAction(f"no {name}")
        self.items[name] = Item(name, [Colour("red").value])
        return json.dumps([math.floor(rng.random()), sorted(self.items), self.total, PRICES[name]])

    @property
    def total(self) -> int:
        return sum(PRICES[name] for name in self.items) + self._help(1)

    @staticmethod
    @functools.cache
    def _help(n: int) -> int:
        return sum(helper(i) for i in range(n))


def helper(n: int) -> int:
    return n * 2


def reaching(name: str, use: Callable[[Any], Any]) -> type:
    return type(name, (Shelf,), {"send": use})


def open_file(self: Any) -> None:
    with open("ledger", "a") as file:
        file.write("x")


def by_path(self: Any) -> None:
    Path("ledger").write_text("x")


def by_import(self: Any) -> None:
    import os

    os.remove("ledger")


def by_help(self: Any) -> None:
    deep_help()


def deep_help() -> None:
    subprocess.run(["mail"])


def by_mail(self: Any) -> None:
    smtplib.SMTP("localhost")


def by_thread(self: Any) -> None:
    threading.Thread(target=by_mail).start()


def by_log(self: Any) -> None:
    LOG.info("x")


def by_list(self: Any) -> None:
    SENT.append("x")


def by_lambda(self: Any) -> list[Any]:
    return [(lambda: open("x"))() for _ in "a"]


def by_builtins(self: Any) -> Any:
    return __builtins__["open"]("x")  # type: ignore[index]


@pytest.mark.parametrize("thing", [Shelf, Shelf(), lambda task: Shelf(), functools.partial(Shelf)])
def test_an_object_that_keeps_to_itself_is_a_sandbox_without_a_word(thing: Any) -> None:
    assert outside([thing]) is None
    assert ToolWorld.of(thing).sandboxed is True


@pytest.mark.parametrize(
    ("use", "why"),
    [
        (open_file, "open_file uses open"),
        (by_path, "uses os"),
        (by_import, "by_import uses os"),
        (by_help, "deep_help uses subprocess"),
        (by_mail, "by_mail uses smtplib"),
        (by_thread, "uses"),
        (by_log, "uses"),
        (by_list, "by_list uses SENT outside the object"),
        (by_lambda, "by_lambda uses open"),
        (by_builtins, "by_builtins uses __builtins__"),
    ],
)
def test_what_reaches_out_is_named_and_the_world_is_live(use: Callable[[Any], Any], why: str) -> None:
    kind = reaching("Careless", use)
    assert why in not_none(outside([kind]))
    assert ToolWorld.of(kind).sandboxed is False and ToolWorld.of(kind()).sandboxed is False
    assert ToolWorld.of(lambda task: kind(), tools=[use]).sandboxed is False


def test_objects_held_by_the_tool_object_are_examined_too() -> None:
    world: Any = Shelf()
    world.base = sqlite3.connect(":memory:")
    assert "sqlite3.Connection" in not_none(outside([world]))
    world.base = reaching("Careless", by_mail)()
    assert "smtplib" in not_none(outside([world]))


def test_a_declared_sandboxed_overrides_what_was_found() -> None:
    kind = reaching("Careless", by_mail)
    assert ToolWorld.of(kind, sandboxed=True).sandboxed is True
    assert ToolWorld.of(Shelf, sandboxed=False).sandboxed is False
    assert ToolWorld.of(type("Told", (kind,), {"sandboxed": True})).sandboxed is True
    assert ToolWorld.of(type("Told", (Shelf,), {"sandboxed": False})).sandboxed is False


async def test_a_gym_that_moves_something_real_says_so() -> None:
    gymnasium = pytest.importorskip("gymnasium")

    class Arm(gymnasium.Env):  # type: ignore[name-defined,misc]
        metadata = {"sandboxed": False}
        action_space = observation_space = gymnasium.spaces.Discrete(2)

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[int, dict[str, Any]]:
            return 0, {}

    env = GymEnvironment("arm", Arm)
    await env.reset(Task("arm", "1", "move"), 0)
    assert not env.sandboxed and (await env.actions())[0].effect.needs_commit
    assert (await GymEnvironment("cart", lambda: gymnasium.make("CartPole-v1")).opened()).sandboxed
