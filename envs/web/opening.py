"""A new browser context with its first page: behind a gate, with all that stops requests in the browser itself.

A page that is `still` draws a frame where one is asked for, and none else (`HeadlessExperimental.beginFrame`). Frames
that nobody sees are a seventh of what a step costs, and a mouse that moves would wait for the next one. It is for pages
that do nothing between two actions: others count on frames.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from playwright.async_api import Browser, BrowserContext, CDPSession, Page, Route, WebSocketRoute
from playwright.async_api import Error as PlaywrightError

from treewright.envs.web.browser import shared_browser
from treewright.envs.web.guard import Gate

__all__ = ["STILL", "Drawer", "Opened", "attach", "open_context"]

STILL = ("--enable-begin-frame-control", "--run-all-compositor-stages-before-draw")
"""Switches of a browser with still pages."""
_FRAME: tuple[str, dict[str, Any]] = ("HeadlessExperimental.beginFrame", {"noDisplayUpdates": True})
_PAUSE = 0.004  # seconds between two frames of a page that waits for them
_TURN = 1.0  # seconds after which a page that does not come to draw, since it asks something, holds up no other
_TURNS: WeakKeyDictionary[Browser, asyncio.Lock] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Opened:
    """drawer  draws the page where it is still"""

    context: BrowserContext
    page: Page
    cdp: CDPSession
    drawer: Drawer | None = None


async def open_context(
    gate: Gate,
    headers: Mapping[str, str],
    viewport: tuple[int, int],
    *,
    script: str = "",
    storage: Any = None,
    tunnels: bool = False,
    still: bool = False,
) -> Opened:
    """See Tab.open. A browser that cannot draw on demand draws as ever. Raises PlaywrightError."""
    browser = await shared_browser(STILL if still else ())
    context = await browser.new_context(
        proxy={"server": gate.url, "bypass": "<-loopback>"},
        service_workers="block",
        accept_downloads=False,
        extra_http_headers=dict(headers),
        viewport={"width": viewport[0], "height": viewport[1]},
        locale="en-US",
        timezone_id="UTC",
        storage_state=storage,
    )
    try:
        if tunnels:
            await context.route("**/*", partial(_stop_methods, gate))
            await context.route_web_socket(re.compile(""), partial(_stop_messages, gate))
        if script:
            await context.add_init_script(script)
        page = await context.new_page()
        cdp = await attach(context, page)
        if still and (other := await _still_page(browser, context, cdp)) is not None:
            await page.close()
            return Opened(context, *other, Drawer(other[1], _turns(browser)))
        return Opened(context, page, cdp)
    except BaseException:
        with suppress(PlaywrightError):
            await context.close()
        raise


async def attach(context: BrowserContext, page: Page) -> CDPSession:
    """A session of Chromium's protocol that tells of the page's navigations."""
    cdp = await context.new_cdp_session(page)
    await cdp.send("Page.enable")
    return cdp


async def _still_page(browser: Browser, context: BrowserContext, cdp: CDPSession) -> tuple[Page, CDPSession] | None:
    """A page of the context that draws on demand; None where the browser cannot (it is no headless shell)."""
    of = (await cdp.send("Target.getTargetInfo"))["targetInfo"]["browserContextId"]
    wanted = {"url": "about:blank", "browserContextId": of, "enableBeginFrameControl": True}
    root = await browser.new_browser_cdp_session()
    page: Page | None = None
    try:
        async with context.expect_page() as made:
            await root.send("Target.createTarget", wanted)
        page = await made.value
        session = await attach(context, page)
        async with _turns(browser):
            await session.send(*_FRAME)
        return page, session
    except PlaywrightError:
        if page is not None:
            await page.close()
        return None
    finally:
        await root.detach()


def _turns(browser: Browser) -> asyncio.Lock:
    """What the frames of a browser's pages wait for: Chromium 156 ends where two of its pages draw at once."""
    return _TURNS.setdefault(browser, asyncio.Lock())


class Drawer:
    """Draws a still page, one frame at a time; `turns` keeps it from drawing beside another page of the browser."""

    def __init__(self, cdp: CDPSession, turns: asyncio.Lock) -> None:
        self._cdp, self._turns = cdp, turns
        self._frame: asyncio.Future[Any] | None = None

    async def during(self, work: Awaitable[Any], patience: float = 0.0) -> Any:
        """Awaits work; once `patience` seconds have gone, the page is drawn until it has ended."""
        job = asyncio.ensure_future(work)
        try:
            await asyncio.wait({job}, timeout=patience)
            while not job.done():
                await asyncio.wait({job, self._drawn()}, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.wait({job}, timeout=_PAUSE)
            return await job
        except asyncio.CancelledError:
            job.cancel()
            raise

    def _drawn(self) -> asyncio.Future[Any]:
        """The frame that is under way, or the next one; one that fails is no trouble, since a page that is gone ends
        the work, too."""
        if self._frame is None or self._frame.done():
            self._frame = asyncio.ensure_future(self._draw())
            self._frame.add_done_callback(lambda done: done.cancelled() or done.exception())
        return self._frame

    async def _draw(self) -> None:
        async with self._turns:
            frame = asyncio.ensure_future(self._cdp.send(*_FRAME))
            await asyncio.wait({frame}, timeout=_TURN)
        await frame


async def _stop_methods(gate: Gate, route: Route) -> None:
    request = route.request
    if gate.stops(request.method, urlsplit(request.url).path):
        gate.deny(f"{request.method} {urlsplit(request.url).netloc}{urlsplit(request.url).path}")
        await route.abort("aborted")
    else:
        await route.continue_()


def _stop_messages(gate: Gate, route: WebSocketRoute) -> None:
    server, parts = route.connect_to_server(), urlsplit(route.url)

    def pass_on(message: str | bytes) -> None:
        if gate.stops("SEND", parts.path):
            gate.deny(f"SEND {parts.netloc}{parts.path}")
        else:
            server.send(message)

    route.on_message(pass_on)
