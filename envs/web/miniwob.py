"""The suite `miniwob`: the 130 task pages of the wheel `miniwob`, opened from disk, offline, under a frozen clock.

Shi et al. 2017 (World of Bits) and Liu et al. 2018 (MiniWoB++). The reward is the page's raw one, between -1 and 1
and without the time penalty; the episode's timer is off. Each action lets `STEP` milliseconds of the page's own time
pass, `wait` more; nothing moves while the policy thinks, so a seed gives the same episode everywhere, the moving
tasks included.
"""

from __future__ import annotations

import asyncio
import difflib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from playwright.async_api import Error as PlaywrightError

from treewright.envs.errors import EnvFault, TreewrightError
from treewright.envs.types import Action, Effect, Restore, StepResult, Suite, Task, ToolSpec, seed_of
from treewright.envs.web.actions import ALL_TOOLS, POINTING
from treewright.envs.web.browser import close_browser, require_chromium
from treewright.envs.web.clock import FROZEN
from treewright.envs.web.environment import WebEnvironment
from treewright.envs.web.miniwob_oracles import KNOWN, STEP, oracle
from treewright.envs.web.tab import Tab
from treewright.envs.web.view import PageView

__all__ = ["SIMPLE", "STEP", "SUITE", "MiniWobEnvironment", "miniwob_suite", "names", "open_session", "pages"]

VIEWPORT = (400, 640)
_PATIENCE = 0.05  # seconds after which a page is drawn that has not answered: pictures may wait for that
SIMPLE = (
    *("click-test", "click-test-2", "click-test-transfer", "click-button", "click-button-sequence", "click-dialog"),
    *("click-dialog-2", "click-tab", "click-widget", "click-option", "click-checkboxes-transfer", "choose-list"),
    *("click-scroll-list", "focus-text", "focus-text-2", "enter-text", "enter-text-dynamic", "enter-password"),
    *("login-user", "identify-shape"),
)
"""The pages of `miniwob:simple`: short, used by references alone, and every one has an expert."""
_KINDS = ("click", "fill", "select", "check", "press", "type", "hover", "scroll", "drag", "part")
# `__miniwob(seed, time, told)` starts the episode if there is a seed, lets time pass, and says, where it is told to:
# over?, raw reward, why, a hash of the whole document, the task's words, and whether it had to wait. It stands in the
# page from the beginning, so that it is compiled once for all steps; of a document that has not changed only the end is
# hashed.
_PASS = """(() => {
  const loaded = () => Promise.all([...document.images].map(i => i.complete || i.decode().catch(() => 0)));
  const hash = (a, b, text) => {
    for (let i = 0; i < text.length; i++) {
      a = Math.imul(a ^ text.charCodeAt(i), 2654435761); b = Math.imul(b ^ text.charCodeAt(i), 1597334677);
    }
    return [a, b];
  };
  let body = '', hashed = [0xdeadbeef, 0x41c6ce57];
  const begin = async seed => {
    // Pictures of style rules are there before anything begins: one that came later would move what is clicked.
    const urls = [...document.styleSheets].flatMap(sheet => {
      const found = rule => [...rule.cssText.matchAll(/url\\("([^"]+)"\\)/g)].map(match => match[1]);
      try { return [...sheet.cssRules].flatMap(found) }
      catch { return [] }
    });
    window.__pictures = urls.map(url => Object.assign(new Image(), {src: url}));
    await Promise.all(window.__pictures.map(picture => picture.decode().catch(() => 0)));
    Math.seedrandom(String(seed));
    core.EPISODE_MAX_TIME = 2147483647;
    core.startEpisodeReal();
    core.hideDisplay();
  };
  const tell = late => {
    const values = [...document.querySelectorAll('input, textarea, select')].map(e => e.value + '/' + e.checked);
    const focus = document.activeElement ? document.activeElement.tagName + document.activeElement.id : '';
    const html = document.body.innerHTML, rest = JSON.stringify(values) + focus + __treewright.now() + getSelection();
    if (html !== body) { body = html; hashed = hash(0xdeadbeef, 0x41c6ce57, html) }
    const mark = hash(...hashed, rest).map(part => (part >>> 0).toString(16)).join('');
    const why = WOB_REWARD_REASON || '';
    return JSON.stringify([WOB_DONE_GLOBAL, WOB_RAW_REWARD_GLOBAL, why, mark, core.getUtterance(), late]);
  };
  let ready = false;
  __treewright.ready.then(() => { ready = true });
  const pass = (seed, time, told) => {
    let late = !ready;  // whether something has to be waited for
    const pictures = () => { late = late || [...document.images].some(i => !i.complete); return loaded() };
    return __treewright.ready.then(async () => {
      if (seed) await begin(seed);
      await pictures();
      __treewright.run(time);
      await pictures();
      return told ? tell(late) : '';
    });
  };
  Object.defineProperty(window, '__miniwob', {value: pass});
})()"""


@cache
def pages() -> Path:
    """The folder of task pages in the installed wheel. Raises TreewrightError that says what to install."""
    found = find_spec("miniwob")
    folder = Path(found.origin).parent / "html" / "miniwob" if found and found.origin else None
    if folder is None or not folder.is_dir():
        raise TreewrightError("the pages of MiniWoB are missing; type: pip install --no-deps miniwob")
    return folder


@cache
def names() -> tuple[str, ...]:
    """The tasks in alphabetic order, such as 'click-test'."""
    return tuple(sorted(path.stem for path in pages().glob("*.html")))


class MiniWobEnvironment(WebEnvironment):
    """One session: a page from disk that can reach nothing, under a clock that only actions move.

    A state is the whole document with its fields, focus and time; the way back is reset and verified replay.
    """

    name = "miniwob"
    restore_ways = frozenset({Restore.REPLAY})
    sandboxed = True
    still = True
    tools: ClassVar[Sequence[ToolSpec]] = (*(t for t in ALL_TOOLS if t.name in _KINDS), *POINTING)

    def __init__(self) -> None:
        super().__init__(
            pages().as_uri(),
            hosts=[],
            viewport=VIEWPORT,
            part=3000,
            calm=None,  # nothing is volatile where time stands still
            shapes="#area",
            uses=False,  # what is drawn or bare has a line there
            script=f"{FROZEN};\n{_PASS}",
            reuse=True,  # pages from disk keep nothing: each has its state in its own document
        )
        self._seed, self._time = 0, STEP
        self._page = self._goal = ""
        self._outcome: tuple[bool, float, str, str] = (False, 0.0, "", "")

    async def begin(self, task: Task, key: int) -> None:
        page = pages() / f"{task.data['page']}.html"
        if not page.is_file():
            raise EnvFault(f"there is no MiniWoB page {task.data['page']!r}; names() lists them")
        # Seeds of JavaScript's bitwise arithmetic have 31 bits.
        self._seed = task.seed % 0x7FFFFFFF or 1
        self.start = f"{page.as_uri()}?seed={self._seed}"
        self._page = str(task.data["page"])

    async def settle(self, tab: Tab) -> bool:
        """Lets the page's time pass, then tells it where the mouse is.

        Otherwise Chromium would tell it by itself some time after what lies under the mouse has changed.
        """
        seed, self._seed, time, self._time = self._seed, 0, self._time, STEP
        await self._pass(tab, seed, time, told=False)
        if seed:
            tab.glides = True
            tab.mouse = (VIEWPORT[0] - 1, VIEWPORT[1] - 1)
        await tab.move_to(*tab.mouse)
        return True

    async def _view_of(self, tab: Tab) -> PageView:
        """The page is asked for its state and read at once: it answers in this order, unless a picture came late."""
        late, view = await asyncio.gather(self._pass(tab, 0, 0, told=True), super()._view_of(tab))
        return self._with_goal(await super()._view_of(tab) if late else view)

    async def _pass(self, tab: Tab, seed: int, time: int, *, told: bool) -> bool:
        """Lets time pass on the page, which begins with a seed; remembers what it tells of its state if `told`.

        True if the page may have been read before it answered.
        """
        expression = f"__miniwob({seed}, {time}, {str(told).lower()})"
        request = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        for left in range(3, 0, -1):
            try:
                answer = await tab.drawn(tab.cdp.send("Runtime.evaluate", request), _PATIENCE)
            except PlaywrightError:
                if tab.watcher.dead:
                    raise
                continue  # the document was replaced meanwhile: its successor is asked
            if details := answer.get("exceptionDetails"):
                raise EnvFault(f"{self._page} failed: {details.get('exception', {}).get('description', '')}")
            if told:
                over, reward, why, mark, goal, late = json.loads(answer["result"]["value"])
                self._outcome, self._goal = (bool(over), float(reward), str(why), str(mark)), str(goal)
                return bool(late) or left < 3
            return False
        raise EnvFault(f"{self._page} was replaced again and again")

    async def pass_time(self, tab: Tab, milliseconds: int) -> None:
        self._time = milliseconds

    def _with_goal(self, view: PageView) -> PageView:
        """The view with the task's words in front, and an address that does not depend on where the wheel lies."""
        goal = (f"goal {json.dumps(self._goal, ensure_ascii=False)}", "", "")
        return replace(view, url=f"http://miniwob/{self._page}", lines=(goal, *view.lines))

    async def server_mark(self) -> str:
        return self._outcome[3]

    async def step(self, action: Action, key: int) -> StepResult:
        result = await super().step(action, key)
        over, reward, why, _ = self._outcome
        if not over:
            return result
        self._answer = why
        info = {**result.info, "reason": why} if why else result.info
        return replace(result, reward=reward, terminated=True, info=info)

    async def effect(self, action: Action) -> Effect:
        effect = await super().effect(action)
        return Effect.REVERSIBLE if effect.needs_commit else effect


def make_tasks(split: str, count: int) -> list[Task]:
    """The first `count` tasks of a split: every page once, those with an expert first, then all with other seeds."""
    if split not in ("train", "test"):
        raise ValueError(f"no split {split!r}; there are 'train' and 'test'")
    order = (*KNOWN, *(name for name in names() if name not in KNOWN))
    return [make_task(split, order[i % len(order)], i // len(order)) for i in range(count)]


def make_task(split: str, page: str, variant: int = 0, suite: str = "miniwob") -> Task:
    return Task(
        suite=suite,
        id=f"miniwob-{page}-{split}-{variant}",
        goal="do what the page asks",
        seed=seed_of("miniwob", split, page, variant),
        split=split,
        horizon=30,
        data={"page": page},
    )


def miniwob_suite(chosen: str) -> Suite:
    """`miniwob:simple`, or pages by name with commas: `miniwob:click-test,enter-text`. Raises TreewrightError."""
    wanted = SIMPLE if chosen == "simple" else tuple(page.strip() for page in chosen.split(",") if page.strip())
    unknown = next((page for page in wanted if page not in names()), None)
    if unknown is not None or not wanted:
        near = difflib.get_close_matches(unknown or "", ["simple", *names()], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "write miniwob:simple, or pages such as miniwob:click-test"
        raise TreewrightError(f"MiniWoB has no page {unknown or chosen!r}; {hint}")
    suite = f"miniwob:{chosen}"

    def tasks(split: str, count: int) -> list[Task]:
        if split not in ("train", "test"):
            raise ValueError(f"no split {split!r}; there are 'train' and 'test'")
        return [make_task(split, wanted[i % len(wanted)], i // len(wanted), suite) for i in range(count)]

    return replace(SUITE, name=suite, tasks=tasks, description=f"{len(wanted)} pages of MiniWoB: {', '.join(wanted)}.")


async def open_session() -> MiniWobEnvironment:
    return MiniWobEnvironment()


def _available() -> None:
    pages()
    require_chromium()


SUITE = Suite(
    name="miniwob",
    tasks=make_tasks,
    open=open_session,
    oracle=oracle,
    description="130 small pages that ask for clicks, words, dates, drags and drawings; from the wheel miniwob.",
    max_tokens=64,
    sessions=4,
    close=close_browser,
    available=_available,
)
