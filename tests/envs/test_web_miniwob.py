"""MiniWoB's pages under a frozen clock: started offline, come back to, played through our own actions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from not_none import not_none

pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")
pytest.importorskip("miniwob", reason="needs the pages of MiniWoB: pip install --no-deps miniwob")

from treewright.benchmarks.web_trials import miniwob
from treewright.envs import Action, InvalidAction, Restore, TreewrightError, Turn
from treewright.envs.web import miniwob as home
from treewright.envs.web.browser import close_browser, find_chromium
from treewright.envs.web.miniwob import STEP, SUITE, make_task, names, open_session
from treewright.envs.web.miniwob_oracles import KNOWN

if find_chromium() is None:
    pytest.skip("no Chromium: apt-get install chromium-headless-shell", allow_module_level=True)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def env() -> AsyncIterator[home.MiniWobEnvironment]:
    session = await open_session()
    yield session
    await session.close()
    await close_browser()


async def test_there_are_130_pages_and_experts_for_at_least_thirty() -> None:
    assert len(names()) == 130 and len(set(KNOWN) & set(names())) == len(KNOWN) >= 30
    assert [t.data["page"] for t in SUITE.tasks("test", 130)][: len(KNOWN)] == list(KNOWN)
    assert len({t.data["page"] for t in SUITE.tasks("test", 130)}) == 130


async def test_missing_pages_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "find_spec", lambda name: None)
    home.pages.cache_clear()
    try:
        with pytest.raises(TreewrightError, match="pip install --no-deps miniwob"):
            home.pages()
    finally:
        monkeypatch.undo()
        home.pages.cache_clear()


async def test_a_sample_of_pages_starts_offline_and_comes_back_after_two_steps(env: home.MiniWobEnvironment) -> None:
    found = await miniwob([*names()[::16], "chase-circle", "click-pie", "moving-items"], KNOWN[::12])
    assert found.started == 12 and found.restored == 12 and not found.unreachable
    assert found.requests_out == 0
    assert len(found.solved) == found.experts


async def test_sessions_of_one_browser_begin_side_by_side(env: home.MiniWobEnvironment) -> None:
    sessions = [env, await open_session(), await open_session()]

    async def begin(session: home.MiniWobEnvironment, which: int) -> int:
        goals = [(await session.reset(make_task("train", page, which), 1)).text for page in home.SIMPLE[which::3]]
        return sum("goal " in text for text in goals)

    try:
        assert sum(await asyncio.gather(*map(begin, sessions, range(3)))) == 20
    finally:
        await asyncio.gather(*(session.close() for session in sessions[1:]))


async def test_nothing_moves_until_an_action_lets_time_pass(env: home.MiniWobEnvironment) -> None:
    first = await env.reset(make_task("test", "moving-items"), 0)
    await asyncio.sleep(0.3)
    assert await env._look() == first
    later = (await env.step(Action.of("wait", milliseconds=2000), 0)).observation
    assert later.text != first.text
    assert (await env.reset(make_task("test", "moving-items"), 0)) == first


async def test_a_page_that_waits_for_a_picture_is_read_once_the_picture_is_there(env: home.MiniWobEnvironment) -> None:
    await env.reset(make_task("test", "click-test"), 0)
    slow = """(() => { const picture = new Image(), channel = new MessageChannel(); let ready = null;
    Object.defineProperty(picture, 'complete', {get: () => false});
    channel.port1.onmessage = () => { document.querySelector('#area').append('it is there'); ready() };
    picture.decode = () => new Promise(done => { ready = done; channel.port2.postMessage(0) });
    document.body.append(picture) })()"""
    tab = not_none(env._tab)
    await tab.cdp.send("Runtime.evaluate", {"expression": slow})
    assert "it is there" in (await env._look()).text


async def test_the_reward_is_the_raw_one_and_the_timer_is_off(env: home.MiniWobEnvironment) -> None:
    task = make_task("test", "click-test-2")
    await env.reset(task, 0)
    for _ in range(4):
        result = await env.step(Action.of("wait", milliseconds=60_000), 0)
    assert not result.terminated
    result = await env.step(Action.of("click", ref="e1"), 0)
    assert result.terminated and result.reward == 1.0
    with pytest.raises(InvalidAction, match="over"):
        await env.step(Action.of("click", ref="e1"), 0)
    await env.reset(task, 0)
    assert (await env.step(Action.of("click", ref="e2"), 0)).reward == -1.0


async def test_time_is_kept_to_the_millisecond(env: home.MiniWobEnvironment) -> None:
    """ONE, wait, TWO: right within 15 %, and too late by one second is not."""
    for late, reward in ((0, 1.0), (4000, -1.0)):
        task = make_task("test", "button-delay")
        history = [Turn(None, await env.reset(task, 0))]
        for _ in range(3):
            action = not_none(SUITE.oracle)(task, history, env.tools)
            if action.name == "wait":
                action = Action.of("wait", milliseconds=action.arguments["milliseconds"] + late)
                assert action.arguments["milliseconds"] % 1000 == 1000 - STEP
            result = await env.step(action, 0)
            history.append(Turn(action, result.observation))
        assert result.terminated and result.reward == reward


async def test_seeds_make_episodes_and_the_same_seed_the_same_one(env: home.MiniWobEnvironment) -> None:
    texts = [(await env.reset(make_task("test", "click-checkboxes", v), 0)).text for v in (0, 1, 0)]
    assert texts[0] == texts[2] != texts[1]
    assert env.restore_ways == {Restore.REPLAY} and env.sandboxed
