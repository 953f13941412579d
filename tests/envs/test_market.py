"""The market in a real browser: contract, ways back, effects, and a browser that dies."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from not_none import not_none

from treewright.envs.types import Observation, Suite, Task
from treewright.envs.web.market import MarketEnvironment

pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")

from treewright.envs import Action, Divergence, Effect, Environment, InvalidAction, Restore, SessionDied, Turn
from treewright.envs.web.browser import find_chromium, shared_browser
from treewright.envs.web.market import SITE, SUITE, open_live
from treewright.envs.web.market_world import World
from treewright.envs.web.opening import STILL

if find_chromium() is None:
    pytest.skip("no Chromium: apt-get install chromium-headless-shell", allow_module_level=True)

pytestmark = pytest.mark.asyncio(loop_scope="module")
TEST = {task.truth["kind"]: task for task in SUITE.tasks("test", 8)}


@pytest_asyncio.fixture(loop_scope="module", scope="module", autouse=True)
async def suite() -> AsyncIterator[Suite]:
    yield SUITE
    await not_none(SUITE.close)()


@pytest_asyncio.fixture(loop_scope="module")
async def env() -> AsyncIterator[Environment]:
    session = await SUITE.open()
    yield session
    await session.close()


@pytest_asyncio.fixture(loop_scope="module")
async def live() -> AsyncIterator[list[MarketEnvironment]]:
    sessions = [await open_live(), await open_live()]
    yield sessions
    for session in sessions:
        await session.close()
    SITE.forget_shared()


async def follow(env: Any, task: Task, steps: int | None = None) -> tuple[list[Turn], Any | None]:
    """Lets the oracle play; returns the history and the last result."""
    history, result = [Turn(None, await env.reset(task, 0))], None
    for _ in range(task.horizon if steps is None else steps):
        action = not_none(SUITE.oracle)(task, history, env.tools)
        result = await env.step(action, 0)
        history.append(Turn(action, result.observation))
        if result.terminated:
            break
    return history, result


def ref(observation: Observation, name: str) -> str:
    line = next(line for line in observation.text.splitlines() if f'"{name}"' in line)
    return line.split('" ')[1].split(" ")[0]


async def click(env: Environment, observation: Observation, name: str) -> Observation:
    return (await env.step(Action.of("click", ref=ref(observation, name)), 0)).observation


async def test_session_is_an_environment_and_says_how_it_comes_back(env: Environment) -> None:
    assert isinstance(env, Environment)
    assert env.restore_ways == {Restore.STATE, Restore.REPLAY} and env.sandboxed and not env.stochastic


async def test_oracle_solves_twenty_test_tasks_in_short_observations(env: Environment) -> None:
    for task in SUITE.tasks("test", 20):
        history, result = await follow(env, task)
        assert not_none(result).terminated and not_none(result).reward == 1.0, task.goal
        assert len(history) - 1 <= task.horizon - 3
        assert max(len(turn.observation.text) for turn in history) <= 600


async def test_oracle_recovers_from_wrong_steps(env: Any) -> None:
    task = TEST["buy"]
    here = await env.reset(task, 0)
    category = next(
        name for name in ("bags", "books", "chairs", "clocks", "coats", "cups", "lamps", "toys") if name in here.text
    )
    history = [Turn(None, here)]
    for name in (category, None, "add to cart"):
        last = history[-1].observation
        if name is None:
            other = [line for line in last.text.splitlines() if line.startswith("link")][4:]
            name = next(line.split('"')[1] for line in other if task.truth["item"] not in line)
        history.append(Turn(None, await click(env, last, name)))
    assert "cart 1" in history[-1].observation.text
    for _ in range(12):
        action = not_none(SUITE.oracle)(task, history, env.tools)
        result = await env.step(action, 0)
        history.append(Turn(action, result.observation))
        if result.terminated:
            break
    assert result.reward == 1.0


async def test_same_actions_in_another_session_show_the_same(env: Environment) -> None:
    other = await SUITE.open()
    try:
        mine, _ = await follow(env, TEST["cart"])
        theirs, _ = await follow(other, TEST["cart"])
    finally:
        await other.close()
    assert [t.observation for t in mine] == [t.observation for t in theirs]


async def test_snapshot_brings_another_session_to_the_same_state(env: Environment) -> None:
    await follow(env, TEST["buy"], 3)
    snapshot = await env.snapshot()
    assert snapshot.kind is Restore.STATE and len(snapshot.data) == snapshot.size
    here = await env.step(Action.of("back"), 0)
    other = await SUITE.open()
    try:
        seen = await other.restore(snapshot)
        assert seen.fingerprint == snapshot.fingerprint
        there = await other.step(Action.of("back"), 0)
    finally:
        await other.close()
    assert there.observation == here.observation


async def test_restore_undoes_a_purchase_and_the_same_steps_end_the_same(env: Any) -> None:
    history, _ = await follow(env, TEST["buy"], 2)
    snapshot = await env.snapshot()
    rest: list[Any] = []
    for _ in range(2):
        rest = []
        seen = await env.restore(snapshot)
        assert seen == history[-1].observation
        for _ in range(5):
            action = not_none(SUITE.oracle)(TEST["buy"], [*history, *rest], env.tools)
            result = await env.step(action, 0)
            rest.append(Turn(action, result.observation))
            if result.terminated:
                break
        assert result.reward == 1.0
    assert (await env.restore(snapshot)).fingerprint == snapshot.fingerprint


async def test_restore_writes_into_fields_again(env: Environment) -> None:
    seen = await env.reset(TEST["price"], 0)
    plain = seen.fingerprint
    seen = (await env.step(Action.of("fill", ref=ref(seen, "search"), text="lamp"), 0)).observation
    assert '= "lamp"' in seen.text and seen.fingerprint != plain
    snapshot = await env.snapshot()
    seen = await click(env, seen, "find")
    assert "/search?q=lamp" in seen.text
    assert '= "lamp"' in (await env.restore(snapshot)).text


async def test_snapshot_of_an_ended_episode_comes_back_ended(env: Environment) -> None:
    await follow(env, TEST["price"])
    snapshot = await env.snapshot()
    await env.reset(TEST["price"], 0)
    assert (await env.restore(snapshot)).text == "answered"
    with pytest.raises(InvalidAction, match="over"):
        await env.step(Action.of("back"), 0)


async def test_changed_snapshot_is_a_divergence(env: Any) -> None:
    await follow(env, TEST["cart"], 2)
    snapshot = await env.snapshot()
    assert str(env.site.port).encode() not in snapshot.data, "it must outlive this server"
    moved = snapshot.data.replace(b'"/p/', b'"/c/')
    with pytest.raises(Divergence):
        await env.restore(dataclasses.replace(snapshot, data=moved))


async def test_server_state_is_part_of_the_fingerprint(env: Any) -> None:
    await env.reset(TEST["delete"], 0)
    home = (await env.step(Action.of("goto", path="/"), 0)).observation
    env.site.change(env.token, "post", "x", lambda world: world.write_post("x"))
    again = (await env.step(Action.of("goto", path="/"), 0)).observation
    assert again.text == home.text and again.fingerprint != home.fingerprint


async def test_sandboxed_purchase_is_reversible_and_live_purchase_is_not(
    env: Environment, live: list[MarketEnvironment]
) -> None:
    for session, effect in ((env, Effect.REVERSIBLE), (live[0], Effect.IRREVERSIBLE)):
        history, _ = await follow(session, TEST["buy"], 3)
        seen = history[-1].observation
        if '"buy"' not in seen.text:  # more than one piece was chosen first
            seen = (await session.step(not_none(SUITE.oracle)(TEST["buy"], history, ()), 0)).observation
        buy = Action.of("click", ref=ref(seen, "buy"))
        before = len(SITE.ledger)
        assert await session.effect(buy) is effect
        assert len(SITE.ledger) == before, "judging must not act"
        assert await session.effect(Action.of("click", ref=ref(seen, "remove"))) is Effect.REVERSIBLE
        assert await session.effect(Action.of("click", ref=ref(seen, "home"))) is Effect.READ
        assert await session.effect(Action.of("goto", path="/orders")) is Effect.READ
        assert (await session.step(buy, 0)).effect is effect
        assert len(SITE.ledger) == before + 1 and SITE.ledger[-1].action == "buy"


@pytest.mark.parametrize(("kind", "steps", "button"), [("cancel", 2, "cancel"), ("delete", 2, "delete")])
async def test_live_cancelling_and_deleting_are_irreversible(
    live: list[MarketEnvironment], kind: str, steps: int, button: str
) -> None:
    history, _ = await follow(live[0], TEST[kind], steps)
    assert await live[0].effect(Action.of("click", ref=ref(history[-1].observation, button))) is Effect.IRREVERSIBLE


async def test_live_sessions_share_the_shop_but_not_the_cart(live: list[MarketEnvironment]) -> None:
    one, two = live
    task = TEST["buy"]
    await follow(one, task, 3 + int("buy 1" not in task.goal))
    seen = await two.reset(task, 0)
    assert "cart 0" in seen.text
    snapshot = await two.snapshot()
    await follow(one, task)
    ordered = (await two.step(Action.of("goto", path="/orders"), 0)).observation.text
    assert f"{task.truth['pieces']} {task.truth['item']}, open" in ordered
    with pytest.raises(Divergence):
        await two.restore(snapshot)


async def test_eight_sessions_work_at_the_same_time() -> None:
    sessions = [await SUITE.open() for _ in range(8)]
    try:
        played = await asyncio.gather(
            *(follow(s, task) for s, task in zip(sessions, SUITE.tasks("train", 8), strict=True))
        )
    finally:
        await asyncio.gather(*(session.close() for session in sessions))
    assert [not_none(result).reward for _, result in played] == [1.0] * 8


async def test_what_the_shop_refuses_is_shown_and_not_in_the_ledger(env: Any) -> None:
    task = TEST["cart"]
    item = task.truth["item"].replace(" ", "-")
    await env.reset(task, 0)
    seen = (await env.step(Action.of("goto", path=f"/p/{item}"), 0)).observation
    stock = World.build(task.seed, "test").products[item].stock
    env.site.change(env.token, "add", item, lambda world: world.put_in_cart(item, stock) or "")
    before = len(SITE.ledger)
    assert "not enough in stock" in (await click(env, seen, "add to cart")).text
    assert len(SITE.ledger) == before


async def test_a_request_without_a_session_is_turned_away(env: Environment) -> None:
    import httpx

    async with httpx.AsyncClient() as client:
        for method, path in (("GET", "/"), ("POST", "/buy")):
            answer = await client.request(method, SITE.url.rstrip("/") + path)
            assert answer.status_code == 403


async def browser_process() -> Any:
    cdp = await (await shared_browser(STILL)).new_browser_cdp_session()
    found = await cdp.send("SystemInfo.getProcessInfo")
    return next(p["id"] for p in found["processInfo"] if p["type"] == "browser")


async def test_killed_browser_is_a_dead_session_and_reset_opens_a_new_one(env: Environment) -> None:
    history, _ = await follow(env, TEST["buy"], 2)
    snapshot = await env.snapshot()
    os.kill(await browser_process(), signal.SIGKILL)
    with pytest.raises(SessionDied):
        for _ in range(50):
            await env.step(Action.of("goto", path="/"), 0)
    assert await env.restore(snapshot) == history[-1].observation
    assert (await env.reset(TEST["buy"], 0)) == history[0].observation


async def test_closing_the_suite_ends_browser_and_server_and_opening_starts_them_again(env: Environment) -> None:
    await env.reset(TEST["price"], 0)
    pid = await browser_process()
    await env.close()
    await not_none(SUITE.close)()
    assert not running(pid)
    again = await SUITE.open()
    assert (await again.reset(TEST["price"], 0)).text.startswith('page "market" /')
    await again.close()


async def test_browser_ends_with_the_process_that_started_it() -> None:
    script = """
        import asyncio, os
        from treewright.envs.web.browser import shared_browser
        from treewright.envs.web.market import SUITE
        from treewright.envs.web.opening import STILL
        async def main():
            env = await SUITE.open()
            await env.reset(SUITE.tasks("test", 1)[0], 0)
            cdp = await (await shared_browser(STILL)).new_browser_cdp_session()
            found = (await cdp.send("SystemInfo.getProcessInfo"))["processInfo"]
            print(*(p["id"] for p in found), flush=True)
            os.kill(os.getpid(), 9)
        asyncio.run(main())
    """
    child = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    pids = [int(word) for word in child.stdout.split()]
    assert pids
    for _ in range(200):
        left = [pid for pid in pids if running(pid)]
        if not left:
            break
        await asyncio.sleep(0.05)
    assert not left


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
