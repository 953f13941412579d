"""A failed clause names the field that differs, in every kind of world; and slow worlds hold nobody up."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import pytest

from treewright.envs import Action, Observation, StepResult, Task
from treewright.envs.check import check_env
from treewright.envs.check.report import Report
from treewright.envs.custom import JudgedEnvironment
from treewright.envs.tools.world import ToolWorld
from treewright.envs.types import BaseEnvironment, Effect, ToolSpec, Turn, digest

TICKETS = itertools.count(100)
TASK = Task("desk", "t0", "file it", horizon=4)


@dataclass
class Drawer:
    papers: list[Any] = field(default_factory=list)


class Desk:
    """Files papers; a ticket number from outside is kept where nobody looks."""

    def __init__(self) -> None:
        self.drawers = {"top": Drawer(), "low": Drawer()}
        self.calls = 0

    def file(self, text: str) -> str:
        """Puts a paper away."""
        self.calls += 1
        self.drawers["low"].papers.append({"text": text, "ticket": next(TICKETS)})
        return "filed"


def plan(task: Task, history: Sequence[Turn], tools: Any) -> Action:
    return Action.of("file", text="a") if len(history) < 3 else Action.of("done", answer="")


def detail(report: Report, clause: str) -> str:
    return next(result.detail for result in report.results if result.name == clause)


async def test_a_field_deep_in_an_object_is_named_with_both_values() -> None:
    world = ToolWorld.of(Desk, sandboxed=True)  # its count of tickets is outside of it
    report = await check_env(world.open, [TASK], oracle=plan)
    told = detail(report, "replay")
    assert "drawers['low'].papers[0]['ticket'] is '1" in told and "expected '1" in told
    assert "calls" not in told and "text" not in told.partition("the field")[2]


class Clerk(BaseEnvironment):
    """A plain environment with a hash for a fingerprint; each session has a badge, which the hash does not read."""

    name = "clerk"
    tools = (ToolSpec("go", "", {"type": "object", "properties": {}}, Effect.REVERSIBLE),)
    badges = itertools.count()

    def __init__(self) -> None:
        self.badge = next(self.badges)

    async def reset(self, task: Task, key: int) -> Observation:
        self.place, self.stamp = [0, 0], next(TICKETS)
        return self.seen()

    async def step(self, action: Action, key: int) -> StepResult:
        self.place[1] += 1
        return StepResult(self.seen(), effect=Effect.REVERSIBLE)

    def seen(self) -> Observation:
        return Observation("somewhere", digest(str(self.place), str(self.stamp)))


@pytest.mark.parametrize("wrap", [False, True])
async def test_the_field_of_a_plain_environment_is_named_also_behind_a_reward(wrap: bool) -> None:
    async def opened() -> JudgedEnvironment | Clerk:
        return JudgedEnvironment(Clerk(), lambda task, history: 1.0, "own") if wrap else Clerk()

    report = await check_env(opened, [TASK], clauses=["reset_deterministic"])
    assert "the field badge is" in str(report) or "the field stamp is" in str(report)
    assert "stamp is '1" in str(report) and "place" not in str(report)


class Elsewhere(BaseEnvironment):
    name = "elsewhere"
    tools = Clerk.tools

    async def reset(self, task: Task, key: int) -> Observation:
        return Observation("here", digest(str(next(TICKETS))))

    async def step(self, action: Action, key: int) -> StepResult:
        return StepResult(Observation("there", "f"), effect=Effect.REVERSIBLE)


async def test_what_differs_outside_the_session_is_said_to_lie_there() -> None:
    async def opened() -> Elsewhere:
        return Elsewhere()

    report = await check_env(opened, [TASK], clauses=["reset_deterministic"])
    assert "no field of the session differs: look outside it" in str(report)


class Novel(Elsewhere):
    async def reset(self, task: Task, key: int) -> Observation:
        return Observation("word " * 500 + str(next(TICKETS)) + " and so on" * 99, "f")


async def test_of_long_texts_the_first_difference_is_shown() -> None:
    async def opened() -> Novel:
        return Novel()

    report = await check_env(opened, [TASK], clauses=["reset_deterministic"])
    assert "text differs at character 25" in str(report) and len(str(report)) < 900


# -- slow worlds ------------------------------------------------------------------------------------------------------


class Ticker:
    """How long the event loop stood still at most."""

    async def __aenter__(self) -> Ticker:
        self.longest, self.job = 0.0, asyncio.create_task(self._tick())
        await asyncio.sleep(0)
        return self

    async def _tick(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            self.longest = max(self.longest, time.perf_counter() - before)

    async def __aexit__(self, *_: KW_ONLY) -> None:
        await asyncio.sleep(0.01)
        self.job.cancel()


class Archive:
    """Its copy takes long."""

    copies = 0

    def __init__(self) -> None:
        self.n = 0

    def add(self) -> None:
        self.n += 1

    def __deepcopy__(self, memo: Any) -> Archive:
        Archive.copies += 1
        time.sleep(0.6)
        made = Archive()
        made.n = self.n
        return made


def slow_fingerprint(archive: Any) -> str:
    time.sleep(0.6)
    return digest(str(archive.n))


@pytest.mark.parametrize("options", [{}, {"fingerprint": slow_fingerprint}], ids=["copy", "copy and fingerprint"])
async def test_a_slow_copy_and_a_slow_fingerprint_do_not_hold_the_event_loop(
    options: dict[str, Any],
) -> None:
    world = ToolWorld.of(Archive(), **options)
    async with Ticker() as ticker:
        await world.reset(TASK, 0)
        snapshot = await world.snapshot()
        result = await world.step(Action.of("add"), 0)
        back = await world.restore(snapshot)
    assert Archive.copies and ticker.longest < 0.4
    assert back.fingerprint == snapshot.fingerprint != result.observation.fingerprint


class Ledger:
    """Holds a connection that only the thread that made it may touch."""

    def __init__(self) -> None:
        self.db = sqlite3.connect(":memory:")
        self.db.execute("create table t (x)")

    def add(self, x: int) -> None:
        self.db.execute("insert into t values (?)", (x,))

    def snapshot(self) -> bytes:
        return "\n".join(self.db.iterdump()).encode()

    def restore(self, data: Any) -> None:
        self.db.close()
        self.db = sqlite3.connect(":memory:")
        self.db.executescript(data.decode())


async def test_an_object_that_is_bound_to_its_thread_is_fingerprinted_there() -> None:
    world = ToolWorld.of(Ledger)
    start = await world.reset(TASK, 0)
    snapshot = await world.snapshot()
    moved = (await world.step(Action.of("add", x=3), 0)).observation
    assert moved.fingerprint != start.fingerprint
    assert (await world.restore(snapshot)).fingerprint == start.fingerprint


class Growing:
    def __init__(self) -> None:
        self.rows: list[Any] = []

    def grow(self, n: int) -> None:
        self.rows.append("x" * n)


async def test_a_snapshot_counts_what_the_object_has_grown_to() -> None:
    world = ToolWorld.of(Growing(), fingerprint=lambda obj: str(len(obj.rows)))
    await world.reset(TASK, 0)
    small = (await world.snapshot()).size
    await world.step(Action.of("grow", n=3_000_000), 0)
    assert (await world.snapshot()).size >= small + 3_000_000
