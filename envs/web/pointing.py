"""Where the mouse meets an element: scrolled into view, at rest there, and whether a click reached it.

Pages draw elements anew, also because they were scrolled. A click is two events, and a browser sends it to the element
that both of them met: between them, a redraw swallows it. So the mouse is pressed only where the page has drawn what
scrolling changed, on an element that is still on the page, and a click that was lost all the same is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from playwright.async_api import Error as PlaywrightError

from treewright.envs.errors import InvalidAction
from treewright.envs.web.frames import LOCATE
from treewright.envs.web.tab import Tab
from treewright.envs.web.view import Element

__all__ = ["Redrawn", "click", "point"]

# Two frames drawn, each after its scroll events and animation callbacks: what was scrolled has told the page, and the
# process that hands out clicks. An observer reports with the next frame, also where a page's clock stands still.
_DRAWN = """new Promise(done => { let left = 2; const next = () => {
  const seen = new IntersectionObserver(() => { seen.disconnect(); if (--left) next(); else done() });
  seen.observe(document.documentElement) }; next() })"""
_STEADY = 1.0  # seconds that an element may take to come to rest
# Hears the clicks from now on. Lost is one that met an element which had left the page, or none at all.
_LISTEN = """function () {
  const self = this, top = (self.ownerDocument || self).defaultView;
  if (!self.isConnected || !top) return null;
  const heard = {reached: false};
  const hear = event => {
    if (event.isTrusted) heard.reached = heard.reached || self.isConnected || event.composedPath().includes(self);
  };
  EventTarget.prototype.addEventListener.call(top, 'click', hear, true);
  heard.end = () => {
    EventTarget.prototype.removeEventListener.call(top, 'click', hear, true);
    return heard.reached || self.isConnected;
  };
  return heard;
}"""
_END = "function () { return this.end() }"
# All that comes before a click in the page itself, in one call: a place that needs no scrolling, and an ear for the
# click. What a canvas shows of its contents is drawn by the page: it is pressed as assistive technology does.
_AIM = (
    "function (listens) {"
    "const around = this.parentElement;"
    "if (around && around.closest('canvas')) { this.focus(); this.click(); return {done: true} }"
    f"const found = ({LOCATE}).call(this), heard = listens && 'x' in found && !found.moved && ({_LISTEN}).call(this);"
    "return heard ? Object.assign(heard, {x: found.x, y: found.y}) : {moved: Boolean(found.moved)} }"
)


class Redrawn(InvalidAction):
    """The element has left the page, or was drawn anew, before anything was done to it."""


async def point(tab: Tab, element: Element, moved: bool = False) -> tuple[float, float]:
    """Scrolls the element into view and gives a place of it in the window, in CSS pixels, once it is at rest.

    moved  it was scrolled just now

    Raises InvalidAction if it is covered, Redrawn if it is no longer on the page.
    """
    found = await _locate(tab, element)
    if moved or found.get("moved") or element.frame:
        with suppress(TimeoutError):  # what another process scrolls follows a little later
            async with asyncio.timeout(_STEADY):
                before: Mapping[str, Any] = {}
                while _spot(before) != _spot(found) and not found.get("gone"):
                    await tab.watcher.unless_asked(_drawn(tab))
                    before, found = found, await _locate(tab, element)
    if found.get("gone"):
        raise Redrawn(f'{element.ref}, the {element.role} "{element.name}", is no longer on the page')
    if problem := found.get("problem"):
        raise InvalidAction(f"{element.ref} {problem}; choose another element")
    return found["x"], found["y"]


async def click(tab: Tab, element: Element) -> bool:
    """Clicks an element; False if the click was lost, since the element was drawn anew while it was pressed.

    What the page did when the mouse went down has then been done; only the page knows whether that was all.
    """
    heard, known = await tab.handle(element, _AIM, not element.frame)
    if "done" in known:
        return True
    if "x" in known:
        x, y = float(known["x"]), float(known["y"])
    else:
        x, y = await point(tab, element, known.get("moved") == "true")
        heard, _ = await tab.handle(element, _LISTEN)
    if heard is None:
        raise Redrawn(f'{element.ref}, the {element.role} "{element.name}", is no longer on the page')
    await tab.click_at(x, y)
    if tab.watcher.dialog is not None or tab.watcher.leaving:
        return True
    session = tab.frames.session(element.frame) or tab.cdp
    request = {"objectId": heard, "functionDeclaration": _END, "returnByValue": True}
    try:
        answer = await tab.watcher.unless_asked(session.send("Runtime.callFunctionOn", request))
    except PlaywrightError:  # another document is there already: the click has led to it
        if tab.watcher.dead:
            raise
        return True
    return answer is None or answer["result"].get("value") is not False


def _spot(found: Mapping[str, Any]) -> tuple[Any, ...]:
    return found.get("x"), found.get("y"), found.get("problem")


async def _drawn(tab: Tab) -> None:
    await tab.drawn(tab.cdp.send("Runtime.evaluate", {"expression": _DRAWN, "awaitPromise": True}))


async def _locate(tab: Tab, element: Element) -> Mapping[str, Any]:
    found: Mapping[str, Any] = await tab.call(element, LOCATE)
    if element.frame and "problem" not in found:
        found = await tab.frames.outward(element.frame, found["x"], found["y"])
    return found
