"""Coming back on a site without saved state: by address and storage, by replay on top of them, or not at all."""

from __future__ import annotations

# ruff: noqa: E501
import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from treewright.envs.types import Observation

pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")

from treewright.envs import Action, Divergence, Restore, RestoreUnsupported, Snapshot, Task
from treewright.envs.web.browser import close_browser, find_chromium
from treewright.envs.web.checkpoint import CheckpointEnvironment
from treewright.envs.web.tab import Tab

if find_chromium() is None:
    pytest.skip("no Chromium: apt-get install chromium-headless-shell", allow_module_level=True)

pytestmark = pytest.mark.asyncio(loop_scope="module")
TASK = Task("web", "t", "look around")
SCRIPT = """<script>
  const show = () => out.textContent = 'kept ' + (localStorage.kept || 0) + ' own ' + own + ' cookie ' + document.cookie;
  let own = 0; addEventListener('load', show);
</script>"""
PAGES = {
    "/": "<title>start</title>" + SCRIPT + """<a href=/two>two</a>
        <button onclick="localStorage.kept = 1 + Number(localStorage.kept || 0); document.cookie = 'a=b'; show()">show kept</button>
        <button onclick="own++; show()">show own</button>
        <form method=post action=/final><button>finish</button></form><p id=out></p>""",
    "/two": "<title>two</title>" + SCRIPT + """<button onclick="own++; show()">show own</button><p>version VERSION</p><p id=out></p>""",
    "/final": "<title>final</title>" + SCRIPT + "<button onclick='own++; show()'>show own</button><p id=out></p>",
}  # fmt: skip


class Site:
    url: str

    def __init__(self) -> None:
        self.asked: list[Any]
        self.version, self.asked = 1, []

    async def serve(self, reader: Any, writer: Any) -> None:
        method, path = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split(" ")[:2]
        self.asked.append(f"{method} {path}")
        body = PAGES.get(path, "").replace("VERSION", str(self.version)).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def site() -> AsyncIterator[Any]:
    found = Site()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield found
    server.close()
    await close_browser()


@pytest_asyncio.fixture(loop_scope="module")
async def env(site: Any) -> AsyncIterator[CheckpointEnvironment]:
    session = CheckpointEnvironment(f"{site.url}/")
    yield session
    await session.close()


async def click(env: CheckpointEnvironment, name: str) -> Observation:
    ref = next(element.ref for element in env._view.elements.values() if element.name == name)
    return (await env.step(Action.of("click", ref=ref), 0)).observation


async def test_storage_and_cookies_come_back_with_the_address_alone(env: CheckpointEnvironment) -> None:
    await env.reset(TASK, 0)
    await click(env, "show kept")
    seen = await click(env, "two")
    assert "kept 1 own 0 cookie a=b" in seen.text
    snapshot = await env.snapshot()
    env.prices.step = 60.0  # replay would be dear
    await env.reset(TASK, 0)
    assert (await env.restore(snapshot)) == seen and env.ways == [0]
    assert (await env.step(Action.of("back"), 0)).observation.text.startswith('page "start"')


async def test_what_an_address_does_not_bring_back_is_repeated_from_an_earlier_checkpoint(
    env: CheckpointEnvironment,
) -> None:
    await env.reset(TASK, 0)
    await click(env, "show kept")
    await click(env, "two")
    await env.snapshot()
    await click(env, "show own")
    seen = await click(env, "show own")
    assert "own 2" in seen.text
    snapshot = await env.snapshot()
    env.prices.step, env.prices.stored = 60.0, 1.0
    await env.reset(TASK, 0)
    assert (await env.restore(snapshot)) == seen and env.ways == [2]


async def test_the_cheaper_way_is_tried_first(env: CheckpointEnvironment) -> None:
    await env.reset(TASK, 0)
    seen = await click(env, "show kept")
    snapshot = await env.snapshot()
    env.prices.bare = env.prices.step = 0.0
    env.prices.stored = 5.0
    assert (await env.restore(snapshot)) == seen and env.ways == [1]
    assert 0 < env.prices.bare < 5.0 and env.prices.stored == 5.0, "what was used was measured"


async def test_nothing_irreversible_is_ever_repeated(env: CheckpointEnvironment, site: Any) -> None:
    await env.reset(TASK, 0)
    await click(env, "finish")
    seen = await click(env, "show own")
    assert "own 1" in seen.text
    snapshot = await env.snapshot()
    site.asked.clear()
    with pytest.raises(Divergence):
        await env.restore(snapshot)
    assert not [entry for entry in site.asked if entry.startswith("POST")]


async def test_a_site_that_has_changed_is_a_divergence_and_the_open_page_stays(
    env: CheckpointEnvironment, site: Any
) -> None:
    await env.reset(TASK, 0)
    await click(env, "two")
    snapshot = await env.snapshot()
    await env.reset(TASK, 0)
    kept = await click(env, "show own")
    site.version += 1
    with pytest.raises(Divergence):
        await env.restore(snapshot)
    assert (await env._look()).text == kept.text
    assert "own 2" in (await click(env, "show own")).text


async def test_another_session_comes_to_the_same_page_and_other_kinds_are_refused(
    env: CheckpointEnvironment, site: Any
) -> None:
    await env.reset(TASK, 0)
    seen = await click(env, "show kept")
    snapshot = await env.snapshot()
    other = CheckpointEnvironment(f"{site.url}/")
    try:
        assert await other.restore(snapshot) == seen
        with pytest.raises(RestoreUnsupported):
            await other.restore(Snapshot(Restore.FORK, None, ""))
    finally:
        await other.close()


async def test_the_context_that_takes_the_old_ones_place_has_the_same_guards(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among them the browser's own stop, which is the only one where TLS hides methods from the gate."""
    asked, opened = [], Tab.open

    async def noted(*given: Any, **settings: Any) -> Tab:
        asked.append({name: value for name, value in settings.items() if name != "storage"})
        return await opened(*given, **settings)

    monkeypatch.setattr(Tab, "open", noted)
    env = CheckpointEnvironment(
        f"{site.url}/", hosts=[site.url.removeprefix("http://"), "shop.example"], posts=["/ask"]
    )
    try:
        await env.reset(TASK, 0)
        await env.restore(await env.snapshot())
    finally:
        await env.close()
    assert len(asked) == 2 and asked[0] == asked[1] and asked[0]["tunnels"] and asked[0]["posts"] == ("/ask",)
