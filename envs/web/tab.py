"""One browser context with its pages, one of them shown: opened, clicked and read through Chromium's own protocol.

Elements are found by the identifiers of the accessibility tree and clicked by real mouse events at their centre;
nothing is injected into pages but a probe for changes. On a small page a click with its navigation and a new view
takes about half of what Playwright's locators and snapshot take, because their script is not loaded anew each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from playwright.async_api import BrowserContext, CDPSession, Page
from playwright.async_api import Error as PlaywrightError

from treewright.envs.errors import EnvFault, InvalidAction, SessionDied, boundary
from treewright.envs.web.effects import Target
from treewright.envs.web.frames import Frames
from treewright.envs.web.guard import AllowList, Gate
from treewright.envs.web.opening import Drawer, attach, open_context
from treewright.envs.web.protocol import send_plainly
from treewright.envs.web.reading import ASSIGNED_ROLES, read_tree, title_of
from treewright.envs.web.regions import Regions, Trail, paths_of
from treewright.envs.web.settle import Traffic, Watcher
from treewright.envs.web.uses import NOTHING, Uses, look_for_uses
from treewright.envs.web.view import Element, PageView

__all__ = ["Tab", "Window"]

# The form that a click would submit, and where an element leads. A form's fields may shadow its properties.
_DESCRIBE = """function (key) {
  const get = (element, name) => Element.prototype.getAttribute.call(element, name) || '';
  const button = this.closest('button, input'), link = this.closest('a[href], area[href]');
  const form = button && button.form, activates = !key || ['Enter', 'NumpadEnter', 'Space', ' '].includes(key);
  const sends = button && ['submit', 'image'].includes(button.type);
  const submits = form && activates && (sends || (key.includes('Enter') && button.tagName === 'INPUT'));
  if (!submits) return {url: link ? link.href : '', method: ''};
  // Without action and method, what a script of the page does with it is not known.
  const plain = !get(form, 'action') && !get(form, 'method') && !(sends && get(button, 'formaction'));
  const action = (sends && get(button, 'formaction')) || get(form, 'action');
  const method = ((sends && get(button, 'formmethod')) || get(form, 'method') || 'get').toUpperCase();
  const url = new URL(action, document.baseURI).href;
  return {url, method: method === 'DIALOG' ? '' : method, plain: Boolean(plain && document.scripts.length)};
}"""
# What may listen for the submission of a button's form; frameworks listen for everything below the body's child.
_HEARERS = (
    "function () { return this }",
    "function () { return this.form }",
    "function () { return this.ownerDocument }",
    "function () { let at = this, top = document.body; while (at.parentElement && at.parentElement !== top) "
    "at = at.parentElement; return at }",
)
_GROUP = "treewright"
_TORN = 3  # times that a page is read again because it changed while it was read


async def _none() -> None:
    return None


def _role(node: Mapping[str, Any]) -> str:
    return str(node.get("role", {}).get("value", "")).lower()


def _apart(nodes: Sequence[Mapping[str, Any]], uses: Mapping[str, Uses] | None) -> frozenset[int]:
    """Nodes of the accessibility tree that the document does not hold: it changed between the two readings, or they are
    a browser's own parts of a field or a player, which the tree shows and the snapshot does not."""
    held = (uses or {}).get("", NOTHING).ids
    return frozenset(int(node.get("backendDOMNodeId", 0)) for node in nodes) - held - {0} if held else frozenset()


@dataclass(slots=True, eq=False)
class Window:
    """One page of the context, and the addresses it has shown."""

    page: Page
    cdp: CDPSession
    history: list[str] = field(default_factory=list)
    soft: dict[int, int] = field(default_factory=dict)  # entries that a script made, and the document it ran in


class Tab:
    """A context and its page. Every method raises SessionDied when the browser is gone, EnvFault for other trouble.

    windows  every open page, in order of opening; only the first unless pages may open windows of their own
    page, cdp  the window that is shown
    """

    def __init__(
        self, context: BrowserContext, page: Page, cdp: CDPSession, gate: Gate, popups: bool = False, asks: bool = False
    ) -> None:
        self.context = context
        self.gate = gate
        self.window = Window(page, cdp)
        self.windows = [self.window]
        self.watcher = Watcher(context, page, cdp, gate.allow.allows_url, asks)
        self.frames = Frames(context, self.watcher.listen)
        self.watcher.inner = lambda: self.frames.worlds(self.page, self.cdp)
        self._popups = popups
        self._opening = False
        self.mouse: tuple[float, float] = (0, 0)  # where it was left
        self.glides = False  # move to where a click goes first, for pages that change under the mouse
        self.seen = NOTHING  # what the last look found out about the page's own document
        self.drawer: Drawer | None = None  # of a page that draws where a frame is asked for
        self.uses = True  # look for what is used without a role that says so
        self._objects: dict[tuple[int, int], str] = {}
        self._held: dict[CDPSession, int] = {}  # the document in which something of _GROUP is held
        self._inside: frozenset[int] = frozenset()  # nodes that the tree has and the snapshot lacks, as last seen
        self._closing: set[asyncio.Task[None]] = set()
        context.on("page", self._no_popup)

    @property
    def page(self) -> Page:
        return self.window.page

    @property
    def cdp(self) -> CDPSession:
        return self.window.cdp

    @classmethod
    async def open(
        cls,
        allow: AllowList,
        headers: Mapping[str, str],
        viewport: tuple[int, int],
        *,
        popups: bool = False,
        asks: bool = False,
        script: str = "",
        storage: Any = None,
        posts: Sequence[str] = (),
        tunnels: bool = False,
        still: bool = False,
    ) -> Tab:
        """A new context behind a gate of its own. `headers` go with every request.

        popups   keep the windows that pages open as windows of this tab, instead of showing them in its page
        asks     leave a page's questions to the policy
        script   runs in every document before its own scripts
        posts    see Gate
        tunnels  stop methods and messages in the browser, too: what goes through a TLS tunnel is hidden from the gate
        storage  cookies, local storage and databases to begin with, as `storage_state` gives them
        still    draw where a frame is needed alone, for pages that do nothing between two actions
        """
        gate = Gate(allow, posts)
        await gate.start()
        try:
            with boundary("open a page", dead=(PlaywrightError,)):
                opened = await open_context(
                    gate, headers, viewport, script=script, storage=storage, tunnels=tunnels, still=still
                )
        except BaseException:
            await gate.close()
            raise
        tab = cls(opened.context, opened.page, opened.cdp, gate, popups, asks)
        tab.drawer = opened.drawer
        return tab

    @property
    def traffic(self) -> Traffic:
        return self.watcher.traffic

    async def close(self) -> None:
        with suppress(PlaywrightError):
            await self.context.close()
        await self.gate.close()

    @contextmanager
    def faults(self, what: str) -> Iterator[None]:
        """Playwright's errors become SessionDied if page or browser is gone, EnvFault otherwise."""
        with boundary(what):
            try:
                yield
            except PlaywrightError as error:
                gone = self.watcher.dead or self.page.is_closed() or "closed" in error.message
                kind = SessionDied if gone else EnvFault
                raise kind(f"{what}: {self.watcher.dead or error.message}") from error

    async def look(self, regions: Regions | None = None) -> PageView:
        """The page as it is now.

        regions  those that change by themselves: what stands there gets references of its own and is no state. With
                 it, even if it is empty, every element is named, see `Uses.marks`

        Raises EnvFault where the network lost it: a blank or half page is not what the site shows.
        """
        self.arrived()
        nodes, title, uses = await self._read(regions is not None)
        for _ in range(_TORN):
            apart = _apart(nodes, uses)
            if apart <= self._inside:
                break
            self._inside = apart
            nodes, title, uses = await self._read(regions is not None)
        if uses is None and any(_role(node) in ASSIGNED_ROLES for node in nodes):
            uses = {"": replace(next(iter((await look_for_uses(self.cdp)).values()), NOTHING), found={})}
        elif uses is not None and not self.uses:
            uses = {frame: replace(known, found={}, files=()) for frame, known in uses.items()}
        frames = await self.frames.read(self.page, self.cdp, nodes, uses)
        self.seen = (uses or {}).get("", NOTHING)
        known: dict[Trail, bool] = {}
        paths = paths_of(self.seen.marks) if regions else {}
        calm = frozenset(node for node, path in paths.items() if regions and regions.hold(path, known))
        return read_tree(nodes, title, self.page.url, frames, self.seen, {0: calm})

    def arrived(self) -> None:
        """Raises EnvFault where a page that was asked for since the last action did not come, or not whole."""
        if self.traffic.lost:
            raise EnvFault(f"could not load {self.traffic.lost}")

    async def _read(self, marks: bool) -> tuple[list[Any], str, dict[str, Uses] | None]:
        """The accessibility tree, the title and the uses. A page that changes just then is not the same in all."""
        if self.uses or marks:
            self._hold()
        answers = await asyncio.gather(
            send_plainly(self.cdp, "Accessibility.getFullAXTree"),
            look_for_uses(self.cdp, marks) if self.uses or marks else _none(),
            self._release(),
        )
        title = title_of(answers[0]["nodes"])
        if title is None:
            request = {"expression": "document.title", "returnByValue": True}
            title = str((await self.cdp.send("Runtime.evaluate", request))["result"].get("value", ""))
        return answers[0]["nodes"], title, answers[1]

    def _hold(self) -> None:
        self._held[self.cdp] = self.watcher.documents

    async def _release(self) -> None:
        """Lets go of what was held since the last look; a document that was left has taken it along."""
        self._objects.clear()
        document = self._held.pop(self.cdp, None)
        if document is not None and (document == self.watcher.documents or len(self.windows) > 1):
            await self.cdp.send("Runtime.releaseObjectGroup", {"objectGroup": _GROUP})

    async def aside(
        self, url: str, settle: Callable[[Tab], Awaitable[bool]], regions: Regions
    ) -> tuple[PageView, Uses]:
        """An address as another visit shows it just now, in a window that nobody sees; its traffic is not counted."""
        traffic, denied, refused = self.watcher.traffic, list(self.gate.denied), self.gate.refused
        trace, self.gate.trace = self.gate.trace, None
        self._opening, self.watcher.traffic = True, Traffic()
        try:
            page = await self.context.new_page()
            other = Tab(self.context, page, await attach(self.context, page), self.gate)
            try:
                other.watcher.begin()
                await other.navigate(url)
                await settle(other)
                return await other.look(regions), other.seen
            finally:
                other.watcher.detach()
                self.context.remove_listener("page", other._no_popup)
                await page.close()
        finally:
            self._opening, self.watcher.traffic = False, traffic
            self.gate.denied.clear()
            self.gate.denied.extend(denied)
            self.gate.refused = refused
            self.gate.trace = trace

    async def navigate(self, url: str) -> None:
        try:
            answer = await self.watcher.unless_asked(self.cdp.send("Page.navigate", {"url": url})) or {}
        except PlaywrightError as error:
            if "invalid URL" in error.message:
                raise InvalidAction(f"{url!r} is not an address") from error
            raise
        problem = answer.get("errorText", "")
        if problem and problem != "net::ERR_ABORTED":  # a page may well answer 204: it then stays
            raise EnvFault(f"could not load {url}: {problem}")

    async def describe(self, action: str, element: Element, key: str = "") -> Target:
        """What an action on this element would touch, without touching it; `key` is the one that is pressed."""
        found = await self.call(element, _DESCRIBE, key) if action in ("click", "press") else {}
        url, method = str(found.get("url") or element.url), str(found.get("method", ""))
        if found.get("plain") and await self._scripted(element):
            url = method = ""
        return Target(action, element.role, element.name, method, url, key)

    async def _scripted(self, element: Element) -> bool:
        """True if code of the page listens to the element's form, or to the whole document, for what is submitted."""
        session = self.frames.session(element.frame) or self.cdp
        for find in _HEARERS:
            request = {"objectId": self._objects[element.frame, element.node], "functionDeclaration": find}
            self._hold()
            found = (await session.send("Runtime.callFunctionOn", {**request, "objectGroup": _GROUP}))["result"]
            if "objectId" not in found:
                continue
            heard = await session.send("DOMDebugger.getEventListeners", {"objectId": found["objectId"]})
            if any(listener["type"] in ("submit", "click") for listener in heard["listeners"]):
                return True
        return False

    async def gone(self, element: Element) -> bool:
        """True if the element is no longer on the page: left, or drawn anew."""
        try:
            return not await self.call(element, "function () { return this.isConnected }")
        except InvalidAction:
            return True

    async def click_at(self, x: float, y: float) -> None:
        """A real click at a point of the window, in CSS pixels.

        All that the mouse does is sent at once, and met by the page in this order.
        """
        self.mouse = (x, y)
        mouse = {"x": x, "y": y, "button": "left", "clickCount": 1}
        events = [{"type": "mousePressed", **mouse}, {"type": "mouseReleased", **mouse}]
        if self.glides:
            events.insert(0, {"type": "mouseMoved", "x": x, "y": y})
        sent = [self.cdp.send("Input.dispatchMouseEvent", event) for event in events]
        await self.watcher.unless_asked(asyncio.gather(*sent))

    async def move_to(self, x: float, y: float) -> None:
        """Moves the mouse; what reacts to that has reacted when this returns."""
        self.mouse = (x, y)
        event = {"type": "mouseMoved", "x": x, "y": y}
        await self.watcher.unless_asked(self.drawn(self.cdp.send("Input.dispatchMouseEvent", event)))

    async def drawn(self, work: Awaitable[Any], patience: float = 0.0) -> Any:
        """Awaits what may wait for a frame; a still page draws once `patience` seconds have gone."""
        return await (work if self.drawer is None else self.drawer.during(work, patience))

    async def call(self, element: Element, function: str, *arguments: str | float) -> Any:
        """Calls a function on the element's DOM node and returns its JSON value."""
        answer = await self._call(element, function, arguments, returnByValue=True)
        return None if answer is None else answer.get("value")

    async def handle(self, element: Element, function: str, *arguments: float) -> tuple[str | None, Mapping[str, str]]:
        """Calls a function on the element's DOM node and returns the id of the object that it gives, good until the
        next look, and the object's first few values as text; None if it gives none."""
        self._hold()
        answer = await self._call(element, function, arguments, objectGroup=_GROUP, generatePreview=True) or {}
        known = answer.get("preview", {}).get("properties", ())
        return answer.get("objectId"), {one["name"]: str(one.get("value", "")) for one in known}

    async def _call(self, element: Element, function: str, arguments: Sequence[str | float], **how: Any) -> Any:
        known = (element.frame, element.node)
        if known not in self._objects:
            self._objects[known] = await self._resolve(element)
        request = {
            "objectId": self._objects[known],
            "functionDeclaration": function,
            "arguments": [{"value": argument} for argument in arguments],
            **how,
        }
        session = self.frames.session(element.frame) or self.cdp
        answer = await self.watcher.unless_asked(session.send("Runtime.callFunctionOn", request))
        if answer is None:
            return None
        if details := answer.get("exceptionDetails"):
            raise EnvFault(f"{element.ref}: the page's own code failed: {details.get('text', '')}")
        return answer["result"]

    async def _resolve(self, element: Element) -> str:
        session = self.frames.session(element.frame) or self.cdp
        self._hold()
        try:
            node = await session.send("DOM.resolveNode", {"backendNodeId": element.node, "objectGroup": _GROUP})
        except PlaywrightError as error:
            if "No node" in error.message or "not find node" in error.message:
                raise InvalidAction(f"{element.ref} is no longer on the page") from error
            raise
        return str(node["object"]["objectId"])

    async def cookies(self) -> Sequence[Any]:
        return await self.context.cookies()

    async def set_cookies(self, cookies: Sequence[Any]) -> None:
        await self.context.clear_cookies()
        if cookies:
            await self.context.add_cookies(cookies)

    async def new_window(self, url: str) -> None:
        """Opens and shows one more window."""
        with self.faults("open a window"):
            self._opening = True
            try:
                page = await self.context.new_page()
            finally:
                self._opening = False
            await self._keep(page)
            await self.navigate(url)

    def show(self, window: Window) -> None:
        """Turns to another window of this tab."""
        self.window = window
        self.watcher.turn_to(window.cdp)

    async def close_window(self, window: Window) -> None:
        """Closes a window; the last one that is left is shown."""
        with self.faults("close a window"):
            await window.page.close()
        self._gone(window.page)

    def _gone(self, page: Page) -> None:
        self.windows = [w for w in self.windows if w.page is not page] or self.windows
        if self.window not in self.windows:
            self.show(self.windows[-1])

    async def _keep(self, page: Page) -> None:
        cdp = await attach(self.context, page)
        window = Window(page, cdp)
        self.windows.append(window)
        self.watcher.follow(page, cdp)
        page.on("close", self._gone)
        self.show(window)

    def _no_popup(self, page: Page) -> None:
        """What wants a window of its own gets one where that is wanted, else it is shown in this page; either way
        only if its host is allowed."""
        if self._opening or any(page is window.page for window in self.windows):
            return
        task = asyncio.get_running_loop().create_task(self._adopt(page))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _adopt(self, page: Page) -> None:
        url = page.url
        try:
            with suppress(PlaywrightError, EnvFault):
                if self._popups and self.gate.allow.allows_url(url):
                    await self._keep(page)
                    return
                await page.close()
                self.watcher.window_closed()
                if self.gate.allow.allows_url(url):
                    await self.navigate(url)
        finally:
            self.watcher.window_adopted()
