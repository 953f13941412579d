"""A web site as an environment: what the page shows is the observation, one action per turn.

Subclass `WebEnvironment` for a site: say where it starts and which hosts it may reach, and, where the site offers
it, how its server's state is saved and put back (`server_state`, `load_server_state`), which adds STATE to the ways
back. Without that a session can only be replayed, and the world counts as live.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any
from urllib.parse import urljoin

from treewright.envs.errors import Divergence, EnvFault, InvalidAction, RestoreUnsupported, boundary
from treewright.envs.types import (
    Action,
    Call,
    Effect,
    Observation,
    Restore,
    Snapshot,
    StepResult,
    Task,
    ToolSpec,
)
from treewright.envs.web import gestures
from treewright.envs.web.actions import (
    ALL_TOOLS,
    TOOLS,
    checkable,
    checked_call,
    clickable,
    fillable,
    selectable,
)
from treewright.envs.web.effects import SAFE_METHODS, Target, after_traffic, judge
from treewright.envs.web.hands import WebHands
from treewright.envs.web.tab import Tab
from treewright.envs.web.view import Element, quote

__all__ = ["TOOLS", "FullWebEnvironment", "WebEnvironment"]


class WebEnvironment(WebHands):
    """A web site as an environment; see WebSession for what can be set."""

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
                tab.watcher.leaves = True
                with tab.faults(f"{self.name} reset"):
                    if self.reuse and await tab.cookies():
                        await tab.set_cookies([])
                    tab.watcher.begin()
                    await tab.navigate(self.start)
                    await self.settle(tab)
                    self._may_load = True
                    return await self._look()

    async def actions(self) -> Sequence[ToolSpec]:
        """Those of the tools that the present page has a use for; an open question must be answered first."""
        tab = self._tab
        if tab is not None and tab.watcher.dialog is not None:
            return [spec for spec in self.tools if spec.name in ("accept", "dismiss", "answer")]
        windows = len(tab.windows) if tab is not None else 1
        elements = list(self._view.elements.values())
        useful = {
            "click": any(map(clickable, elements)),
            "fill": any(map(fillable, elements)),
            "select": any(map(selectable, elements)),
            "back": len(self._history) > 1,
            "part": len(self._view.parts(self.part)) > 1,
            "check": any(map(checkable, elements)),
            "hover": bool(elements),
            "drag": len(elements) > 1,
            "upload": self.uploads is not None and any(e.role == "button" or e.kind == "file" for e in elements),
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
                    late = self._stopped(tab)
                    tab.watcher.begin()
                    tab.watcher.leaves = False
                    fenced = self._guarded and call.name != "wait"
                    if fenced:
                        await self.fence.begin(tab)
                    tab.gate.writes = self._may_write(target, before)
                    settled, observation = await self._act(tab, call, before)
                    tab.gate.writes = not self._guarded
                    stopped, writes = self._stopped(tab), list(tab.traffic.writes)
                    methods = tab.traffic.methods(self.posts)
                    if fenced and await self.fence.end(tab):
                        await self.settle(tab)
                        observation = await self._look()
                        late += self._stopped(tab)
                    if call.name == "wait" and self._guarded:  # waiting sends nothing: what came was begun before
                        late, stopped, methods = [*late, *stopped], [], []
                    if late := [entry for entry in late if " " in entry]:
                        observation = await self._tell_late(late, observation)
        expected = before is Effect.IRREVERSIBLE or bool(target and target.method not in ("", *SAFE_METHODS))
        tried = [entry.split(" ", 1)[0] for entry in stopped if " " in entry]  # some the browser does not tell of
        effect = self._cap(after_traffic(before, [*methods, *tried], expected=expected))
        info = {
            "settled": settled,
            "writes": writes,
            "dialogs": list(tab.traffic.dialogs),
            "denied": stopped,
            "late": late,
        }
        return StepResult(observation, effect=effect, info={k: v for k, v in info.items() if v not in ([], True)})

    def _stopped(self, tab: Tab) -> list[str]:
        """What the gate stopped since it was asked last, as far as it remembers."""
        new, self._told = tab.gate.refused - self._told, tab.gate.refused
        return list(tab.gate.denied)[-new:] if new > 0 else []

    async def _tell_late(self, late: Sequence[str], observation: Observation) -> Observation:
        """The observation with a note of what was stopped, once for each request of an episode."""
        new = [entry for entry in dict.fromkeys(late) if entry not in self._told_late]
        self._told_late.update(new)
        if not new:
            return observation
        self._notes.append(f"note what an earlier action began was stopped: {', '.join(new)}")
        return await self._observe()

    async def _act(self, tab: Tab, call: Call, effect: Effect) -> tuple[bool, Observation]:
        """Executes a call and looks; the first value is False if the page did not settle.

        effect  what was judged before: only a page that was merely read is loaded beside
        """
        view, document, self._notes = self._view, tab.watcher.documents, []
        await self._execute(tab, call)
        settled = await self.settle(tab)
        if settled and self._guarded and call.name != "wait" and document == tab.watcher.documents:
            await self.fence.over(tab, partial(self.settle, tab))
        self._may_load = effect is Effect.READ and not tab.traffic.writes
        observation = await self._look()
        if tab.watcher.dialog is None:
            told = len(self._notes)
            same = document == tab.watcher.documents
            self._notes += [f"note the file {quote(name)} was offered and not saved" for name in tab.traffic.downloads]
            self._tell(call, view.elements.get(call.arguments.get("ref", "")), view, same)
            if len(self._notes) > told:
                observation = await self._observe()
        return settled, observation

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
                tab.watcher.leaves = True
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

    async def _target(self, call: Call) -> Target:
        """Validates a call against the page and says what it would touch. Raises InvalidAction."""
        checked_call(Action((call,)), self.tools)
        self._check(call)
        for name in ("ref", "to"):
            if call.arguments.get(name):
                await self._at_hand(self._live(), call.arguments[name])
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
            case "accept" if (asked := self._live().watcher.dialog) and asked.type in ("alert", "beforeunload"):
                return Target("leave")
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

    def _may_write(self, target: Target, effect: Effect) -> bool:
        return not self._guarded or effect.needs_commit or target.method not in ("", *SAFE_METHODS)

    def _judge(self, target: Target) -> Effect:
        if target.action in ("part", "answer"):
            return Effect.READ
        return self._cap(judge(target, self.rules))

    def _cap(self, effect: Effect) -> Effect:
        """In a sandbox the snapshot undoes everything."""
        return Effect.REVERSIBLE if self.sandboxed and effect.needs_commit else effect

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
