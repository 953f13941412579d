"""The web environment on pages that are harder than the market's: scripts, denied hosts, popups, faults."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from not_none import not_none
from speed import patient

from treewright.envs.types import Observation, StepResult

pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")

import uvicorn
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from treewright.envs import (
    Action,
    ActionTimeout,
    Call,
    Effect,
    EnvFault,
    InvalidAction,
    Restore,
    RestoreUnsupported,
    SessionDied,
    Task,
    TreewrightError,
)
from treewright.envs.web.browser import close_browser, find_chromium, shared_browser
from treewright.envs.web.environment import WebEnvironment

if TYPE_CHECKING:
    from starlette.datastructures import State
    from starlette.requests import Request


if find_chromium() is None:
    pytest.skip("no Chromium: apt-get install chromium-headless-shell", allow_module_level=True)

pytestmark = pytest.mark.asyncio(loop_scope="module")
TASK = Task("web", "t", "look around", data={})
PAGES = {
    "/": """<title>start</title><a href="/two">two</a><a href="FOREIGN/x">away</a><button disabled>off</button>
        <form action="/two"><input aria-label="name"><input aria-label="fixed" readonly value="1">
        <select aria-label="size"><option>small</option><option>big</option></select><button>go</button></form>
        <form method="post" action="/two"><input name="action"><input name="method" value="get">
        <button>send</button></form>
        <input type="checkbox" aria-label="gift"><input type="date" aria-label="day">""",
    "/two": "<title>two</title><h1>second</h1><a href='/'>one</a>",
    "/late": """<title>late</title><button onclick="setTimeout(() => fetch('/slow').then(r => r.text())
        .then(t => out.textContent = t), 5)">load more</button><p id="out"></p>""",
    "/beacon": """<button onclick="fetch('/save', {method: 'POST'})">show more</button>""",
    "/covered": """<button>under</button><div style="position:fixed;inset:0;background:#fff">x</div>""",
    "/popup": """<a href="/two" target="_blank">open</a>""",
    "/dialog": """<button onclick="document.title = confirm('sure?') ? 'yes' : 'no'">show</button>""",
    "/hang": """<button onclick="while (true) {}">show</button>""",
    "/endless": """<title>endless</title><script>setInterval(() => out.textContent = Math.random(), 1)</script>
        <p id="out"></p>""",
    "/long": "".join(f"<p>line number {n} of a long page</p>" for n in range(60)) + "<button>last</button>",
    "/leaks": """<title>leaks</title><img src="FOREIGN/img"><iframe src="FOREIGN/frame"></iframe>
        <link rel="prefetch" href="FOREIGN/prefetch"><script src="FOREIGN/script"></script>
        <script>for (const u of ['/beacon', '/fetch']) { navigator.sendBeacon('FOREIGN' + u, 'x');
        fetch('FOREIGN' + u, {mode: 'no-cors', keepalive: true}).catch(() => 0); }
        new WebSocket('FOREIGN/socket'.replace('http', 'ws'));
        new Worker(URL.createObjectURL(new Blob(["fetch('FOREIGN/worker', {mode: 'no-cors'})"])));
        open('FOREIGN/open'); new EventSource('FOREIGN/events');</script><p>done</p>""",
}


class Server:
    """A site of fixed pages on loopback that remembers what was asked for."""

    def __init__(self, foreign: str = "") -> None:
        self.foreign = foreign
        self.asked: list[Any] = []
        routes = [Route("/{rest:path}", self.answer, methods=["GET", "POST"])]
        self.server = uvicorn.Server(
            uvicorn.Config(Starlette(routes=routes), port=0, lifespan="off", log_config=None, ws="none")
        )
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()

    async def ready(self) -> Server:
        for _ in range(500):
            if self.server.started:
                break
            await asyncio.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"
        return self

    async def answer(self, request: Request[State]) -> RedirectResponse | Response | HTMLResponse:
        path = request.url.path
        self.asked.append(f"{request.method} {path}")
        if path == "/redirect":
            return RedirectResponse(f"{self.foreign}/redirected")
        if path == "/slow":
            await asyncio.sleep(0.15)
            return Response("arrived")
        return HTMLResponse(PAGES.get(path, "<p>none</p>").replace("FOREIGN", self.foreign))

    async def stop(self) -> None:
        self.server.should_exit = True
        await asyncio.to_thread(self.thread.join, 10)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def canary() -> AsyncIterator[Server]:
    server = await Server().ready()
    yield server
    await server.stop()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def server(canary: Server) -> AsyncIterator[Server]:
    server = await Server(canary.url).ready()
    yield server
    await server.stop()
    await close_browser()


@pytest_asyncio.fixture(loop_scope="module")
async def env(server: Server) -> AsyncIterator[WebEnvironment]:
    session = WebEnvironment(f"{server.url}/")
    yield session
    await session.close()


async def at(env: WebEnvironment, path: str, **settings: Any) -> Observation:
    for name, value in settings.items():
        setattr(env, name, value)
    await env.reset(TASK, 0)
    return (await env.step(Action.of("goto", path=path), 0)).observation


async def click(env: WebEnvironment, name: str) -> StepResult:
    ref = next(element.ref for element in env._view.elements.values() if element.name == name)
    return await env.step(Action.of("click", ref=ref), 0)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (Action.of("click", ref="e99"), "no element 'e99' on this page; references here go from e1 to e"),
        (Action.of("click", ref="off"), '"off" e3 is disabled'),
        (Action.of("click", ref="away"), "leads to a host that is not allowed"),
        (Action.of("fill", ref="two", text="x"), "e1 is a link; only fields can be filled"),
        (Action.of("fill", ref="fixed", text="x"), "is read-only"),
        (Action.of("select", ref="name", option="x"), "is a textbox; it has no options"),
        (Action.of("select", ref="size", option="huge"), "has no option 'huge'; options: ('small', 'big')"),
        (Action.of("goto", path="http://example.org/"), "host not allowed: http://example.org/"),
        (Action.of("goto", path="javascript:alert(1)"), "give a path such as '/'"),
        (Action.of("goto", path="file:///etc/passwd"), "give a path such as '/'"),
        (Action.of("goto", path="http://[x"), "give a path such as '/'"),
        (Action.of("goto", path="/\ud800"), "path holds characters that cannot be written"),
        (Action.of("back"), "no page to go back to"),
        (Action.of("part", number=2), "no part 2; this page has 1"),
        (Action.of("part", number=True), "number must be of type integer"),
        (Action.of("fly"), "no action 'fly'; there are: click, fill"),
        (Action.of("click", element="e1"), "click takes {ref}, not {element}"),
        (Action.of("click", ref=1), "ref must be of type string"),
        (Action((Call("back"), Call("back"))), "one action per turn, not 2"),
    ],
)
async def test_invalid_actions_say_what_is_wrong_and_change_nothing(
    env: WebEnvironment, server: Server, action: Action, message: str
) -> None:
    seen = await env.reset(TASK, 0)
    names = {element.name: element.ref for element in env._view.elements.values()}
    if len(action.calls) == 1 and action.arguments.get("ref") in names:
        action = Action.of(action.name, **{**action.arguments, "ref": names[action.arguments["ref"]]})
    asked = len(server.asked)
    assert await env.effect(action) is Effect.READ
    with pytest.raises(InvalidAction, match=re.escape(message)):
        await env.step(action, 0)
    assert len(server.asked) == asked
    assert (await env._look()) == seen


async def test_fields_are_filled_replaced_emptied_and_chosen(env: WebEnvironment) -> None:
    await env.reset(TASK, 0)
    refs = {element.name: element.ref for element in env._view.elements.values()}
    for text in ("ann", 'böb "x"', ""):
        seen = (await env.step(Action.of("fill", ref=refs["name"], text=text), 0)).observation
        assert env._view.elements[refs["name"]].value == text
    seen = (await env.step(Action.of("select", ref=refs["size"], option="big"), 0)).observation
    assert '= "big" from "small", "big"' in seen.text
    assert f'checkbox "gift" {refs["gift"]} checked' in (await click(env, "gift")).observation.text


async def test_fields_that_shadow_their_form_do_not_hide_its_method(env: WebEnvironment) -> None:
    await env.reset(TASK, 0)
    send = next(element.ref for element in env._view.elements.values() if element.name == "send")
    assert await env.effect(Action.of("click", ref=send)) is Effect.IRREVERSIBLE


async def test_back_shows_the_page_before(env: WebEnvironment) -> None:
    await env.reset(TASK, 0)
    assert "back" not in [tool.name for tool in await env.actions()]
    assert (await click(env, "two")).observation.text.startswith('page "two" /two')
    assert "back" in [tool.name for tool in await env.actions()]
    assert (await env.step(Action.of("back"), 0)).observation.text.startswith('page "start" /')


async def test_what_a_click_loads_later_is_waited_for(env: WebEnvironment) -> None:
    await at(env, "/late")
    result = await click(env, "load more")
    assert 'text "arrived"' in result.observation.text and "settled" not in result.info


async def test_page_that_never_settles_is_shown_at_the_deadline_and_says_so(env: WebEnvironment) -> None:
    await env.reset(TASK, 0)
    env.deadline, loop = 0.5, asyncio.get_running_loop()
    begun = loop.time()
    result = await env.step(Action.of("goto", path="/endless"), 0)
    assert result.info["settled"] is False and loop.time() - begun < patient(20)


async def test_unannounced_write_is_seen_in_the_traffic(env: WebEnvironment) -> None:
    await at(env, "/beacon")
    more = Action.of("click", ref="e1")
    assert await env.effect(more) is Effect.READ
    result = await env.step(more, 0)
    assert result.effect is Effect.UNKNOWN and result.info["writes"] == ["POST /save"]


async def test_covered_element_is_not_clicked(env: WebEnvironment) -> None:
    await at(env, "/covered")
    with pytest.raises(InvalidAction, match="covered"):
        await click(env, "under")


async def test_new_window_opens_in_the_same_page(env: WebEnvironment) -> None:
    await at(env, "/popup")
    assert (await click(env, "open")).observation.text.startswith('page "two"')
    assert len(not_none(env._tab).context.pages) == 1


async def test_dialog_is_answered_with_no_and_reported(env: WebEnvironment) -> None:
    await at(env, "/dialog")
    result = await click(env, "show")
    assert result.observation.text.startswith('page "no"') and result.info["dialogs"] == ["confirm sure?"]


async def test_long_page_is_shown_in_parts(env: WebEnvironment) -> None:
    seen = await at(env, "/long", part=600)
    count = int(seen.text.splitlines()[0].rsplit(" ", 1)[1])
    assert count > 2 and "part" in [tool.name for tool in await env.actions()]
    texts = [seen.text]
    for number in range(2, count + 1):
        texts.append((await env.step(Action.of("part", number=number), 0)).observation.text)
    assert all(f'"line number {n} of a long page"' in "".join(texts) for n in range(60))
    assert 'button "last" e1' in texts[-1] and len(set(texts)) == count


async def test_page_that_hangs_is_a_timeout_and_a_new_session_works(env: WebEnvironment) -> None:
    await at(env, "/hang")
    env.patience = env.deadline = 1.0
    with pytest.raises(ActionTimeout):
        await click(env, "show")
    env.patience = 20.0
    assert (await env.reset(TASK, 0)).text.startswith('page "start"')


async def test_nothing_leaves_for_a_host_that_is_not_listed(
    env: WebEnvironment, server: Server, canary: Server
) -> None:
    assert (await at(env, "/leaks", quiet=0.2)).text.startswith('page "leaks"')
    result = await env.step(Action.of("goto", path="/redirect"), 0)
    assert result.observation.text.startswith('page "leaks"'), "a denied redirect leaves the page where it was"
    assert f"127.0.0.1:{urlsplit(canary.url).port}" in result.info["denied"]
    assert canary.asked == []


async def test_the_same_page_reaches_the_host_once_it_is_listed(server: Server, canary: Server) -> None:
    hosts = [urlsplit(server.url).netloc, urlsplit(canary.url).netloc]
    open_env = WebEnvironment(f"{server.url}/", hosts=hosts, quiet=0.2, locked=False)
    try:
        await at(open_env, "/leaks")
        asked = {entry.split("/")[-1] for entry in canary.asked}
        assert asked >= {"img", "frame", "script", "beacon", "fetch", "worker"}
        result = await open_env.step(Action.of("goto", path="/redirect"), 0)
        assert "/redirected" in result.observation.text.splitlines()[0]
    finally:
        await open_env.close()
        canary.asked.clear()


async def test_empty_list_denies_everything(server: Server) -> None:
    closed = WebEnvironment(f"{server.url}/", hosts=[])
    asked = len(server.asked)
    try:
        with pytest.raises(TreewrightError):
            seen = await closed.reset(TASK, 0)
            assert "start" not in seen.text
            await closed.step(Action.of("goto", path="/two"), 0)
        assert len(server.asked) == asked
    finally:
        await closed.close()


async def test_site_without_saved_state_can_only_be_replayed(env: WebEnvironment) -> None:
    await env.reset(TASK, 0)
    assert env.restore_ways == {Restore.REPLAY} and not env.sandboxed
    with pytest.raises(RestoreUnsupported, match="replay"):
        await env.snapshot()


async def test_using_a_session_before_reset_or_after_close_says_what_to_do(env: WebEnvironment) -> None:
    with pytest.raises(SessionDied, match="reset"):
        await env.step(Action.of("back"), 0)
    await env.reset(TASK, 0)
    await env.close()
    await env.close()
    with pytest.raises(SessionDied, match="reset"):
        await env.step(Action.of("back"), 0)


async def test_a_wrong_path_in_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREEWRIGHT_CHROMIUM", "/nowhere/chromium")
    with pytest.raises(TreewrightError, match="TREEWRIGHT_CHROMIUM='/nowhere/chromium' is not an executable"):
        find_chromium()


async def test_no_chromium_at_all_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from treewright.envs.web import browser

    monkeypatch.delenv("TREEWRIGHT_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(TreewrightError, match="apt-get install chromium-headless-shell"):
        browser.require_chromium()


async def test_a_chromium_that_crashes_as_it_starts_is_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    crashes, begun = tmp_path / "chromium", tmp_path / "begun"
    once = f'[ -e "{begun}" ] || {{ : > "{begun}"; kill -SEGV $$; }}'
    crashes.write_text(f'#!/bin/sh\n{once}\nexec "{find_chromium()}" "$@"\n')
    crashes.chmod(0o700)
    await close_browser()
    monkeypatch.setenv("TREEWRIGHT_CHROMIUM", str(crashes))
    browser = await shared_browser()
    assert begun.exists() and browser.is_connected()
    await close_browser()
    begun.unlink()
    crashes.write_text("#!/bin/sh\nkill -SEGV $$\n")
    with pytest.raises(EnvFault, match="chromium did not start"):
        await shared_browser()
