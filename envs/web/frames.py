"""The documents of a page's frames: read into the view of the page, and found again when an element is used.

A frame of the page's own process answers in the page's session; one of another process (another site, where Chromium
keeps sites apart) has a session of its own, also inside of another such frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from playwright.async_api import BrowserContext, CDPSession, Frame, Page
from playwright.async_api import Error as PlaywrightError

from treewright.envs.web.protocol import send_plainly
from treewright.envs.web.reading import FrameTree
from treewright.envs.web.uses import NOTHING, Uses, look_for_uses

__all__ = ["LOCATE", "Frames"]

MOST = 32  # frames read of one page; a page that has more shows the first ones
# What a mouse at (x, y) of this document's window would meet, shadow trees included, and whether that is `self`.
_MEETS = """const meets = (self, x, y) => {
  let hit = document.elementFromPoint(x, y);
  while (hit && hit.shadowRoot && !self.contains(hit)) {
    const inner = hit.shadowRoot.elementFromPoint(x, y);
    if (!inner || inner === hit) break;
    hit = inner;
  }
  if (!hit) return 'is outside of the window';
  const label = hit.closest('label'), within = node => node && (node === hit || within(node.parentNode || node.host));
  if (self.contains(hit) || within(self) || label && label.control === self) return '';
  const cover = hit.closest('dialog, [role=dialog], [role=alertdialog], [aria-label]') || hit;
  const words = (cover.getAttribute('aria-label') || cover.innerText || '').replace(/\\s+/g, ' ').trim().slice(0, 60);
  return 'is covered by another element' + (words && ' (' + JSON.stringify(words) + ')');
};"""
# The point to click in the window of the element's document, or what is in the way; `moved` if it was scrolled for
# that, `gone` if it is not in the document.
LOCATE = (
    "function () {"
    + _MEETS
    + """
  const SPOTS = [[.5, .5], [.5, .25], [.5, .75], [.25, .5], [.75, .5], [.1, .1], [.9, .9]];
  const USED = 'a[href], button, input, select, textarea, label, [onclick], [role=button], [role=link]';
  // A free place of the element that is not one of something else that can be used in it, if there is such a place.
  const place = (element, alone) => {
    let problem = 'is not visible', second = null;
    element.scrollIntoView({block: 'center', inline: 'center', behavior: 'instant'});
    for (const box of [...element.getClientRects()].slice(0, 3)) for (const [u, v] of SPOTS) {
      if (!box.width || !box.height) continue;
      const x = box.x + box.width * u, y = box.y + box.height * v, found = meets(element, x, y);
      if (found) { if (problem === 'is not visible') problem = found; continue; }
      const inner = document.elementFromPoint(x, y)?.closest(USED);
      if (!inner || inner === element || inner === this || !element.contains(inner)) return {x, y};
      second = second || {x, y};
    }
    return !alone && second || {problem};
  };
  const spot = () => { const box = this.getBoundingClientRect(); return box.x + ' ' + box.y };
  const stood = spot(), whether = found => !this.isConnected ? {problem: 'is no longer on the page', gone: true} :
    spot() === stood ? found : {...found, moved: true};
  let found = place(this, false);
  for (const label of found.problem && this.labels || []) {  // what is drawn in its place
    const other = place(label, true);
    if (!other.problem) return whether(other);
  }
  return whether(found);
}"""
)
# Called on the element that shows a frame: a point of that frame's window as one of the window around it.
_AROUND = (
    "function (x, y) {"
    + _MEETS
    + """
  const place = () => {
    const box = this.getBoundingClientRect(), style = getComputedStyle(this);
    return {x: box.x + (this.clientLeft + parseFloat(style.paddingLeft) + x) * box.width / (this.offsetWidth || 1),
            y: box.y + (this.clientTop + parseFloat(style.paddingTop) + y) * box.height / (this.offsetHeight || 1)};
  };
  const seen = at => at.x >= 0 && at.y >= 0 && at.x < innerWidth && at.y < innerHeight;
  let at = place();
  if (!seen(at)) { this.scrollIntoView({block: 'center', inline: 'center', behavior: 'instant'}); at = place(); }
  if (!seen(at)) {
    scrollBy({left: at.x - innerWidth / 2, top: at.y - innerHeight / 2, behavior: 'instant'});
    at = place();
  }
  const problem = meets(this, at.x, at.y);
  return problem ? {problem} : at;
}"""
)
_WORLD = "treewright"


@dataclass(frozen=True, slots=True)
class _Known:
    """A frame as it was read.

    session  what answers for its nodes
    outside  what answers for the document that it stands in
    owner    DOM node of the element that shows it
    parent   index of the document that it stands in
    """

    session: CDPSession
    outside: CDPSession
    owner: int
    parent: int


class Frames:
    """The frames of the page that was read last, by the index of their documents; index 0 is the page.

    opened  called with every session of a frame in a process of its own, once
    """

    def __init__(self, context: BrowserContext, opened: Callable[[CDPSession], None]) -> None:
        self._context = context
        self._opened = opened
        self._known: list[_Known] = []
        self._sessions: dict[Frame, CDPSession] = {}

    def session(self, index: int) -> CDPSession | None:
        """What answers for nodes of a frame; None for the page itself."""
        return self._known[index - 1].session if index else None

    def separate(self, index: int) -> bool:
        """True for a frame with another process between it and the page."""
        while index:
            known = self._known[index - 1]
            if known.session is not known.outside:
                return True
            index = known.parent
        return False

    async def read(
        self, page: Page, cdp: CDPSession, nodes: Sequence[Mapping[str, Any]], uses: Mapping[str, Uses] | None = None
    ) -> list[FrameTree]:
        """The trees of all frames, in the order that their indices count; costs nothing on a page without frames.

        uses  those of the page's own process, by frame; None where nothing is looked for without a role
        """
        self._known = []
        if len(page.frames) < 2 and not any(node.get("role", {}).get("value") == "Iframe" for node in nodes):
            return []
        found: list[FrameTree] = []
        indices: dict[str, int] = {}
        for session in await self._every(page, cdp):
            known = uses if session is cdp or uses is None else await _uses(session)
            for frame in await _inside(session):
                frame_id = str(frame["id"])
                if not indices:
                    indices[frame_id] = 0
                    continue
                parent = indices.get(str(frame.get("parentId")))
                if parent is None or len(found) == MOST:
                    continue
                outside = self.session(parent) or cdp
                with suppress(PlaywrightError):  # it went away while the page was read
                    owner = (await outside.send("DOM.getFrameOwner", {"frameId": frame_id}))["backendNodeId"]
                    inner = await send_plainly(session, "Accessibility.getFullAXTree", {"frameId": frame_id})
                    self._known.append(_Known(session, outside, owner, parent))
                    found.append(FrameTree(inner["nodes"], owner, parent, (known or {}).get(frame_id, NOTHING)))
                    indices[frame_id] = len(found)
        return found

    async def worlds(self, page: Page, cdp: CDPSession) -> list[tuple[CDPSession, dict[str, int]]]:
        """A world of our own in each frame: its session, and what else `Runtime.evaluate` must be told."""
        found: list[tuple[CDPSession, dict[str, int]]] = []
        if len(page.frames) < 2:
            return found
        for session in await self._every(page, cdp):
            for depth, frame in enumerate(await _inside(session)):
                if depth or session is not cdp:
                    with suppress(PlaywrightError):
                        made = {"frameId": frame["id"], "worldName": _WORLD}
                        world = await session.send("Page.createIsolatedWorld", made)
                        found.append((session, {"contextId": world["executionContextId"]}))
        return found[:MOST]

    async def outward(self, index: int, x: float, y: float) -> Mapping[str, Any]:
        """A point of a frame's window as one of the page's, in CSS pixels; or the `problem` of a frame on the way."""
        at: Mapping[str, Any] = {"x": x, "y": y}
        while index and "problem" not in at:
            known = self._known[index - 1]
            node = await known.outside.send("DOM.resolveNode", {"backendNodeId": known.owner, "objectGroup": _WORLD})
            request = {
                "objectId": node["object"]["objectId"],
                "functionDeclaration": _AROUND,
                "arguments": [{"value": at["x"]}, {"value": at["y"]}],
                "returnByValue": True,
            }
            at = (await known.outside.send("Runtime.callFunctionOn", request))["result"]["value"]
            index = known.parent
        return at

    async def _every(self, page: Page, cdp: CDPSession) -> list[CDPSession]:
        """The page's session and those of frames in processes of their own, outer ones first."""
        found = [cdp]
        for frame in page.frames[1:MOST]:
            session = await self._separate(frame)
            if session is not None:
                found.append(session)
        return found

    async def _separate(self, frame: Frame) -> CDPSession | None:
        """The session of a frame in a process of its own; None for one that its parent's session answers for."""
        if frame not in self._sessions:
            try:
                session = await self._context.new_cdp_session(frame)
                for domain in ("Page", "DOM", "Accessibility"):
                    await session.send(f"{domain}.enable")
            except PlaywrightError:
                return None
            self._sessions[frame] = session
            session.on("close", partial(self._forget, frame))
            self._opened(session)
        return self._sessions[frame]

    def _forget(self, frame: Frame, _: CDPSession) -> None:
        self._sessions.pop(frame, None)


async def _uses(session: CDPSession) -> Mapping[str, Uses]:
    try:
        return await look_for_uses(session)
    except PlaywrightError:  # it went away while the page was read
        return {}


async def _inside(session: CDPSession) -> list[Mapping[str, Any]]:
    """The frames that one session answers for, outer ones first; none if it went away."""
    try:
        return list(_walk((await session.send("Page.getFrameTree"))["frameTree"]))
    except PlaywrightError:
        return []


def _walk(tree: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield tree["frame"]
    for child in tree.get("childFrames", ()):
        yield from _walk(child)
