"""The viewer in a real headless Chromium: a server, pages that note what they must not do, and waiting for them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from speed import patient

from treewright.agent.view import make_app

if TYPE_CHECKING:
    from treewright.search.store.tree_store import TreeStore


uvicorn = pytest.importorskip("uvicorn", reason="the viewer needs a server; pip install 'treewright[web]'")
web = pytest.importorskip("playwright.async_api", reason="Playwright is missing; pip install 'treewright[web]'")
find_chromium = pytest.importorskip("treewright.envs.web.browser").find_chromium
expect = web.expect

WHY = "no Chromium: apt-get install chromium-headless-shell, or set TREEWRIGHT_CHROMIUM"
marks = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.skipif(find_chromium() is None, reason=WHY)]

SIZE = {"width": 1280, "height": 800}
WAIT = 8_000.0  # ms


@asynccontextmanager
async def drawing_browser() -> AsyncIterator[Any]:
    """A browser that draws: the one of the web environments saves frames, so that nothing would be animated."""
    sandbox = os.geteuid() != 0
    async with web.async_playwright() as driver:
        launched = await driver.chromium.launch(
            executable_path=find_chromium(), chromium_sandbox=sandbox, args=[] if sandbox else ["--no-sandbox"]
        )
        yield launched
        await launched.close()


@asynccontextmanager
async def serving(store: TreeStore) -> AsyncIterator[str]:
    """The address of a viewer of this store."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    config = uvicorn.Config(make_app(store, "secret"), log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/secret/"
    finally:
        server.should_exit = True
        await task


class Watched:
    """A page that notes what a page must not do."""

    def __init__(self, page: Any) -> None:
        self.errors: list[Any]
        self.requests: list[Any]
        self.page, self.requests, self.errors, self.dialogs = page, [], [], 0
        page.on("request", lambda r: self.requests.append(r.url))
        page.on("pageerror", lambda e: self.errors.append(str(e)))
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.on("dialog", self._dismiss)

    async def _dismiss(self, dialog: Any) -> None:
        self.dialogs += 1
        await dialog.dismiss()

    def outside(self, own: str) -> list[Any]:
        return [u for u in self.requests if not u.startswith((own, "data:"))]


async def until(page: Any, condition: str) -> None:
    """Playwright's own way to wait evaluates text inside the page, which the page forbids."""
    async with asyncio.timeout(patient(WAIT / 1000)):
        while not await page.evaluate(condition):
            await page.evaluate("new Promise((done) => setTimeout(done, 20))")


async def ended(page: Any) -> None:
    """When the last frame asked for has been drawn."""
    await until(page, "Boolean(treewright.panes[0].view && !treewright.panes[0].waiting)")


@asynccontextmanager
async def looking(browser: Any, address: str, **options: Any) -> AsyncIterator[tuple[Any, Watched]]:
    context = await browser.new_context(**{"viewport": SIZE, **options})
    try:
        context.set_default_timeout(patient(WAIT))
        expect.set_options(timeout=patient(WAIT))
        page = await context.new_page()
        watched = Watched(page)
        await page.goto(address)
        await page.wait_for_selector("html[data-ready]")
        yield page, watched
    finally:
        await context.close()


async def selected(page: Any) -> Any:
    return await page.evaluate("treewright.active.selected")


async def press(page: Any, *keys: str) -> None:
    for key in keys:
        await page.keyboard.press(key)


async def open_first(page: Any) -> None:
    await press(page, "ArrowDown", "Enter")
    await page.wait_for_selector(".node-head")
