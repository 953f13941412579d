"""Pages that draw on demand, the switches of their browser, and what is read of a page in fewer trips."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio
from not_none import not_none

pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")

from treewright.envs.web import bazaar_world, browser, market_world, opening
from treewright.envs.web.browser import close_browser, find_chromium, shared_browser
from treewright.envs.web.guard import AllowList
from treewright.envs.web.opening import STILL, Drawer
from treewright.envs.web.reading import title_of
from treewright.envs.web.tab import Tab

needs_browser = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium: apt-get install chromium-headless-shell"
)


def in_browser(test: Any) -> Any:
    return needs_browser(pytest.mark.asyncio(loop_scope="module")(test))


PAGE = """data:text/html,<title>still</title><script>let frames = 0, moved = 0;
const count = () => { frames++; requestAnimationFrame(count) }; requestAnimationFrame(count);
onmousemove = () => { moved++ }</script>"""


@pytest_asyncio.fixture(loop_scope="module", scope="module", autouse=True)
async def ended() -> AsyncIterator[None]:
    yield
    await close_browser()


def words_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").split()


async def asked(tab: Tab, expression: str) -> Any:
    answer = await tab.cdp.send("Runtime.evaluate", {"expression": expression, "returnByValue": True})
    return answer["result"].get("value")


async def opened(still: bool) -> Tab:
    tab = await Tab.open(AllowList.of([]), {}, (400, 300), still=still)
    tab.watcher.begin()
    await tab.navigate(PAGE)
    assert await tab.watcher.settled(10, 0.0)
    return tab


def test_switches_that_name_features_become_one_and_the_others_keep_their_order(tmp_path: Path) -> None:
    script = not_none(browser._merging(Path("/bin/echo"), tmp_path))
    given = ["--disable-features=A,B", "--one", "a b", "--disable-features=C", "--two"]
    done = subprocess.run([script, *given], capture_output=True, text=True, check=True)
    assert done.stdout == "--one a b --two --disable-features=A,B,C\n"


def test_a_folder_that_runs_no_programs_leaves_the_browser_as_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert browser._merging(Path("/bin/echo"), tmp_path) is None


@in_browser
async def test_a_browser_has_the_features_off_that_playwright_wants_off_and_ours() -> None:
    cdp = await (await shared_browser(STILL)).new_browser_cdp_session()
    found = (await cdp.send("SystemInfo.getProcessInfo"))["processInfo"]
    pid = next(one["id"] for one in found if one["type"] == "browser")
    words = words_of(pid)
    (off,) = (word for word in words if word.startswith("--disable-features="))
    assert {"RenderDocument", "HttpsUpgrades", "MediaRouter"} <= set(off.partition("=")[2].split(","))
    assert set(STILL) <= set(words) and "--disable-quic" in words


@in_browser
async def test_a_still_page_draws_when_the_mouse_moves_and_else_never() -> None:
    tab = await opened(still=True)
    try:
        assert tab.drawer is not None
        await asyncio.sleep(0.2)
        before = await asked(tab, "frames")
        await tab.move_to(20, 20)
        await tab.move_to(30, 30)
        assert await asked(tab, "moved") == 2
        after = await asked(tab, "frames")
        await asyncio.sleep(0.2)
        assert before <= 1 < after <= 12 and await asked(tab, "frames") <= after + 1
        two = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(7))))"
        request = {"expression": two, "awaitPromise": True, "returnByValue": True}
        answer = await asyncio.wait_for(tab.drawn(tab.cdp.send("Runtime.evaluate", request)), 10)
        assert answer["result"]["value"] == 7
    finally:
        await tab.close()


async def test_pages_draw_in_turn_and_one_that_never_comes_to_it_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opening, "_TURN", 0.05)
    under_way, most = 0, 0

    class Drawn:
        def __init__(self, stuck: bool) -> None:
            self.stuck = stuck

        async def send(self, method: str, params: dict[str, Any]) -> None:
            nonlocal under_way, most
            if self.stuck:
                await asyncio.Event().wait()
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.01)
            under_way -= 1

    turns = asyncio.Lock()
    drawers = [Drawer(cast("Any", Drawn(stuck)), turns) for stuck in (True, False, False)]
    hangs = asyncio.ensure_future(drawers[0].during(asyncio.Event().wait()))
    await asyncio.sleep(0.02)
    await asyncio.wait_for(asyncio.gather(*(drawer.during(asyncio.sleep(0.2)) for drawer in drawers[1:])), 5)
    assert most == 1
    hangs.cancel()


@in_browser
async def test_a_browser_that_cannot_draw_on_demand_draws_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "STILL", ())
    tab = await opened(still=True)
    try:
        assert tab.drawer is None and len(tab.context.pages) == 1
        await tab.move_to(20, 20)
        assert await asked(tab, "moved") == 1
    finally:
        await tab.close()


@in_browser
@pytest.mark.parametrize(
    "page",
    [
        "<title> a \n b </title>x",
        "x",
        "<html aria-label=other><title>t</title>x",
        "<title>&shy;</title>x",
    ],
)
async def test_the_title_is_the_documents_own_wherever_it_is_read(page: str) -> None:
    tab = await opened(still=False)
    try:
        await tab.page.set_content(page)
        view = await tab.look()
        assert view.title == await asked(tab, "document.title")
    finally:
        await tab.close()


def test_a_root_that_is_named_by_something_else_does_not_tell_the_title() -> None:
    title = {"type": "relatedElement", "nativeSource": "title", "value": {"value": "t"}}
    label = {"type": "attribute", "attribute": "aria-label", "attributeValue": {"value": "other"}}

    def root(*sources: Any) -> list[dict[str, Any]]:
        inner = {"nodeId": "2", "parentId": "1", "role": {"value": "RootWebArea"}, "name": {"sources": [title]}}
        return [inner, {"nodeId": "1", "role": {"value": "RootWebArea"}, "name": {"sources": sources}}]

    assert title_of(root({"type": "attribute", "attribute": "aria-label"}, title)) == "t"
    assert title_of(root({"type": "relatedElement", "nativeSource": "title"})) == ""
    assert title_of(root(label, title)) is None
    assert title_of(root()) is None and title_of([]) is None


@pytest.mark.parametrize("world", [market_world.World, bazaar_world.World])
def test_a_state_is_written_as_its_fields_at_every_depth(world: Any) -> None:
    built = world.build(3, "train")
    assert built.to_json() == json.dumps(asdict(built), separators=(",", ":"))
    assert world.from_json(built.to_json()) == built
