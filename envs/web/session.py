"""The page that a session has open: how it is opened, what is seen of it, and what is done on it."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from playwright.async_api import Error as PlaywrightError

from treewright.envs.errors import EnvFault, InvalidAction, RestoreUnsupported, SessionDied, boundary
from treewright.envs.types import BaseEnvironment, Observation, Restore, Task, ToolSpec, digest
from treewright.envs.web.actions import TOOLS
from treewright.envs.web.again import found_again
from treewright.envs.web.effects import DEFAULT_RULES, Rule, Target
from treewright.envs.web.fence import Fence
from treewright.envs.web.guard import AllowList
from treewright.envs.web.regions import Regions
from treewright.envs.web.sameness import Seen, SiteMemory, Verdict, read_same_page, same
from treewright.envs.web.shapes import look_for_shapes, with_shapes
from treewright.envs.web.tab import Tab
from treewright.envs.web.uses import Uses
from treewright.envs.web.view import TIMES, PageView

__all__ = ["WebSession"]

log = logging.getLogger(__name__)

_SOON = 1.5  # seconds that a page is given which is loaded beside
_CALMER = 0.15  # seconds without a change that a page is given which is not yet what it should be
_WAITS = 12  # times that such a page is looked at again


class WebSession(BaseEnvironment):
    """One session: a browser context with one page, or with several windows where pages may open them.

    tools       the actions on offer; a subclass may take more of `treewright.envs.web.actions`, and then an unknown
                reference is answered with the nearest one
    start       absolute URL of the first page
    hosts       what may be reached (see AllowList); None means the host and port of `start` only, empty denies all
    rules       effect rules, the first that answers decides
    part        characters shown at once; longer pages come in parts
    quiet       seconds without a change after which a document counts as finished
    deadline    seconds after which an unsettled page is shown as it is (info says "settled": False)
    patience    seconds after which an action is given up with ActionTimeout
    calm        what a line may show without counting as another state (see view.TIMES); None compares everything
    popups      keep windows that pages open, as windows to turn to; else they are shown in the page
    asks        leave questions of the page (alert, confirm, prompt) to the policy; else they are answered with no
    uploads     folder whose files may be put into file fields
    shapes      CSS selector of a part of the page whose drawn and bare elements are listed with their places
    screenshot  add a picture of what is seen to every observation
    locked      in a live world, let requests that may change something (any method but GET, HEAD, OPTIONS) leave only
                with an action that was judged to send one; `posts` are beginnings of paths that may always be sent to
    script      JavaScript that runs in every document before its own
    uses        also give references to what is used without a role that says so (see treewright.envs.web.uses)
    storage     what the browser holds to begin with, such as a login: a file or a mapping as Playwright's
                `storage_state` gives it (cookies, local storage, databases)
    same_page   when a page that is come back to counts as the recorded one: exact | target | distance:0.05 (see
                treewright.envs.web.sameness)
    memory      what sessions of one site share about its pages and about regions that change by themselves
    reuse       True for a site whose pages keep nothing in the browser but cookies: `reset` then clears these
                and keeps the context, which takes a third of the time of a new one

    `back` opens the address that was open before, so a form that was sent is not sent again and what was written
    into fields is gone. Two states count as equal when path, page with its field values, shown part and server
    state agree; the way that led there (what `back` would show) is not compared, but restored.
    """

    name = "web"
    restore_ways = frozenset({Restore.REPLAY})
    sandboxed = False
    still = False  # True for pages that do nothing between two actions: they draw on demand, see opening.py
    tools: ClassVar[Sequence[ToolSpec]] = TOOLS

    def __init__(
        self,
        start: str,
        *,
        hosts: Iterable[str] | None = None,
        rules: Sequence[Rule] = DEFAULT_RULES,
        headers: Mapping[str, str] | None = None,
        viewport: tuple[int, int] = (1024, 768),
        part: int = 2000,
        quiet: float = 0.03,
        deadline: float = 5.0,
        patience: float = 20.0,
        reuse: bool = False,
        calm: re.Pattern[str] | None = TIMES,
        popups: bool = False,
        asks: bool = False,
        uploads: Path | None = None,
        shapes: str = "",
        screenshot: bool = False,
        script: str = "",
        locked: bool = True,
        posts: Sequence[str] = (),
        uses: bool = True,
        storage: Path | Mapping[str, Any] | None = None,
        same_page: str = "exact",
        memory: SiteMemory | None = None,
    ) -> None:
        self.start = start
        self.allow = AllowList.of([urlsplit(start).netloc] if hosts is None else hosts)
        self.rules = rules
        self.headers = dict(headers or {})
        self.viewport = viewport
        self.part, self.quiet, self.deadline, self.patience = part, quiet, deadline, patience
        self.reuse = reuse
        self.calm, self.popups, self.asks, self.uploads = calm, popups, asks, uploads
        self.shapes, self.screenshot, self.script = shapes, screenshot, script
        self.locked, self.posts, self.uses = locked, tuple(posts), uses
        self.storage = storage
        self.same_as, self.memory = read_same_page(same_page), memory or SiteMemory()
        self.fence = Fence()
        self.task: Task | None = None
        self._tab: Tab | None = None
        self._view: PageView
        self._document: int
        self._targets: dict[str, Target]
        self._shown: int
        self._edits: list[tuple[str, str, Any]]
        self._answer: str | None
        self._notes: list[str]
        self._missing: frozenset[str]  # references of the recorded page that the present one has nothing for
        self._arrival: tuple[str, int]  # the recorded fingerprint that was accepted last, and the step
        self._told: int  # how many refusals of the gate have been told
        self._told_late: set[str]  # what the policy was told of them
        self._untouched: bool  # nothing was done on the page since it was loaded
        self._may_load: bool  # the last action only read, so the page may be loaded beside
        self._forget()

    # What a site adds.

    async def server_state(self) -> bytes:
        """The server's state behind this session, for STATE snapshots. Raises RestoreUnsupported by default."""
        raise RestoreUnsupported(f"{self.name} cannot save its server's state; it declares {sorted(self.restore_ways)}")

    async def load_server_state(self, state: bytes) -> None:
        """Puts back what `server_state` gave. Raises RestoreUnsupported by default."""
        raise RestoreUnsupported(f"{self.name} cannot put back a server's state")

    async def server_mark(self) -> str:
        """A hash of the server's state, part of the fingerprint; '' where the page is all that is known."""
        return ""

    async def begin(self, task: Task, key: int) -> None:
        """Prepares the server for a task."""

    async def adorn(self, tab: Tab, view: PageView) -> PageView:
        """The view with what a site adds to it."""
        return view

    async def pass_time(self, tab: Tab, milliseconds: int) -> None:
        """Lets time pass on the page, for the action `wait`."""
        await asyncio.sleep(milliseconds / 1000)

    async def settle(self, tab: Tab) -> bool:
        """Waits until what an action began has ended; False if the deadline came first."""
        return await tab.watcher.settled(self.deadline, self.quiet)

    async def score(self, task: Task, answer: str) -> float:
        """The truth reward of an answer; NaN means unknown."""
        return math.nan

    def _live(self, *, ended: bool = False) -> Tab:
        """The open tab. Raises SessionDied if it is gone, InvalidAction if the episode is over."""
        if self._tab is None:
            raise SessionDied(f"{self.name}: no page is open; await reset(task, key) first")
        if self._tab.watcher.dead:
            raise SessionDied(f"{self.name}: {self._tab.watcher.dead}")
        if self._answer is not None and not ended:
            raise InvalidAction("the episode is over: an answer was given")
        return self._tab

    async def _open(self) -> Tab:
        if self._tab is not None and self._tab.watcher.dead:
            await self._leave()
        if self._tab is None:
            self._tab = await self._fresh(self.storage)
        self._tab.gate.writes = not self._guarded
        return self._tab

    async def _fresh(self, storage: Any = None) -> Tab:
        """A new context with all of this session's guards; `storage` is what it holds to begin with."""
        tab = await Tab.open(
            self.allow, self.headers, self.viewport, popups=self.popups, asks=self.asks,
            script=(self.fence.script if self._guarded else "") + self.script,
            posts=self.posts, tunnels=self._guarded and any(host != "127.0.0.1" for host in self._names()),
            storage=storage, still=self.still and not self.screenshot,
        )  # fmt: skip
        tab.uses = self.uses
        return tab

    async def _leave(self) -> None:
        tab, self._tab = self._tab, None
        self._forget()
        if tab is not None:
            await tab.close()

    def _forget(self) -> None:
        """Nothing is known of any page, as before the first reset."""
        self._view, self._document, self._targets = PageView("", "", ()), 0, {}
        self._shown, self._edits, self._answer, self._notes = 1, [], None, []
        self._missing, self._arrival = frozenset(), ("", 0)
        self._may_load = self._untouched = False
        self._told_late = set()
        self._told = self._tab.gate.refused if self._tab is not None else 0
        if self._tab is not None:
            self._history.clear()

    async def _at_hand(self, tab: Tab, ref: str) -> None:
        """Finds an element again that was drawn anew since it was seen. Raises InvalidAction if it is gone."""
        element = self._view.elements.get(ref)
        if element is None or not self.uses or not await tab.gone(element):
            return
        now = await self._view_of(tab)
        pairs = found_again(self._view, now)
        there = {old: replace(now.elements[new], ref=old) for old, new in pairs.items()}
        self._view, self._targets = replace(self._view, elements=there), {}
        if ref not in there:
            raise InvalidAction(f'{ref}, the {element.role} "{element.name}", is no longer on the page')

    @property
    def _guarded(self) -> bool:
        """True where requests that may change something are stopped between the actions that are to send them."""
        return self.locked and not self.sandboxed

    def _names(self) -> set[str]:
        """The hosts that may be reached, without ports."""
        return {host.rsplit(":", 1)[0] for host in self.allow.hosts}

    def _relative(self, url: str) -> str:
        """An address of the start's site without its origin, which may be another one when it is restored."""
        origin = "/".join(self.start.split("/")[:3])
        return url.removeprefix(origin) if url.startswith(f"{origin}/") else url

    @property
    def _history(self) -> list[str]:
        """The addresses that the shown window has had."""
        return self._tab.window.history if self._tab is not None else []

    async def _look(self) -> Observation:
        """Reads the page; a new address or document ends what was remembered about the last one."""
        tab = self._live(ended=True)
        if tab.watcher.dialog is not None:  # the page cannot answer anything before it was answered
            return await self._observe()
        view = await self._at_rest(tab)
        if self.same_as.way != "exact" and self._may_load and self.memory.wants(view.url):
            await self._learn(tab, view.url)
            view = await self._view_of(tab)
        if not self._history or self._history[-1] != view.url:
            if tab.watcher.documents == self._document and self._history:
                tab.window.soft[len(self._history)] = self._document
            self._history.append(view.url)
        self._untouched = tab.watcher.documents != self._document
        if self._untouched:
            self._document, self._edits, self._shown = tab.watcher.documents, [], 1
        self._view, self._targets, self._missing = view, {}, frozenset()
        observation = await self._observe()
        if self.same_as.way != "exact":
            self.memory.keep(observation.fingerprint, self._remembered(tab))
        return observation

    async def _view_of(self, tab: Tab) -> PageView:
        regions = self.memory.regions(tab.page.url)
        look = tab.look(regions if regions or self.same_as.way != "exact" else None)
        if not self.shapes:
            return await self.adorn(tab, await look)
        view, rows = await asyncio.gather(look, look_for_shapes(tab, self.shapes))  # the page first, then its shapes
        return await self.adorn(tab, with_shapes(view, rows))

    async def _at_rest(self, tab: Tab) -> PageView:
        """The page, once nothing of it stands for what is still to come; a kind that never ends is not waited for."""
        view = await self._view_of(tab)
        for _ in range(_WAITS):
            if not tab.seen.busy or self.memory.kind(view.url) in self.memory.endless:
                return view
            await tab.watcher.settled(self.deadline, _CALMER)
            view = await self._view_of(tab)
        self.memory.endless.add(self.memory.kind(view.url))
        return view

    async def _learn(self, tab: Tab, url: str, again: bool = False) -> None:
        """Loads an address twice beside the page, and notes what differs between the visits.

        again  compare the page itself with them, too, if nothing was done on it, and two visits of strangers
        """
        if not url.startswith(("http:", "https:")):
            return
        regions = self.memory.regions(url)
        rows: list[list[tuple[PageView, Uses]]] = [[], []]
        try:
            rows[0] = [await tab.aside(url, self._settled_soon, regions) for _ in range(2)]
            if again:
                rows[0] = [*([(self._view, tab.seen)] if self._untouched else []), *rows[0]]
                rows[1] = [await self._stranger(url, regions) for _ in range(2)]
        except (EnvFault, PlaywrightError) as error:  # a page that cannot be loaded beside is compared as it is
            log.warning("%s: cannot load %s once more to learn what changes there: %s", self.name, url, error)
        self.memory.learn(url, rows)

    async def _settled_soon(self, tab: Tab) -> bool:
        """Pages that never settle would take the time that is there for the page itself."""
        return await tab.watcher.settled(min(self.deadline, _SOON), self.quiet)

    async def _stranger(self, url: str, regions: Regions) -> tuple[PageView, Uses]:
        """An address as somebody sees it who has just come, with no more than the login that was given."""
        tab = await self._fresh(self.storage)
        try:
            tab.gate.writes = not self._guarded
            tab.watcher.begin()
            await tab.navigate(url)
            await self._settled_soon(tab)
            return await tab.look(regions), tab.seen
        finally:
            await tab.close()

    def _remembered(self, tab: Tab) -> Seen:
        return Seen.of(self._view, tab.seen, [str(self._shown), *self._around()], self.calm)

    async def recognise(self, fingerprint: str, step: int) -> float | None:
        """Compares the page with the one that had this fingerprint, as `same_page` says; see BaseEnvironment.

        A page that differs is given more time, then it is loaded beside to learn what changes by itself. Where it
        counts as the same, references mean what they meant on the recorded page.
        """
        recorded = self.memory.page(fingerprint)
        if self.same_as.way == "exact" or recorded is None or self._answer is not None:
            return None
        tab = self._live()
        with boundary(f"{self.name} recognise"), tab.faults(f"{self.name} recognise"):
            async with asyncio.timeout(self.patience):
                verdict = self._compared(tab, recorded)
                if verdict.distance is None and tab.watcher.dialog is None:
                    await tab.watcher.settled(self.deadline, _CALMER)
                    self._view = await self._view_of(tab)
                    verdict = self._compared(tab, recorded)
                url = self._view.url
                if verdict.distance is None and self._may_load and self.memory.wants(url, again=True):
                    await self._learn(tab, url, again=True)
                    self._view = await self._view_of(tab)
                    verdict = self._compared(tab, recorded)
        if verdict.distance is None:
            return None
        view = self._view
        there = {old: replace(view.elements[new], ref=old) for old, new in verdict.pairs.items()}
        there |= {ref: element for ref, element in view.elements.items() if ref.startswith("a")}
        self._view, self._targets = replace(view, elements=there), {}
        self._missing = frozenset(spot.ref for spot in recorded.spots if spot.ref) - there.keys()
        self._arrival = (fingerprint, step)
        return verdict.distance

    def _compared(self, tab: Tab, recorded: Seen) -> Verdict:
        return same(recorded, self._remembered(tab), self.same_as, self.memory.regions(self._view.url))

    async def _observe(self) -> Observation:
        parts = self._view.parts(self.part)
        self._shown = min(self._shown, len(parts))
        mark, around = await self.server_mark(), self._around()
        fingerprint = self._view.fingerprint(str(self._shown), mark, *around, calm=self.calm)
        if self._answer is not None:
            return Observation("answered", digest(fingerprint, self._answer), provenance="environment")
        head, _, rest = parts[self._shown - 1].partition("\n")
        text = "\n".join([*(line for line in (head, *self._notes, *around, rest) if line)])
        return Observation(text, fingerprint, provenance="page", parts=await self._picture())

    async def document(self, name: str) -> str | None:
        """The whole page that is shown now, which comes in parts where it is long; None for anything by name."""
        return None if name else "\n".join(self._view.parts(sys.maxsize))

    def _around(self) -> list[str]:
        """The state of the browser around the page: other windows, and an open question."""
        tab = self._live(ended=True)
        lines = []
        if len(tab.windows) > 1:
            shown = (urlsplit(window.page.url).path or "/" for window in tab.windows)
            marks = (" shown" if window is tab.window else "" for window in tab.windows)
            lines.append(
                "windows "
                + ", ".join(f"{n} {path}{m}" for n, (path, m) in enumerate(zip(shown, marks, strict=True), 1))
            )
        if (dialog := tab.watcher.dialog) is not None:
            lines.append(f"dialog {dialog.type} {json.dumps(dialog.message, ensure_ascii=False)}")
        return lines

    async def _picture(self) -> tuple[Mapping[str, Any], ...]:
        tab = self._live(ended=True)
        if not self.screenshot or tab.watcher.dialog is not None:
            return ()
        shot = await tab.cdp.send("Page.captureScreenshot", {"format": "png"})
        return ({"type": "image", "png": base64.b64decode(shot["data"]), "boxes": self._boxes(tab)},)

    def _boxes(self, tab: Tab) -> dict[str, list[int]]:
        """Where the elements of the page stand in its picture, by reference: left, top, width, height in pixels."""
        width, height = self.viewport
        known = {ref: tab.seen.boxes.get(e.node) for ref, e in self._view.elements.items() if e.frame == 0}
        return {
            ref: [round(value) for value in box]
            for ref, box in known.items()
            if box is not None and box[0] < width and box[1] < height and box[0] + box[2] > 0 and box[1] + box[3] > 0
        }
