"""The documents of a page's frames: read into the view of the page, and found again when an element is used.

A frame of the page's own process answers in the page's session; one of another process has a session of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from playwright.async_api import BrowserContext, CDPSession, Frame, Page
from playwright.async_api import Error as PlaywrightError

from treewright.envs.web.view import FrameTree

__all__ = ["Frames"]

MOST = 32  # frames read of one page; a page that has more shows the first ones


@dataclass(frozen=True, slots=True)
class _Known:
    """A frame as it was read.

    session  what answers for its nodes
    outside  the session that its owner element belongs to, where that is another one
    owner    DOM node of the element that shows it
    """

    session: CDPSession
    outside: CDPSession | None
    owner: int


class Frames:
    """The frames of the page that was read last, by their index in reading order; index 0 is the page."""

    def __init__(self, context: BrowserContext) -> None:
        self._context = context
        self._known: list[_Known] = []
        self._sessions: dict[Frame, CDPSession] = {}

    def session(self, index: int) -> CDPSession | None:
        """What answers for nodes of a frame; None for the page itself."""
        return self._known[index - 1].session if index else None

    async def read(self, page: Page, cdp: CDPSession, nodes: Sequence[Mapping[str, Any]]) -> list[FrameTree]:
        """The trees of all frames, in the order that their indices count; costs nothing on a page without frames."""
        self._known = []
        if not any(node.get("role", {}).get("value") == "Iframe" for node in nodes):
            return []
        trees = await self._inside(cdp, None)
        for frame in page.frames[1:MOST]:
            session = await self._separate(frame)
            if session is not None:
                trees += await self._inside(session, cdp)
        return trees

    async def _inside(self, session: CDPSession, outside: CDPSession | None) -> list[FrameTree]:
        """The frames that one session answers for; its root frame only if it stands inside of another session's."""
        tree = (await session.send("Page.getFrameTree"))["frameTree"]
        found = []
        for depth, frame_id in _walk(tree):
            if depth == 0 and outside is None:
                continue
            with suppress(PlaywrightError):  # it went away while the page was read
                answers = (outside or session) if depth == 0 else session
                owner = await answers.send("DOM.getFrameOwner", {"frameId": frame_id})
                inner = await session.send("Accessibility.getFullAXTree", {"frameId": frame_id})
                self._known.append(_Known(session, outside, owner["backendNodeId"]))
                found.append(FrameTree(inner["nodes"], owner["backendNodeId"]))
        return found[:MOST]

    async def _separate(self, frame: Frame) -> CDPSession | None:
        """The session of a frame in a process of its own; None for one that its parent's session answers for."""
        if frame not in self._sessions:
            try:
                session = await self._context.new_cdp_session(frame)
                for domain in ("Page", "DOM", "Accessibility"):
                    await session.send(f"{domain}.enable")
                self._sessions[frame] = session
            except PlaywrightError:
                return None
        return self._sessions[frame]

    async def point(self, index: int, object_id: str) -> tuple[float, float]:
        """The centre of a node of a frame, in pixels of the window."""
        known = self._known[index - 1]
        quads = (await known.session.send("DOM.getContentQuads", {"objectId": object_id}))["quads"]
        corners = quads[0]
        x, y = sum(corners[0::2]) / 4, sum(corners[1::2]) / 4
        if known.outside is None:
            return x, y
        box = await known.outside.send("DOM.getBoxModel", {"backendNodeId": self._root_owner(known)})
        left, top = box["model"]["content"][:2]
        return x + left, y + top

    def _root_owner(self, known: _Known) -> int:
        """The owner of the outermost frame of that session: the first one that was read of it."""
        return next(other.owner for other in self._known if other.session is known.session)


def _walk(tree: Mapping[str, Any], depth: int = 0) -> list[tuple[int, str]]:
    found = [(depth, str(tree["frame"]["id"]))]
    for child in tree.get("childFrames", ()):
        found += _walk(child, depth + 1)
    return found
