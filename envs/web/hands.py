"""What is done on the page that a session has open: one call, by whatever hand it takes."""

from __future__ import annotations

from typing import Any
from urllib.parse import urljoin

from treewright.envs.errors import Divergence, InvalidAction
from treewright.envs.types import Call
from treewright.envs.web import fields, gestures
from treewright.envs.web.actions import TOOLS, checked_element
from treewright.envs.web.again import found_again
from treewright.envs.web.pointing import Redrawn, click
from treewright.envs.web.session import WebSession
from treewright.envs.web.tab import Tab
from treewright.envs.web.view import Element, PageView, quote

__all__ = ["WebHands"]

_TRIES = 5  # times that an element is looked for again where the page draws it anew all the time


class WebHands(WebSession):
    """A session that acts; see WebSession for what can be set."""

    def _element(self, call: Call, argument: str = "ref") -> Element:
        ref = call.arguments[argument]
        if ref in self._missing and ref not in self._view.elements:
            recorded, step = self._arrival
            raise Divergence(recorded, f"a page where {ref} does not stand where it stood", step)
        return checked_element(call, self._view.elements, call.arguments[argument], self.tools is not TOOLS)

    def _address(self, path: str) -> str:
        try:
            url = urljoin(self._view.url or self.start, path)
        except ValueError:
            url = ""
        if not url.startswith(("http://", "https://")):
            raise InvalidAction(f"cannot open {path!r}; give a path such as '/'")
        if not self.allow.allows_url(url):
            raise InvalidAction(f"host not allowed: {url}; give a path of this site, such as '/'")
        return url

    async def _execute(self, tab: Tab, call: Call) -> None:
        """Does what was called for; an element that is drawn anew before anything was done is found again."""
        for left in reversed(range(_TRIES)):
            try:
                return await self._do(tab, call)
            except Redrawn:
                if not left:
                    raise
            for name in ("ref", "to"):
                if call.arguments.get(name):
                    await self._at_hand(tab, call.arguments[name])

    async def _click(self, tab: Tab, element: Element) -> None:
        self._tell_of(element, await click(tab, element))

    def _tell_of(self, element: Element, reached: bool) -> None:
        if not reached:
            lost = f"note the click did not reach {element.ref} {quote(element.name)}: it was drawn anew meanwhile"
            self._notes.append(lost)

    async def _do(self, tab: Tab, call: Call) -> None:
        given = call.arguments
        element = self._element(call) if given.get("ref") else None
        match call.name, element:
            case "click", Element():
                await self._click(tab, element)
            case (("fill" | "select" | "check" | "upload"), Element()):
                value = next(given[name] for name in ("text", "option", "on", "file") if name in given)
                await self._edit(tab, call.name, element, value)
            case "hover", Element():
                await gestures.hover(tab, element)
            case "drag", Element():
                await gestures.drag(tab, element, self._element(call, "to"))
            case "press", _:
                await gestures.press(tab, element, given["key"])
            case "type", _:
                await gestures.type_text(tab, given["text"])
            case "scroll", _:
                await gestures.scroll(tab, element, given["direction"])
            case "goto", _:
                await tab.navigate(self._address(given["path"]))
            case "back", _:
                self._history.pop()
                if tab.window.soft.pop(len(self._history), None) == tab.watcher.documents:
                    await tab.cdp.send("Runtime.evaluate", {"expression": "history.back()"})
                else:
                    await tab.navigate(self._history[-1])
            case "part", _:
                self._shown = given["number"]
            case "tab", _:
                tab.show(tab.windows[given["number"] - 1])
            case "close_tab", _:
                await tab.close_window(tab.windows[given["number"] - 1])
            case (("accept" | "dismiss"), _):
                await tab.watcher.answer(call.name == "accept", given.get("text", ""))
            case _:
                await self._point(tab, call)

    async def _point(self, tab: Tab, call: Call) -> None:
        """Actions that need no element."""
        given = call.arguments
        match call.name:
            case "click_at":
                await tab.click_at(given["x"], given["y"])
            case "hover_at":
                await tab.move_to(given["x"], given["y"])
            case "drag_at":
                await gestures.drag_at(tab, given["x"], given["y"], given["to_x"], given["to_y"])
            case "wait":
                await self.pass_time(tab, given["milliseconds"])
            case _:
                raise InvalidAction(f"{call.name} needs an element")

    async def _edit(self, tab: Tab, name: str, element: Element, value: Any) -> None:
        match name:
            case "fill":
                await fields.fill(tab, element, value)
            case "select" if element.kind in ("list", "popup", "typed"):
                await self._choose(tab, element, value)
            case "select":
                await fields.select(tab, element, value)
            case "check":
                self._tell_of(element, await gestures.check(tab, element, value))
            case "upload":
                await gestures.upload(tab, element, gestures.upload_path(self.uploads, value))
        self._edits.append((name, element.ref, value))

    async def _choose(self, tab: Tab, element: Element, option: str) -> None:
        """Clicks an option that is an element of its own; opens the list first if it is not open."""
        view, before = self._view, None
        found = _option(view, element, option)
        if found is None:
            await self._click(tab, element)
            await self.settle(tab)
            view, before = await self._view_of(tab), self._view
            found = _option(view, element, option, before)
        for _ in range(_TRIES):
            if found is None:
                break
            try:
                return await self._click(tab, found)
            except Redrawn:  # the list, not the option, is what must not be clicked once more
                view = await self._view_of(tab)
                found = _option(view, element, option, before)
        there = [e.name for e in view.elements.values() if e.role == "option"]
        listed = f"; there are: {', '.join(map(quote, there[:20]))}" if there else ""
        self._notes.append(f"note {element.ref} was opened; it has no option {quote(option)}{listed}")

    def _tell(self, call: Call, was: Element | None, before: PageView, same: bool) -> None:
        """Notes what a page made of what was written or chosen, where that is something else.

        same  the document is still the one that was acted on
        """
        if was is None or not same or call.name not in ("fill", "check"):
            return
        now = next((e for e in self._view.elements.values() if (e.node, e.frame) == (was.node, was.frame)), None)
        if now is None:
            now = self._view.elements.get(found_again(before, self._view).get(was.ref, ""))
        if now is None:
            return
        if call.name == "check" and now.on is not call.arguments["on"]:
            self._notes.append(f"note {now.ref} {quote(now.name)} is {'on' if now.on else 'off'} all the same")
        if call.name == "fill" and not fields.taken(now, call.arguments["text"]):
            self._notes.append(f"note {now.ref} {quote(now.name)} holds {quote(now.value)}")


def _option(view: PageView, element: Element, name: str, before: PageView | None = None) -> Element | None:
    """The option of that name of a list: the nearest one behind it, else the nearest before it.

    before  the page before the list was opened: what has appeared since counts by whatever role it has
    """
    known = {(e.node, e.frame) for e in before.elements.values()} if before is not None else set()
    order = list(view.elements.values())
    here = next((n for n, e in enumerate(order) if (e.node, e.frame) == (element.node, element.frame)), 0)
    chosen = [
        (n < here, abs(n - here), n)
        for n, e in enumerate(order)
        if e.name == name and (e.role == "option" or (before is not None and (e.node, e.frame) not in known))
    ]
    return order[min(chosen)[2]] if chosen else None
