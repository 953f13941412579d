"""Knowing when a page has finished, without sleeping for a fixed time.

A page has settled when no navigation is under way, no request that started since the action is open, and its
document has not changed for `quiet` seconds. Chromium's events tell the first two; a probe in the page, the third.
Not covered: a page that starts something later on its own, by a timer longer than `quiet`.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

from playwright.async_api import BrowserContext, CDPSession, Dialog, Page, Request, Response, WebSocket
from playwright.async_api import Error as PlaywrightError

from treewright.envs.web.effects import SAFE_METHODS

__all__ = ["Traffic", "Watcher", "World"]

World = tuple[CDPSession, Mapping[str, int]]
"""Where a script can be run in a frame: its session, and what else `Runtime.evaluate` must be told."""

BROKEN = re.compile(
    r"net::ERR_(CONNECTION|EMPTY_RESPONSE|INVALID_HTTP|CONTENT_LENGTH|CONTENT_DECODING|INCOMPLETE|RESPONSE_HEADERS_TRUNC|"
    r"TIMED_OUT|NETWORK|INTERNET|ADDRESS|SOCKET|SSL|CERT|NAME|PROXY|TUNNEL|HTTP2|QUIC)"
)
"""What Chromium says of a connection that broke or could not be had; the rest (blocked, aborted, no such scheme) is no
trouble of the network."""
GATEWAYS = frozenset({429, 502, 503, 504})
"""Statuses with which not the site answers, but what stands before it; a site's own 404 or 500 is a page."""
_ENDLESS = frozenset({"websocket", "eventsource", "ping", "media"})
# Resolves once the document has not changed for `quiet` ms; two turns of the task queue at least.
_PROBE = """new Promise(done => {
  let timer; const again = () => { clearTimeout(timer); timer = setTimeout(finish, %d) };
  const watcher = new MutationObserver(again);
  const finish = () => { watcher.disconnect(); setTimeout(done, 0) };
  watcher.observe(document, {subtree: true, childList: true, attributes: true, characterData: true}); again();
})"""

# In a world of our own in a frame: counts changes of its document from now on, and says how many there were. Without
# timers, since a frame whose scripts are forbidden has none.
_WATCH = """(() => { let count = 0;
  const watcher = new MutationObserver(seen => { count += seen.length });
  watcher.observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
  globalThis.changes = () => { count += watcher.takeRecords().length; watcher.disconnect(); return count };
})()"""
_ROUNDS = 10  # times that changes in frames alone make the wait longer: some frames never come to rest


_ONE = inspect.Signature([inspect.Parameter("event", inspect.Parameter.POSITIONAL_ONLY)])


def _plain(heard: Callable[[Any], None]) -> Callable[[Any], None]:
    """The same with its signature written down: Playwright asks for it with every event, which takes longer than the
    event itself."""

    def hear(event: Any) -> None:
        heard(event)

    hear.__signature__ = _ONE  # type: ignore[attr-defined]
    return hear


@dataclass(slots=True)
class Traffic:
    """What happened since the last action.

    requests  how many were begun
    writes    those that may change something as 'METHOD path', messages of WebSockets as 'SEND path'
    dialogs   questions of the page as 'type message'
    downloads names of files that the page wanted to save
    lost      why a document of a page did not come, or not whole: a connection that broke, a gateway's answer
    """

    requests: int = 0
    writes: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)
    lost: str = ""

    def methods(self, besides: Sequence[str] = ()) -> list[str]:
        """The methods of all writes but those to paths that begin with one of `besides`."""
        pairs = (write.split(" ", 1) for write in self.writes)
        return [method for method, path in pairs if not path.startswith(tuple(besides) or ("\0",))]


class Watcher:
    """Follows the requests of a context and the navigations of its page.

    dead       why the page can no longer be used; '' while it can
    documents  how many documents the page has shown
    leaving    whether a page is about to show another document
    adopts     whether a new window's address will be shown in the page instead
    leaves     False while the policy acts, who is then asked before a page is left that wants to be asked
    asks       True to leave a page's questions open in `dialog`, for the policy to answer
    inner      gives the sessions and worlds of the frames of the shown page: their documents must be quiet, too
    """

    def __init__(
        self, context: BrowserContext, page: Page, cdp: CDPSession, adopts: Callable[[str], bool], asks: bool = False
    ) -> None:
        self.traffic = Traffic()
        self.dead = ""
        self.documents = 0
        self.dialog: Dialog | None = None
        self.leaves = True  # a page that asks before it is left is left
        self.inner: Callable[[], Awaitable[Sequence[World]]] | None = None
        self._cdp = cdp
        self._adopts = adopts
        self._asks = asks
        self._asked = asyncio.Event()
        self._open: set[Request] = set()
        self._loading: set[str] = set()
        self._whole: set[str] = set()  # frames that are pages, not parts of one
        self._windows = 0
        self._pages = 0
        self._changed = asyncio.Event()
        self._heard: tuple[tuple[Any, Any], ...] = (
            ("request", _plain(self._request)),
            ("requestfinished", _plain(self._finished)),
            ("requestfailed", _plain(self._failed)),
            ("response", _plain(self._answered)),
            ("close", lambda _: self._die("the browser was closed")),
        )
        self._context = cast("Any", context)  # its events have a type each
        for event, heard in self._heard:
            self._context.on(event, heard)
        self.follow(page, cdp)

    def follow(self, page: Page, cdp: CDPSession) -> None:
        """Watches a page, and waits from now on for what it shows."""
        self._pages += 1
        page.on("dialog", self._dialog)
        page.on("websocket", self._socket)
        page.on("download", lambda file: self.traffic.downloads.append(file.suggested_filename))
        page.on("crash", lambda _: self._die("the page crashed"))
        page.on("close", self._closed)
        self.listen(cdp)
        cdp.on("Page.frameNavigated", _plain(self._navigated))
        self.turn_to(cdp)

    def detach(self) -> None:
        """Hears nothing of the context any more."""
        for event, heard in self._heard:
            self._context.remove_listener(event, heard)

    def listen(self, session: CDPSession) -> None:
        """Follows the navigations of a page, or of a frame that has a session of its own."""
        for event in ("Page.frameRequestedNavigation", "Page.frameStartedLoading"):
            session.on(event, _plain(self._starts))
        for event in ("Page.frameStoppedLoading", "Page.frameClearedScheduledNavigation", "Page.frameDetached"):
            session.on(event, _plain(self._stops))
        session.on("Page.windowOpen", self._window)

    @property
    def leaving(self) -> bool:
        return not self._loading.isdisjoint(self._whole)

    def turn_to(self, cdp: CDPSession) -> None:
        """Another page is the one that is shown: what was known about the last document is over."""
        if cdp is not self._cdp:
            self.documents += 1
        self._cdp = cdp

    async def unless_asked(self, work: Awaitable[Any]) -> Any:
        """Awaits `work`, or gives it up when the page asks a question first: it cannot end before the answer."""
        if not self._asks:
            return await work
        job = asyncio.ensure_future(work)
        asked = asyncio.ensure_future(self._asked.wait())
        try:
            await asyncio.wait({job, asked}, return_when=asyncio.FIRST_COMPLETED)
            if job.done():
                return job.result()
            job.add_done_callback(lambda done: done.cancelled() or done.exception())
            return None
        except asyncio.CancelledError:
            job.cancel()
            raise
        finally:
            asked.cancel()

    async def answer(self, accept: bool, text: str = "") -> None:
        """Answers the open question; does nothing if there is none."""
        dialog, self.dialog = self.dialog, None
        self._asked.clear()
        if dialog is not None:
            await (dialog.accept(text) if accept else dialog.dismiss())

    def begin(self) -> None:
        """Forgets what an earlier action has sent or left open."""
        self.traffic = Traffic()
        self._open.clear()
        self._windows = 0

    def window_closed(self) -> None:
        """A window that the page had opened is gone, and with it the requests that it had begun."""
        self._open.clear()

    def window_adopted(self) -> None:
        """What that window was to show is shown in the page, or never will be."""
        self._windows = max(0, self._windows - 1)
        self._changed.set()

    async def settled(self, deadline: float, quiet: float) -> bool:
        """Waits until the page has settled; False if it has not after `deadline` seconds.

        A document that is still coming then is waited for on: half a page is not what the site shows.
        """
        try:
            async with asyncio.timeout(deadline):
                patience = _ROUNDS
                while not self.dead:
                    if self.dialog is not None:
                        return True
                    if not self._busy():
                        seen = self.traffic.requests
                        frames = await self._watched() if patience else ()
                        quiet_page = await self._probe(quiet)
                        quiet_frames = not await self._changes(frames)
                        patience -= quiet_page and not quiet_frames
                        if quiet_page and quiet_frames and not self._busy() and seen == self.traffic.requests:
                            return True
                        continue
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            while not self.dead and any(map(_whole_page, self._open)):
                self._changed.clear()
                await self._changed.wait()
        return False

    def _busy(self) -> bool:
        return bool(self._loading or self._open or self._windows)

    async def _probe(self, quiet: float) -> bool:
        """True once the document is quiet; False if it was replaced meanwhile."""
        expression = _PROBE % round(quiet * 1000)
        try:
            probe = self._cdp.send("Runtime.evaluate", {"expression": expression, "awaitPromise": True})
            await self.unless_asked(probe)
        except PlaywrightError:
            if self.dead:
                raise
            return False
        return True

    async def _watched(self) -> Sequence[World]:
        """The frames whose changes are counted from now on."""
        worlds = await self.unless_asked(self.inner()) if self.inner is not None else ()
        await self._in_frames(worlds or (), _WATCH)
        return worlds or ()

    async def _changes(self, worlds: Sequence[World]) -> int:
        """Changes in frames since they are watched; a frame that went away has none."""
        answers = await self._in_frames(worlds, "changes()")
        return sum(int(answer["result"].get("value") or 0) for answer in answers if isinstance(answer, dict))

    async def _in_frames(self, worlds: Sequence[World], expression: str) -> Sequence[Any]:
        calls = [session.send("Runtime.evaluate", {"expression": expression, **where}) for session, where in worlds]
        return await self.unless_asked(asyncio.gather(*calls, return_exceptions=True)) or () if calls else ()

    def _die(self, why: str) -> None:
        self.dead = self.dead or why
        self._changed.set()

    def _request(self, request: Request) -> None:
        self.traffic.requests += 1
        if request.method not in SAFE_METHODS:
            self.traffic.writes.append(f"{request.method} {urlsplit(request.url).path}")
        if request.resource_type not in _ENDLESS:
            self._open.add(request)
        self._changed.set()

    def _socket(self, socket: WebSocket) -> None:
        """Every message that a page sends may change something."""
        path = urlsplit(socket.url).path
        socket.on("framesent", lambda _: self.traffic.writes.append(f"SEND {path}"))

    def _finished(self, request: Request) -> None:
        self._open.discard(request)
        self._changed.set()

    def _failed(self, request: Request) -> None:
        self._finished(request)
        if BROKEN.match(request.failure or ""):
            self._lost(request, str(request.failure))

    def _answered(self, response: Response) -> None:
        if response.status in GATEWAYS:
            self._lost(response.request, f"HTTP {response.status}")

    def _lost(self, request: Request, why: str) -> None:
        """A whole page of a host that may be reached is not what the site shows; pictures and frames may well fail."""
        if _whole_page(request) and self._adopts(request.url):
            self.traffic.lost = self.traffic.lost or f"{request.url}: {why}"

    async def _dialog(self, dialog: Dialog) -> None:
        """Questions of a page are answered with no, unless the policy is asked: a yes could do anything."""
        self.traffic.dialogs.append(f"{dialog.type} {dialog.message}")
        if dialog.type == "beforeunload" and (self.leaves or not self._asks):
            await dialog.accept()  # to leave is what was wanted
        elif self._asks:
            self.dialog = dialog
            self._asked.set()
            self._changed.set()
        else:
            await dialog.dismiss()

    def _closed(self, page: Page) -> None:
        self._pages -= 1
        if not self._pages:
            self._die("the page was closed")

    def _starts(self, event: Mapping[str, Any]) -> None:
        if event.get("disposition", "currentTab") == "currentTab":
            self._loading.add(event["frameId"])
        self._changed.set()

    def _window(self, event: Mapping[str, Any]) -> None:
        self._windows += self._adopts(event["url"])  # a window that is denied never appears
        self._changed.set()

    def _navigated(self, event: Mapping[str, Any]) -> None:
        if "parentId" not in event["frame"]:
            self.documents += 1
            self._whole.add(event["frame"]["id"])

    def _stops(self, event: Mapping[str, Any]) -> None:
        self._loading.discard(event["frameId"])
        self._changed.set()


def _whole_page(request: Request) -> bool:
    """Whether it asks for the document of a page, not of a frame in it."""
    if not request.is_navigation_request():
        return False
    try:
        return request.frame.parent_frame is None
    except PlaywrightError:  # the frame of a window that is not there yet
        return True
