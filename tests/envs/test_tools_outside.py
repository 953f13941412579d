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
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import BaseModel

from treewright.envs import InvalidAction, Task
from treewright.envs.tools.gym import GymEnvironment
from treewright.envs.tools.outside import outside
from treewright.envs.tools.world import ToolWorld

PRICES = {"apple": 2}
SENT = []
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

    def __init__(self):
        self.items, self.row, self.pair = {}, Row(n=1), Pair(1, 2)

    async def wait(self):
        with threading.Lock():
            await asyncio.sleep(0)

    def put(self, name: str, *, rng: random.Random) -> str:
        if name not in PRICES or len(self.items) >= self.most:
            raise InvalidAction(f"no {name}")
        self.items[name] = Item(name, [Colour("red").value])
        return json.dumps([math.floor(rng.random()), sorted(self.items), self.total, PRICES[name]])

    @property
    def total(self):
        return sum(PRICES[name] for name in self.items) + self._help(1)

    @staticmethod
    @functools.cache
    def _help(n):
        return sum(helper(i) for i in range(n))


def helper(n):
    return n * 2


def reaching(name, use):
    return type(name, (Shelf,), {"send": use})


def open_file(self):
    with open("ledger", "a") as file:
        file.write("x")


def by_path(self):
    Path("ledger").write_text("x")


def by_import(self):
    import os

    os.remove("ledger")


def by_help(self):
    deep_help()


def deep_help():
    subprocess.run(["mail"])


def by_mail(self):
    smtplib.SMTP("localhost")


def by_thread(self):
    threading.Thread(target=by_mail).start()


def by_log(self):
    LOG.info("x")


def by_list(self):
    SENT.append("x")


def by_lambda(self):
    return [(lambda: open("x"))() for _ in "a"]


def by_builtins(self):
    return __builtins__["open"]("x")


@pytest.mark.parametrize("thing", [Shelf, Shelf(), lambda task: Shelf(), functools.partial(Shelf)])
def test_an_object_that_keeps_to_itself_is_a_sandbox_without_a_word(thing):
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
def test_what_reaches_out_is_named_and_the_world_is_live(use, why):
    kind = reaching("Careless", use)
    assert why in outside([kind])
    assert ToolWorld.of(kind).sandboxed is False and ToolWorld.of(kind()).sandboxed is False
    assert ToolWorld.of(lambda task: kind(), tools=[use]).sandboxed is False


def test_what_an_object_holds_counts_too():
    world = Shelf()
    world.base = sqlite3.connect(":memory:")
    assert "sqlite3.Connection" in outside([world])
    world.base = reaching("Careless", by_mail)()
    assert "smtplib" in outside([world])


def test_a_word_of_the_owner_decides():
    kind = reaching("Careless", by_mail)
    assert ToolWorld.of(kind, sandboxed=True).sandboxed is True
    assert ToolWorld.of(Shelf, sandboxed=False).sandboxed is False
    assert ToolWorld.of(type("Told", (kind,), {"sandboxed": True})).sandboxed is True
    assert ToolWorld.of(type("Told", (Shelf,), {"sandboxed": False})).sandboxed is False


async def test_a_gym_that_moves_something_real_says_so():
    gymnasium = pytest.importorskip("gymnasium")

    class Arm(gymnasium.Env):
        metadata = {"sandboxed": False}
        action_space = observation_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return 0, {}

    env = GymEnvironment("arm", Arm)
    await env.reset(Task("arm", "1", "move"), 0)
    assert not env.sandboxed and (await env.actions())[0].effect.needs_commit
    assert (await GymEnvironment("cart", lambda: gymnasium.make("CartPole-v1")).opened()).sandboxed
