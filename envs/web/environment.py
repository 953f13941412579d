"""A web site as an environment: what the page shows is the observation, one action per turn.

Subclass `WebEnvironment` for a site: say where it starts and which hosts it may reach, and, where the site offers
it, how its server's state is saved and put back (`server_state`, `load_server_state`), which adds STATE to the ways
back. Without that a session can only be replayed, and the world counts as live.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urljoin, urlsplit

from treewright.envs.errors import Divergence, EnvFault, InvalidAction, RestoreUnsupported, SessionDied, boundary
from treewright.envs.types import (
    Action,
    BaseEnvironment,
    Call,
    Effect,
    Observation,
    Restore,
    Snapshot,
    StepResult,
    Task,
    ToolSpec,
    digest,
)
from treewright.envs.web import gestures
from treewright.envs.web.actions import ALL_TOOLS, TOOLS, checked_call, checked_element
from treewright.envs.web.effects import DEFAULT_RULES, SAFE_METHODS, Rule, Target, after_traffic, judge
from treewright.envs.web.guard import AllowList
from treewright.envs.web.shapes import look_for_shapes
from treewright.envs.web.tab import Tab
from treewright.envs.web.view import EDITABLE, TIMES, Element, PageView

__all__ = ["TOOLS", "FullWebEnvironment", "WebEnvironment"]


class WebEnvironment(BaseEnvironment):
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
    reuse       True for a site whose pages keep nothing in the browser but cookies: `reset` then clears these
                and keeps the context, which takes a third of the time of a new one

    `back` opens the address that was open before, so a form that was sent is not sent again and what was written
    into fields is gone. Two states count as equal when path, page with its field values, shown part and server
    state agree; the way that led there (what `back` would show) is not compared, but restored.
    """

    name = "web"
    restore_ways = frozenset({Restore.REPLAY})
    sandboxed = False
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
        self.locked, self.posts = locked, tuple(posts)
        self.task: Task | None = None
        self._tab: Tab | None = None
        self._view: PageView
        self._document: int
        self._targets: dict[str, Target]
        self._shown: int
        self._edits: list[tuple[str, str, Any]]
        self._answer: str | None
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
        """The view with what a site adds to it; the drawn elements where they are wanted."""
        return await look_for_shapes(tab, view, self.shapes) if self.shapes else view

    async def pass_time(self, tab: Tab, milliseconds: int) -> None:
        """Lets time pass on the page, for the action `wait`."""
        await asyncio.sleep(milliseconds / 1000)

    async def settle(self, tab: Tab) -> bool:
        """Waits until what an action began has ended; False if the deadline came first."""
        return await tab.watcher.settled(self.deadline, self.quiet)

    async def score(self, task: Task, answer: str) -> float:
        """The truth reward of an answer; NaN means unknown."""
        return math.nan

    # The contract.

    async def reset(self, task: Task, key: int) -> Observation:
        if not self.reuse:
            await self._leave()
        self._forget()
        self.task = task
        with boundary(f"{self.name} reset"):
            async with asyncio.timeout(self.patience):
                await self.begin(task, key)
                tab = await self._open()
                with tab.faults(f"{self.name} reset"):
                    if self.reuse and await tab.cookies():
                        await tab.set_cookies([])
                    tab.watcher.begin()
                    await tab.navigate(self.start)
                    await self.settle(tab)
                    return await self._look()

    async def actions(self) -> Sequence[ToolSpec]:
        """Those of the tools that the present page has a use for; an open question must be answered first."""
        tab = self._tab
        if tab is not None and tab.watcher.dialog is not None:
            return [spec for spec in self.tools if spec.name in ("accept", "dismiss", "answer")]
        windows = len(tab.windows) if tab is not None else 1
        roles = {element.role for element in self._view.elements.values()}
        useful = {
            "click": bool(roles),
            "fill": bool(roles & EDITABLE),
            "select": any(element.options for element in self._view.elements.values()),
            "back": len(self._history) > 1,
            "part": len(self._view.parts(self.part)) > 1,
            "check": bool(roles & {"checkbox", "radio", "switch", "menuitemcheckbox", "menuitemradio"}),
            "hover": bool(roles),
            "drag": len(self._view.elements) > 1,
            "upload": self.uploads is not None and "button" in roles,
            "tab": windows > 1,
            "close_tab": windows > 1,
            "accept": False,
            "dismiss": False,
        }
        return [spec for spec in self.tools if useful.get(spec.name, True)]

    async def effect(self, action: Action) -> Effect:
        """The worst effect of the calls. An action that `step` would refuse does nothing: READ."""
        worst = Effect.READ
        for call in action.calls:
            try:
                target = await self._target(call)
            except InvalidAction:
                continue
            worst = max(worst, self._judge(target), key=lambda e: e.severity)
        return worst

    async def step(self, action: Action, key: int) -> StepResult:
        tab = self._live()
        call = checked_call(action, self.tools)
        if call.name == "answer":
            return await self._finish(call.arguments["text"])
        with boundary(f"{self.name} {call.name}"):
            async with asyncio.timeout(self.patience):
                with tab.faults(f"{self.name} {call.name}"):
                    target = await self._target(call)
                    before = self._judge(target)
                    denied = len(tab.gate.denied)
                    tab.watcher.begin()
                    tab.gate.writes = self._may_write(target, before)
                    await self._execute(tab, call)
                    settled = await self.settle(tab)
                    tab.gate.writes = not self._guarded
                    observation = await self._look()
        expected = before is Effect.IRREVERSIBLE or bool(target and target.method not in ("", *SAFE_METHODS))
        stopped = list(tab.gate.denied)[denied:]
        tried = [entry.split(" ", 1)[0] for entry in stopped if " " in entry]  # some the browser does not tell of
        effect = self._cap(after_traffic(before, [*tab.traffic.methods(self.posts), *tried], expected=expected))
        info = {
            "settled": settled,
            "writes": list(tab.traffic.writes),
            "dialogs": list(tab.traffic.dialogs),
            "denied": stopped,
        }
        return StepResult(observation, effect=effect, info={k: v for k, v in info.items() if v not in ([], True)})

    async def snapshot(self) -> Snapshot:
        tab = self._live(ended=True)
        state = await self.server_state()
        with tab.faults(f"{self.name} snapshot"):
            observation = await self._observe()
            kept = {
                "task": asdict(self.task) if self.task else None,
                "server": state.decode(),
                "cookies": list(await tab.cookies()),
                "history": [self._relative(url) for url in self._history],
                "others": [
                    [self._relative(url) for url in window.history]
                    for window in tab.windows
                    if window is not tab.window
                ],
                "edits": self._edits,
                "shown": self._shown,
                "answer": self._answer,
            }
        data = json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode()
        return Snapshot(Restore.STATE, data, observation.fingerprint, size=len(data))

    async def restore(self, snapshot: Snapshot) -> Observation:
        """Server state, cookies and address first, then what was written into fields; verified by fingerprint.

        Raises Divergence if the page that comes back is another one (in a live world: others changed it).
        """
        if snapshot.kind is not Restore.STATE or Restore.STATE not in self.restore_ways:
            raise RestoreUnsupported(f"{self.name} cannot restore a {snapshot.kind} snapshot")
        kept = json.loads(snapshot.data)
        with boundary(f"{self.name} restore"):
            async with asyncio.timeout(self.patience):
                await self._prepare(kept)
                tab = await self._open()
                with tab.faults(f"{self.name} restore"):
                    if list(await tab.cookies()) != kept["cookies"]:
                        await tab.set_cookies(kept["cookies"])
                    observation = await self._revisit(tab, kept)
        if observation.fingerprint != snapshot.fingerprint:
            raise Divergence(snapshot.fingerprint, observation.fingerprint, 0)
        return observation

    async def close(self) -> None:
        await self._leave()

    # Inside.

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
            self._tab = await self._fresh()
        self._tab.gate.writes = not self._guarded
        return self._tab

    async def _fresh(self, storage: Any = None) -> Tab:
        """A new context with all of this session's guards; `storage` is what it holds to begin with."""
        return await Tab.open(
            self.allow, self.headers, self.viewport, popups=self.popups, asks=self.asks, script=self.script,
            posts=self.posts, tunnels=self._guarded and any(host != "127.0.0.1" for host in self._names()),
            storage=storage,
        )  # fmt: skip

    async def _leave(self) -> None:
        tab, self._tab = self._tab, None
        self._forget()
        if tab is not None:
            await tab.close()

    def _forget(self) -> None:
        """Nothing is known of any page, as before the first reset."""
        self._view, self._document, self._targets = PageView("", "", ()), 0, {}
        self._shown, self._edits, self._answer = 1, [], None
        if self._tab is not None:
            self._history.clear()

    async def _prepare(self, kept: Mapping[str, Any]) -> None:
        if kept["task"] and (self.task is None or self.task.id != kept["task"]["id"]):
            self.task = Task(**kept["task"])
            await self.begin(self.task, 0)
        await self.load_server_state(kept["server"].encode())

    async def _revisit(self, tab: Tab, kept: Mapping[str, Any]) -> Observation:
        for window in tab.windows[1:] if len(tab.windows) > 1 else ():
            await tab.close_window(window)
        for others in kept.get("others", ()):
            tab.window.history[:] = [urljoin(self.start, url) for url in others]
            await tab.navigate(tab.window.history[-1])
            await tab.new_window("about:blank")
        history = [urljoin(self.start, url) for url in kept["history"]]
        tab.watcher.begin()
        await tab.navigate(history[-1])
        await self.settle(tab)
        self._history[:], self._edits, self._shown, self._answer = history, [], 1, None
        observation = await self._look()
        for name, ref, value in kept["edits"]:
            element = self._view.elements.get(ref)
            if element is None:
                break  # another page than the one left: the fingerprint will say so
            await self._edit(tab, name, element, value)
            await self.settle(tab)
            observation = await self._look()
        self._shown, self._answer = kept["shown"], kept["answer"]
        return await self._observe() if self._shown > 1 or self._answer is not None else observation

    def _element(self, call: Call, argument: str = "ref") -> Element:
        return checked_element(call, self._view.elements, call.arguments[argument], self.tools is not TOOLS)

    async def _target(self, call: Call) -> Target:
        """Validates a call against the page and says what it would touch. Raises InvalidAction."""
        checked_call(Action((call,)), self.tools)
        self._check(call)
        match call.name:
            case "goto":
                return Target("goto", url=self._address(call.arguments["path"]))
            case "type":
                return Target("type", key="Enter" if "\n" in call.arguments["text"] else "")
            case "press" if not call.arguments["ref"]:
                return Target("press", key=call.arguments["key"])
            case "upload":
                gestures.upload_path(self.uploads, call.arguments["file"])
            case "drag":
                self._element(call, "to")
        if call.arguments.get("ref"):
            return await self._touched(call, self._element(call))
        return Target(call.name)

    def _check(self, call: Call) -> None:
        """What can be said without an element. Raises InvalidAction."""
        dialog = self._tab.watcher.dialog if self._tab is not None else None
        if dialog is not None and call.name not in ("accept", "dismiss", "answer"):
            raise InvalidAction(f"the page asks {dialog.message!r} first: accept or dismiss")
        if dialog is None and call.name in ("accept", "dismiss"):
            raise InvalidAction("the page asks nothing now")
        if call.name == "part":
            count, number = len(self._view.parts(self.part)), call.arguments["number"]
            if not 1 <= number <= count:
                raise InvalidAction(f"no part {number}; this page has {count}")
        if call.name == "back" and len(self._history) < 2:
            raise InvalidAction("there is no page to go back to")
        if call.name in ("tab", "close_tab"):
            count, number = len(self._live().windows), call.arguments["number"]
            if not 1 <= number <= count:
                raise InvalidAction(f"no window {number}; there are {count}")
            if call.name == "close_tab" and count == 1:
                raise InvalidAction("the only window cannot be closed")
        if call.name == "wait" and not 1 <= call.arguments["milliseconds"] <= 60_000:
            raise InvalidAction("milliseconds must be from 1 to 60000")
        for name in ("x", "to_x", "y", "to_y"):
            limit = self.viewport["y" in name]
            if not 0 <= call.arguments.get(name, 0) < limit:
                raise InvalidAction(f"{name} must be from 0 to {limit - 1}")

    async def _touched(self, call: Call, element: Element) -> Target:
        key = call.arguments["key"] if call.name == "press" else ""
        known = f"{call.name} {element.ref} {key}"
        if known not in self._targets:
            tab = self._live()
            with tab.faults(f"{self.name} effect"):
                self._targets[known] = await tab.describe(call.name, element, key)
        target = self._targets[known]
        if target.url.startswith(("http:", "https:")) and not self.allow.allows_url(target.url):
            raise InvalidAction(f"{element.ref} leads to a host that is not allowed: {target.url}")
        return target

    @property
    def _guarded(self) -> bool:
        """True where requests that may change something are stopped between the actions that are to send them."""
        return self.locked and not self.sandboxed

    def _names(self) -> set[str]:
        """The hosts that may be reached, without ports."""
        return {host.rsplit(":", 1)[0] for host in self.allow.hosts}

    def _may_write(self, target: Target, effect: Effect) -> bool:
        return not self._guarded or effect.needs_commit or target.method not in ("", *SAFE_METHODS)

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

    def _relative(self, url: str) -> str:
        """An address of the start's site without its origin, which may be another one when it is restored."""
        origin = "/".join(self.start.split("/")[:3])
        return url.removeprefix(origin) if url.startswith(f"{origin}/") else url

    def _judge(self, target: Target) -> Effect:
        if target.action in ("part", "answer"):
            return Effect.READ
        return self._cap(judge(target, self.rules))

    def _cap(self, effect: Effect) -> Effect:
        """In a sandbox the snapshot undoes everything."""
        return Effect.REVERSIBLE if self.sandboxed and effect.needs_commit else effect

    async def _execute(self, tab: Tab, call: Call) -> None:
        given = call.arguments
        element = self._element(call) if given.get("ref") else None
        match call.name, element:
            case "click", Element():
                await tab.click(element)
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
                await tab.fill(element, value)
            case "select":
                await tab.select(element, value)
            case "check":
                await gestures.check(tab, element, value)
            case "upload":
                await gestures.upload(tab, element, gestures.upload_path(self.uploads, value))
        self._edits.append((name, element.ref, value))

    @property
    def _history(self) -> list[str]:
        """The addresses that the shown window has had."""
        return self._tab.window.history if self._tab is not None else []

    async def _look(self) -> Observation:
        """Reads the page; a new address or document ends what was remembered about the last one."""
        tab = self._live(ended=True)
        if tab.watcher.dialog is not None:  # the page cannot answer anything before it was answered
            return await self._observe()
        view = await tab.look()
        view = await self.adorn(tab, view)
        if not self._history or self._history[-1] != view.url:
            self._history.append(view.url)
        if tab.watcher.documents != self._document:
            self._document, self._edits, self._shown = tab.watcher.documents, [], 1
        self._view, self._targets = view, {}
        return await self._observe()

    async def _observe(self) -> Observation:
        parts = self._view.parts(self.part)
        self._shown = min(self._shown, len(parts))
        mark, around = await self.server_mark(), self._around()
        fingerprint = self._view.fingerprint(str(self._shown), mark, *around, calm=self.calm)
        if self._answer is not None:
            return Observation("answered", digest(fingerprint, self._answer), provenance="environment")
        head, _, rest = parts[self._shown - 1].partition("\n")
        text = "\n".join([head, *around, rest] if rest else [head, *around])
        return Observation(text, fingerprint, provenance="page", parts=await self._picture())

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
        return ({"type": "image", "png": base64.b64decode(shot["data"])},)

    async def _finish(self, answer: str) -> StepResult:
        if self.task is None:
            raise EnvFault(f"{self.name}: no task; await reset(task, key) first")
        reward = await self.score(self.task, answer)
        self._answer = answer
        return StepResult(await self._observe(), reward=reward, terminated=True)


class FullWebEnvironment(WebEnvironment):
    """A session with every action that finds its element by reference; windows and questions are the policy's."""

    tools = ALL_TOOLS

    def __init__(self, start: str, *, popups: bool = True, asks: bool = True, **settings: Any) -> None:
        super().__init__(start, popups=popups, asks=asks, **settings)
