"""Frames of other sites, each in a process of its own: seen, used, judged and guarded like the page around them."""

from __future__ import annotations

# ruff: noqa: E501
import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from not_none import not_none

from treewright.envs.types import StepResult

pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")

from treewright.envs import Action, Effect, InvalidAction, Task
from treewright.envs.web.browser import FLAGS_VARIABLE, close_browser, find_chromium, shared_browser
from treewright.envs.web.environment import FullWebEnvironment

if find_chromium() is None:
    pytest.skip("no Chromium: apt-get install chromium-headless-shell", allow_module_level=True)

pytestmark = pytest.mark.asyncio(loop_scope="module")
TASK = Task("web", "t", "look around")
# ONE, TWO and THREE are hosts; what a button does is named by it.
PAGES = {
    "/": """<title>outer</title><button>before</button><div style="height:900px"></div>
        <iframe title=shop src=http://TWO/shop width=500 height=300 style="border:7px solid; padding:3px"></iframe><button>after</button>""",
    "/shop": """<h1>shop</h1><div style="height:500px"></div><button onclick="out.textContent = 'pressed'">deep</button>
        <input aria-label=field><select aria-label=size><option>small</option><option>big</option></select>
        <input type=checkbox aria-label=gift><input type=file aria-label=file onchange="out.textContent = this.files[0].name">
        <button onmouseover="out.textContent = 'seen'">menu</button><button onclick="out.textContent = confirm('sure?')">next</button>
        <a href=/slow>more</a><p id=out></p><iframe title=nested src=http://THREE/nested></iframe><iframe title=home src=http://ONE/home></iframe>""",
    "/nested": """<div style="height:300px"></div><button onclick="this.textContent = 'third pressed'">third</button>""",
    "/home": "<button onclick=\"this.textContent = 'home pressed'\">home</button>",
    "/slow": "<h1>arrived</h1>",
    "/writes": "<title>writes</title><iframe src=http://TWO/buttons width=600 height=400></iframe>",
    "/buttons": """<form method=post action=/form><button>buy</button></form>
        <form method=post action=/window target=_blank><button id=blank>pay</button></form>
        <button onclick="fetch('/fetch', {method: 'POST', body: 'x'})">show fetch</button>
        <button onclick="fetch('/kept', {method: 'PUT', body: 'x', keepalive: true})">show kept</button>
        <button onclick="navigator.sendBeacon('/beacon', 'x')">show beacon</button>
        <button onclick="blank.click()">show window</button>
        <button onclick="var s = new WebSocket('ws://' + location.host + '/socket'); s.onopen = () => { s.send('buy'); this.textContent = 'sent' }">show socket</button>
        <button onclick="new Worker(self.URL.createObjectURL(new Blob(['fetch(`http://TWO/worker`, {method: `POST`, mode: `no-cors`})'])))">show worker</button>
        <button onclick="top.location = 'http://TWO/top'">show top</button>""",
    "/covered": """<title>covered</title><iframe src=http://TWO/home width=300 height=100></iframe><div style="position:fixed;inset:0">x</div>""",
    "/top": "<title>top</title>",
}  # fmt: skip


class Sites:
    """Three hosts that are three sites to a browser; `asked` and `said` hold what came in."""

    separate: bool

    def __init__(self) -> None:
        self.hosts: list[Any]
        self.servers: list[Any]
        self.said: list[Any]
        self.asked: list[Any]
        self.asked, self.said, self.servers, self.hosts = [], [], [], []

    async def start(self) -> Sites:
        for n in (1, 2, 3):
            try:
                server = await asyncio.start_server(self.serve, f"127.0.0.{n}", 0)
            except OSError:
                pytest.skip(f"this machine has no address 127.0.0.{n}")
            self.servers.append(server)
            self.hosts.append(f"127.0.0.{n}:{server.sockets[0].getsockname()[1]}")
        return self

    async def serve(self, reader: Any, writer: Any) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, path = head.split(" ")[:2]
        if "upgrade: websocket" in head.lower():
            await self.talk(reader, writer, head)
            return
        self.asked.append(f"{method} {path}")
        body = PAGES.get(path, "<p>thank you</p>")
        for name, host in zip(("ONE", "TWO", "THREE"), self.hosts, strict=True):
            body = body.replace(name, host)
        writer.write(
            f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
        )
        await writer.drain()
        writer.close()

    async def talk(self, reader: Any, writer: Any, head: Any) -> None:
        key = next(line.split(": ")[1] for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key"))
        accept = base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()).decode()
        writer.write(
            f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )
        try:
            while True:
                start = await reader.readexactly(2)
                mask, data = await reader.readexactly(4), await reader.readexactly(start[1] & 127)
                if start[0] & 15 == 1:
                    self.said.append(bytes(b ^ mask[i % 4] for i, b in enumerate(data)).decode())
        except asyncio.IncompleteReadError:
            writer.close()

    @property
    def changed(self) -> list[Any]:
        return [line for line in self.asked if not line.startswith("GET ")] + self.said


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=["one process", "one process for each site"])
async def sites(request: pytest.FixtureRequest) -> AsyncIterator[Sites]:
    patch = pytest.MonkeyPatch()
    if request.param != "one process":
        patch.setenv(FLAGS_VARIABLE, "--site-per-process")
    found = await Sites().start()
    found.separate = request.param != "one process"
    yield found
    for server in found.servers:
        server.close()
    await close_browser()
    patch.undo()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def env(sites: Sites, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FullWebEnvironment]:
    folder = tmp_path_factory.mktemp("uploads")
    (folder / "list.txt").write_text("hello")
    session = FullWebEnvironment(f"http://{sites.hosts[0]}/", hosts=sites.hosts, uploads=folder, part=6000)
    yield session
    await session.close()


def ref(env: FullWebEnvironment, name: str) -> str:
    return next(element.ref for element in env._view.elements.values() if element.name.startswith(name))


async def do(env: FullWebEnvironment, tool: str, **given: Any) -> StepResult:
    return await env.step(Action.of(tool, **given), 0)


async def test_frames_of_other_sites_are_read_in_their_place_and_really_are_apart(
    env: FullWebEnvironment, sites: Sites
) -> None:
    seen = await env.reset(TASK, 0)
    shown = [line.split(" e")[0] for line in seen.text.splitlines()]
    places = [shown.index(line) for line in (
        'button "before"', 'iframe "shop"', 'heading "shop"', 'button "deep"', 'iframe "nested"', 'button "third"',
        'iframe "home"', 'button "home"', 'button "after"',
    )]  # fmt: skip
    assert places == sorted(places)
    frames = not_none(env._tab).frames
    assert frames.separate(env._view.elements[ref(env, "deep")].frame) is sites.separate
    sessions = {frames.session(env._view.elements[ref(env, name)].frame) for name in ("deep", "third", "home")}
    assert len(sessions) == (3 if sites.separate else 1)


async def test_elements_of_frames_of_other_sites_are_used_like_others(env: FullWebEnvironment) -> None:
    await env.reset(TASK, 0)
    assert 'text "pressed"' in (await do(env, "click", ref=ref(env, "deep"))).observation.text
    assert '= "abc"' in (await do(env, "fill", ref=ref(env, "field"), text="abc")).observation.text
    await do(env, "press", ref=ref(env, "field"), key="End")
    assert '= "abcxy"' in (await do(env, "type", text="xy")).observation.text
    assert '= "big"' in (await do(env, "select", ref=ref(env, "size"), option="big")).observation.text
    assert "checked" in (await do(env, "check", ref=ref(env, "gift"), on=True)).observation.text
    assert 'text "list.txt"' in (await do(env, "upload", ref=ref(env, "file"), file="list.txt")).observation.text
    assert 'text "seen"' in (await do(env, "hover", ref=ref(env, "menu"))).observation.text
    assert 'button "third pressed"' in (await do(env, "click", ref=ref(env, "third"))).observation.text
    assert 'button "home pressed"' in (await do(env, "click", ref=ref(env, "home"))).observation.text
    assert 'dialog confirm "sure?"' in (await do(env, "click", ref=ref(env, "next"))).observation.text
    assert 'text "true"' in (await do(env, "accept", text="")).observation.text
    assert 'heading "arrived"' in (await do(env, "click", ref=ref(env, "more"))).observation.text


async def test_what_covers_a_frame_covers_its_elements(env: FullWebEnvironment) -> None:
    await env.reset(TASK, 0)
    await do(env, "goto", path="/covered")
    with pytest.raises(InvalidAction, match="is covered by another element"):
        await do(env, "click", ref=ref(env, "home"))


HIDDEN = {
    "show fetch": "POST /fetch", "show kept": "PUT /kept", "show beacon": "POST /beacon", "show window": "POST /window",
    "show socket": "buy", "show worker": "POST /worker",
}  # fmt: skip


@pytest.mark.parametrize("locked", [True, False])
async def test_what_a_frame_sends_without_being_judged_to_is_stopped_and_seen(sites: Sites, locked: bool) -> None:
    env = FullWebEnvironment(f"http://{sites.hosts[0]}/writes", hosts=sites.hosts, locked=locked, quiet=0.1)
    found = {}
    try:
        for name in HIDDEN:
            await env.reset(TASK, 0)
            sites.asked.clear()
            sites.said.clear()
            click = Action.of("click", ref=ref(env, name))
            assert await env.effect(click) is Effect.READ
            result = await env.step(click, 0)
            found[name] = list(sites.changed)
            assert result.effect is Effect.UNKNOWN, name
            assert ("denied" in result.info) is locked, name
    finally:
        await env.close()
    assert found == {name: [] if locked else [sent] for name, sent in HIDDEN.items()}


async def test_a_form_in_a_frame_is_judged_by_its_method_and_sent_when_it_is_executed(
    env: FullWebEnvironment, sites: Sites
) -> None:
    await env.reset(TASK, 0)
    await do(env, "goto", path="/writes")
    for name in ("buy", "pay"):
        assert await env.effect(Action.of("click", ref=ref(env, name))) is Effect.IRREVERSIBLE
    sites.asked.clear()
    result = await do(env, "click", ref=ref(env, "buy"))
    assert sites.changed == ["POST /form"] and result.effect is Effect.IRREVERSIBLE
    assert 'text "thank you"' in result.observation.text


async def test_a_frame_that_leaves_the_page_takes_nothing_with_it(env: FullWebEnvironment) -> None:
    await env.reset(TASK, 0)
    await do(env, "goto", path="/writes")
    assert (await do(env, "click", ref=ref(env, "show top"))).observation.text.startswith('page "top"')
    assert not not_none(env._tab).watcher._loading and (await do(env, "back")).info == {}
    assert "show top" in env._view.parts(6000)[0]


async def test_service_workers_are_blocked_where_a_bare_context_has_them(env: FullWebEnvironment, sites: Sites) -> None:
    register = "navigator.serviceWorker.register('/sw.js').then(() => 'has one', () => 'failed')"
    await env.reset(TASK, 0)
    sites.asked.clear()
    await asyncio.wait_for(
        not_none(env._tab).page.evaluate(f"Promise.race([{register}, new Promise(r => setTimeout(r, 500))])"), 5
    )
    assert "GET /sw.js" not in sites.asked
    bare = await (await shared_browser()).new_page()
    try:
        await bare.goto(f"http://{sites.hosts[0]}/top")
        await bare.evaluate(register)
    finally:
        await bare.close()
    assert "GET /sw.js" in sites.asked
