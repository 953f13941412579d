"""Timers of a live site's pages know the action that they come from, so that what they send later is laid to it.

A click may start a timer that sends something when another action runs. While an action runs, callbacks that were set
up before it are held back; they run once it is over, when nothing may be changed: the guard stops what they send, and
it is told as late. Callbacks that the action itself set up are waited for, up to `SOON` seconds, as part of it.

`Fence.script` wraps setTimeout, setInterval, requestAnimationFrame and requestIdleCallback before a page's own code
runs. A callback that a timer's callback sets up belongs to the same action. Not covered: timers of workers, callbacks
given as text, and what waits in another way (a slow answer, a promise); the guard still stops what these send while
nothing may be changed.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from playwright.async_api import Error as PlaywrightError

from treewright.envs.web.settle import World

__all__ = ["SOON", "Fence"]

SOON = 2.0  # seconds that a callback may be away and still be waited for
_TURN = 0.05  # seconds between two looks at what is still to come

_SCRIPT = """(() => {
  const NAME = '%s', SOON = %d, jobs = new Map(), now = performance.now.bind(performance);
  let epoch = 0, from = null, holding = false;
  const wrap = (make, stop, kind, again) => {
    const begin = window[make], end = window[stop];
    if (!begin) return;
    window[make] = {[make](call, delay, ...given) {
      if (typeof call !== 'function') return begin.call(window, call, delay, ...given);
      const job = {born: from === null ? epoch : from, due: now() + (kind === 't' ? Number(delay) || 0 : 0), ran: false, held: null};
      const run = (...args) => {
        if (holding && job.born < epoch) { job.held = () => run(...args); return }
        job.ran = true;
        if (!again) jobs.delete(key);
        const before = from; from = job.born;
        try { return call.apply(window, args) } finally { from = before }
      };
      const id = begin.call(window, run, ...(arguments.length > 1 ? [delay, ...given] : [])), key = kind + id;
      jobs.set(key, job);
      return id;
    }}[make];
    window[stop] = {[stop](id) { jobs.delete(kind + id); return end.call(window, id) }}[stop];
  };
  const later = window.setTimeout;
  wrap('setTimeout', 'clearTimeout', 't', false); wrap('setInterval', 'clearInterval', 't', true);
  wrap('requestAnimationFrame', 'cancelAnimationFrame', 'f', false);
  wrap('requestIdleCallback', 'cancelIdleCallback', 'i', false);
  addEventListener(NAME + 'begin', () => { epoch++; holding = true });
  addEventListener(NAME + 'soon', event => {
    for (const job of jobs.values()) if (job.born === epoch && !job.ran && job.due < now() + SOON) event.preventDefault();
  });
  addEventListener(NAME + 'end', event => {
    holding = false;
    for (const job of jobs.values()) {
      const held = job.held;
      if (held) { job.held = null; event.preventDefault(); later.call(window, held, 0) }
    }
  });
})()
"""  # noqa: E501


class Fence:
    """The fence of one context: `begin` before an action, `over` until what it set up is done, `end` after it."""

    def __init__(self) -> None:
        self.name = f"f{secrets.token_hex(8)}"
        self.script = _SCRIPT % (self.name, round(1000 * SOON))

    async def begin(self, tab: Any) -> None:
        """From now on callbacks that were set up before wait."""
        await self._tell(tab, "begin")

    async def over(self, tab: Any, settle: Callable[[], Awaitable[bool]]) -> bool:
        """Waits for callbacks of the action that are due soon; True if there were some, and the page settled again."""
        until, waited = time.monotonic() + SOON, False
        while time.monotonic() < until and await self._tell(tab, "soon"):
            waited = True
            await asyncio.sleep(_TURN)
        if waited:
            await settle()
        return waited

    async def end(self, tab: Any) -> bool:
        """Lets what was held back run; True if something was."""
        return await self._tell(tab, "end")

    async def _tell(self, tab: Any, what: str) -> bool:
        """True if a page or frame says that there is something."""
        if tab.watcher.dialog is not None:
            return False
        told = f"!dispatchEvent(new Event('{self.name}{what}', {{cancelable: true}}))"
        try:
            worlds: list[World] = [(window.cdp, {}) for window in tab.windows]
            worlds += await tab.watcher.unless_asked(tab.frames.worlds(tab.page, tab.cdp)) or ()
            calls = [s.send("Runtime.evaluate", {"expression": told, "returnByValue": True, **w}) for s, w in worlds]
            found = await tab.watcher.unless_asked(asyncio.gather(*calls, return_exceptions=True)) or ()
        except PlaywrightError:
            return False  # the document is being replaced: its timers go with it
        return any(isinstance(one, dict) and one["result"].get("value") is True for one in found)
