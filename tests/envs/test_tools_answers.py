"""What tools of one's own may answer and raise: generators are lists, an exit is an error that the policy sees."""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from treewright.envs import Action, EnvFault, Task
from treewright.envs.custom import JudgedEnvironment
from treewright.envs.errors import TreewrightError
from treewright.envs.own import opener_of
from treewright.envs.tools import rows as rows_module
from treewright.envs.tools.world import ToolWorld

TASK = Task("desk", "one", "look")


class Desk:
    sandboxed = True

    def __init__(self) -> None:
        self.seen: list[int] = []

    def rows(self, n: int) -> Iterator[int]:
        for i in range(n):
            self.seen.append(i)
            yield i

    async def waited_rows(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            await asyncio.sleep(0)
            self.seen.append(i)
            yield i

    def broken(self) -> Iterator[int]:
        yield 1
        self.seen.append(1)
        raise ValueError("no second row")

    def endless(self) -> Iterator[int]:
        while True:
            yield 1

    async def endless_waited(self) -> AsyncIterator[int]:
        while True:
            yield 1

    def parsed(self, words: str) -> str:
        parser = argparse.ArgumentParser()
        parser.add_argument("--n", type=int)
        return str(parser.parse_args(words.split()).n)

    async def gives_up(self) -> str:
        raise asyncio.CancelledError("inner")

    async def sleeps(self) -> str:
        await asyncio.sleep(60)
        return "slept"

    def interrupted(self) -> str:
        raise KeyboardInterrupt

    def thing(self) -> object:
        return object()


async def world(blocking: bool = False) -> ToolWorld:
    made = ToolWorld.of(Desk, blocking=blocking)
    await made.reset(TASK, 0)
    return made


async def said(made: ToolWorld, name: str, **arguments: Any) -> str:
    return (await made.step(Action.of(name, **arguments), 1)).observation.text


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("name", ["rows", "waited_rows"])
async def test_a_tool_that_yields_runs_and_answers_a_list(name: str, blocking: bool) -> None:
    made = await world(blocking)
    assert await said(made, name, n=3) == "[0, 1, 2]"
    assert made.object.seen == [0, 1, 2]


async def test_an_error_between_two_items_is_shown_and_what_was_done_stays() -> None:
    made = await world()
    assert await said(made, "broken") == "error: ValueError: no second row"
    assert made.object.seen == [1]


@pytest.mark.parametrize("name", ["endless", "endless_waited"])
async def test_a_tool_that_yields_without_end_is_stopped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "MAX_ROWS", 50)
    assert await said(await world(), name) == "error: ValueError: it gives more than 50 items"


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_tool_that_exits_or_gives_up_is_an_error_that_the_policy_sees(blocking: bool) -> None:
    made = await world(blocking)
    assert await said(made, "parsed", words="--n 3") == "3"
    assert await said(made, "parsed", words="--n x") == "error: SystemExit: 2"
    assert await said(made, "gives_up") == "error: CancelledError: inner"


async def test_a_tool_that_is_cancelled_ends_and_a_key_press_is_no_answer() -> None:
    made = await world()
    running = asyncio.create_task(said(made, "sleeps"))
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(KeyboardInterrupt):
        made.step(Action.of("interrupted"), 1).send(None)


async def test_an_answer_that_is_an_address_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    made = await world()
    with caplog.at_level(logging.WARNING, "treewright"):
        for _ in range(3):
            await said(made, "thing")
            await said(made, "rows", n=1)
    assert [record.getMessage().partition(" answered")[0] for record in caplog.records] == ["the tool 'thing'"]


# -- the same elsewhere -----------------------------------------------------------------------------------------------


async def test_a_judge_or_a_reward_that_exits_is_a_fault() -> None:
    def exits(*_: Any) -> float:
        raise SystemExit(0)

    made = ToolWorld.of(Desk, judge=exits)
    await made.reset(TASK, 0)
    with pytest.raises(TreewrightError, match=r"the judge of 'desk' failed on 'one': SystemExit\(0\)"):
        await made.step(Action.of("done", answer=""), 1)
    judged = JudgedEnvironment(await ToolWorld.of(Desk).open(), lambda task, history: exits(), "desks")
    await judged.reset(TASK, 0)
    with pytest.raises(EnvFault, match=r"the reward function of 'desks' failed .*SystemExit: 0 \(test_tools_answers"):
        await judged.step(Action.of("done", answer=""), 1)


async def test_a_function_that_exits_while_it_makes_a_world_is_named() -> None:
    def made() -> Any:
        raise SystemExit(1)

    with pytest.raises(TreewrightError, match=r"^worlds:made\(\) raised SystemExit: 1 "):
        await opener_of(made, "worlds:made")()  # type: ignore[operator]
