"""What `treewright bench web` measures: MiniWoB, the way back, live against sandboxed, fingerprints."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from treewright.agent.policies.scripted import ScriptedPolicy, Situation
from treewright.agent.runs.episode import run_episode
from treewright.benchmarks.peer_browsergym import POINTS
from treewright.envs.errors import Divergence, EnvFault, InvalidAction, TreewrightError
from treewright.envs.types import Action, Environment, Observation, Suite, Task, ToolSpec, Turn
from treewright.search.engine import Settings
from treewright.search.restore import Pool
from treewright.search.rules import best_first
from treewright.search.store import TreeStore
from treewright.search.types import Budget, Context, Exchange

__all__ = [
    "Live", "MiniWob", "back_vs_replay", "compare_live", "fingerprints", "miniwob", "our_steps", "peer_steps",
]  # fmt: skip


# MiniWoB.


@dataclass(slots=True)
class MiniWob:
    """started and restored: pages; requests_out: asked for anything but a file; solved: pages by their expert."""

    started: int = 0
    restored: int = 0
    unreachable: list[str] = field(default_factory=list)
    requests_out: int = 0
    experts: int = 0
    solved: list[str] = field(default_factory=list)


async def miniwob(pages: Sequence[str], experts: Sequence[str]) -> MiniWob:
    """Starts every page, takes two steps, comes back by reset and replay in the same session, lets experts play."""
    from treewright.envs.web.miniwob import SUITE, make_task, open_session

    found, env = MiniWob(experts=len(experts)), await open_session()
    outside: list[str] = []
    try:
        for page in pages:
            task = make_task("test", page)
            try:
                first = await env.reset(task, 0)
            except EnvFault:
                continue
            if page == pages[0] and env._tab is not None:
                env._tab.context.on("request", lambda r: None if r.url.startswith(_HARMLESS) else outside.append(r.url))
            found.started += 1
            if await _comes_back(env, task, first):
                found.restored += 1
            else:
                found.unreachable.append(page)
        for page in experts:
            if await _solves(env, SUITE, make_task("test", page, 1)):
                found.solved.append(page)
        denied = len(env._tab.gate.denied) if env._tab is not None else 0
    finally:
        await env.close()
    found.requests_out = len(outside) + denied
    return found


_HARMLESS = ("file:", "data:", "about:", "blob:")


async def _comes_back(env: Environment, task: Task, first: Observation) -> bool:
    """Two steps, then reset and the same steps again: every fingerprint must be the same as before."""
    rng, taken, seen = random.Random(task.seed), [], [first.fingerprint]
    for _ in range(2):
        for action in _tries(await env.actions(), rng):
            with suppress(InvalidAction):
                result = await env.step(action, 0)
                taken.append(action)
                seen.append(result.observation.fingerprint)
                break
        if not taken or result.terminated:
            break
    again = [(await env.reset(task, 0)).fingerprint]
    for action in taken:
        again.append((await env.step(action, 0)).observation.fingerprint)
    return again == seen


def _tries(tools: Sequence[ToolSpec], rng: random.Random) -> list[Action]:
    """A few elements, else a point: what can be done on any page."""
    refs = [Action.of("click", ref=f"e{n}") for n in rng.sample(range(1, 7), 3)]
    x, y = POINTS[rng.randrange(len(POINTS))]
    return [*refs, Action.of("click_at", x=x, y=y)]


async def _solves(env: Environment, suite: Suite, task: Task) -> bool:
    assert suite.oracle is not None
    history = [Turn(None, await env.reset(task, 0))]
    for _ in range(task.horizon):
        action = suite.oracle(task, history, await env.actions())
        try:
            result = await env.step(action, 0)
        except InvalidAction:
            return False
        history.append(Turn(action, result.observation))
        if result.terminated:
            return result.reward >= 1.0
    return False


async def our_steps(pages: Sequence[str], seconds: float) -> dict[str, float]:
    """Clicks at the same points as the peer's: steps, seconds in `step`, resets, seconds in `reset`; one session."""
    from treewright.envs.web.miniwob import make_task, open_session

    found, env = {"steps": 0.0, "step_s": 0.0, "resets": 0.0, "reset_s": 0.0}, await open_session()
    began = time.monotonic()
    try:
        await env.reset(make_task("test", pages[0]), 0)  # the browser's own start is not timed
        for page in pages:
            if time.monotonic() - began > seconds:
                break
            start = time.monotonic()
            await env.reset(make_task("test", page), 0)
            found["reset_s"] += time.monotonic() - start
            found["resets"] += 1
            for x, y in POINTS:
                start = time.monotonic()
                result = await env.step(Action.of("click_at", x=x, y=y), 0)
                found["step_s"] += time.monotonic() - start
                found["steps"] += 1
                if result.terminated:
                    break
    finally:
        await env.close()
    return found


def peer_steps(python: Path, pages: Sequence[str], seconds: float) -> dict[str, dict[str, float]]:
    """The same by BrowserGym under an interpreter that has it. Raises TreewrightError with what it said."""
    from treewright.envs.web.browser import require_chromium
    from treewright.envs.web.miniwob import pages as folder

    script = Path(__file__).with_name("peer_browsergym.py")
    command = [str(python), str(script), str(require_chromium()), f"{folder().as_uri()}/", str(seconds), *pages]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=8 * seconds + 120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TreewrightError(f"the peer {python} did not answer: {error}") from error
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise TreewrightError(
            f"the peer {python} failed: {last[0]}; it needs: "
            "pip install browsergym-core==0.14.3 browsergym-miniwob==0.14.3"
        )
    found: dict[str, dict[str, float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


# The way back.


async def back_vs_replay(suite: Suite, tasks: Sequence[Task], rounds: int) -> dict[str, float]:
    """Seconds to get back to the last page before the answer: by snapshot, and by reset and full replay.

    Both are medians over all tasks and rounds; `depth` is the mean number of steps that a replay repeats.
    """
    assert suite.oracle is not None
    env, times = await suite.open(), {"restore": list[float](), "replay": list[float]()}
    depths = []
    try:
        for task in tasks:
            history = [Turn(None, await env.reset(task, 0))]
            while (move := suite.oracle(task, history, await env.actions())).name != "answer":
                history.append(Turn(move, (await env.step(move, 0)).observation))
            snapshot = await env.snapshot()
            actions = [turn.action for turn in history if turn.action is not None]
            depths.append(len(actions))
            for _ in range(rounds):
                await env.step(Action.of("goto", path="/orders"), 0)
                start = time.monotonic()
                await env.restore(snapshot)
                times["restore"].append(time.monotonic() - start)
                await env.step(Action.of("goto", path="/orders"), 0)
                start = time.monotonic()
                seen = await env.reset(task, 0)
                for action in actions:
                    seen = (await env.step(action, 0)).observation
                times["replay"].append(time.monotonic() - start)
                if seen.fingerprint != snapshot.fingerprint:
                    raise TreewrightError(f"{task.id}: the replay arrived somewhere else; nothing was measured")
    finally:
        await env.close()
    return {name: statistics.median(values) for name, values in times.items()} | {"depth": statistics.mean(depths)}


# Live against sandboxed.


class _Noisy(ScriptedPolicy):
    """The expert's action, or with some probability a click on any element; knows the first observation, too."""

    def __init__(self, suite: Suite, noise: float) -> None:
        super().__init__(self._act, name="noisy expert", trainable=False)
        self.suite, self.noise = suite, noise

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange], base: Sequence[int]
    ) -> Context:
        made = super().context(task, tools, first, turns, base)
        assert isinstance(made, Situation)
        return replace(made, turns=(Exchange("", None, first), *turns))

    def _act(self, task: Task, turns: Sequence[Exchange], tools: Sequence[ToolSpec], rng: random.Random) -> str:
        assert self.suite.oracle is not None
        if rng.random() < self.noise:
            usable = turns[-1].observation.text.count(" e")
            return f'click {{"ref": "e{rng.randint(1, max(1, usable))}"}}'
        return str(self.suite.oracle(task, [Turn(t.action, t.observation) for t in turns], tools))


@dataclass(slots=True)
class Live:
    """One way to search: success, requests that nothing takes back in the server's ledger, how many were approved.

    diverged  tasks that could not be ended, because the shop was no longer what the search had seen
    """

    success: float = 0.0
    irreversible: int = 0
    approved: int = 0
    tasks: int = 0
    diverged: int = 0
    seconds: float = 0.0

    @property
    def unapproved(self) -> int:
        return self.irreversible - self.approved


async def compare_live(tasks: Sequence[Task], expansions: int, noise: float) -> dict[str, Live]:
    """The same best-first search three times: in sandboxes; live by the rules; live as if all could be undone.

    The policy is scripted, and so the same in all three. Whoever approves says yes to every action that is asked
    about, and counts it: what the ledger holds beyond that was done without asking.
    """
    from treewright.envs.web.bazaar import SITE, SUITE, open_live, open_sandboxed

    async def careless() -> Environment:
        env = await open_live()
        env.sandboxed = True  # a lie: the shop is shared, and what is done in it stays
        return env

    opens: dict[str, Callable[[], Awaitable[Environment]]] = {
        "sandboxed": open_sandboxed,
        "safe": open_live,
        "careless": careless,
    }
    found = {}
    for name, opened in opens.items():
        SITE.forget_shared()
        SITE.ledger.clear()
        found[name] = await _played(SUITE, tasks, opened, expansions, noise)
        final = [e for e in SITE.ledger if e.shop.startswith("live:") and e.action not in ("add", "remove")]
        found[name].irreversible = len(final)
    return found


async def _played(
    suite: Suite, tasks: Sequence[Task], opened: Callable[[], Awaitable[Environment]], expansions: int, noise: float
) -> Live:
    live, asked, rewards = Live(tasks=len(tasks)), list[str](), []
    began = time.monotonic()

    def approve(task: Task, action: Action) -> bool:
        asked.append(action.key)
        return True

    with tempfile.TemporaryDirectory() as folder, TreeStore.open(Path(folder) / "live.sqlite") as store:
        pool = Pool(opened)
        try:
            for task in tasks:
                try:
                    episode = await run_episode(
                        task, pool, _Noisy(suite, noise), store=store, journal=store.journal, approve=approve,
                        rule=best_first(2, 2), budget=Budget(expansions=expansions),
                        settings=Settings(max_tokens=100, answers=1), commits=6,
                    )  # fmt: skip
                    rewards.append(episode.reward)
                except Divergence:  # the shared shop is no longer what the search had seen: it cannot go on
                    rewards.append(0.0)
                    live.diverged += 1
        finally:
            await pool.close()
    live.success = statistics.mean(float(reward >= 1.0) for reward in rewards)
    live.approved, live.seconds = len(asked), time.monotonic() - began
    return live


# Fingerprints.


async def fingerprints(pages: int, visits: int) -> dict[str, float]:
    """How well fingerprints tell a page that changed by itself from one that was changed.

    same   share of pairs of visits to one page (advertisements, clocks, ages, a ticker differ) that count as equal
    other  share of pairs of pages with one real difference (price, stock, cart, order of a list, a tick) that differ
    strict the first share with every character compared
    """
    from treewright.envs.web.guard import AllowList
    from treewright.envs.web.tab import Tab
    from treewright.envs.web.view import TIMES, PageView

    tab = await Tab.open(AllowList.of([]), {}, (800, 600))

    async def seen(page: int, visit: int, change: str = "") -> PageView:
        await tab.page.set_content(_restless_page(page, visit, change))
        return await tab.look()

    same, strict, other = [], [], []
    try:
        for page in range(pages):
            views = [await seen(page, visit) for visit in range(visits)]
            same += [view.fingerprint(calm=TIMES) == views[0].fingerprint(calm=TIMES) for view in views[1:]]
            strict += [view.fingerprint() == views[0].fingerprint() for view in views[1:]]
            for change in ("price", "stock", "cart", "order", "tick", "heading"):
                changed = await seen(page, visits, change)
                other.append(changed.fingerprint(calm=TIMES) != views[0].fingerprint(calm=TIMES))
    finally:
        await tab.close()
    return {
        name: statistics.mean(map(float, pairs))
        for name, pairs in (("same", same), ("other", other), ("strict", strict))
    }


def _restless_page(page: int, visit: int, change: str) -> str:
    """A shop's page as it comes at one visit."""
    fixed, rng = random.Random(page), random.Random(f"{page} {visit}")
    items = [(f"thing {fixed.randint(1, 99)}", fixed.randint(1, 500)) for _ in range(6)]
    if change == "price":
        items[2] = (items[2][0], items[2][1] + 1)
    if change == "order":
        items.reverse()
    links = "".join(
        f'<a href="/ad/{n}">{rng.choice(["Buy", "Try", "Win"])} {rng.randint(1, 999)}</a>' for n in range(visit % 3 + 1)
    )
    rows = "".join(f'<li><a href="/p/{n}">{name}</a> {price} coins</li>' for n, (name, price) in enumerate(items))
    return (
        f"<title>shop</title><h1>{'sale' if change == 'heading' else 'shop'} {page}</h1>"
        f'<aside aria-label="Advertisement">{links}<p>offer {rng.randint(1, 10**6)}</p></aside>'
        f"<p>it is {rng.randint(10, 23)}:{rng.randint(10, 59)}:{rng.randint(10, 59)}</p><ul>{rows}</ul>"
        f'<div role="timer">{rng.randint(0, 600)} s left</div><p>reviewed {rng.randint(2, 59)} minutes ago</p>'
        f'<section aria-label="Sponsored"><button>see {rng.randint(1, 99)}</button></section>'
        f"<p>{3 + (change == 'stock')} in stock</p><a href='/cart'>cart {int(change == 'cart')}</a>"
        f"<input type=checkbox aria-label=gift {'checked' if change == 'tick' else ''}>"
    )
