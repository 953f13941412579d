"""Coming back to restless pages, and telling pages apart that look alike: the trials of `same_page`."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any

from treewright.benchmarks.web_pages import COUNT, Site
from treewright.envs.errors import Divergence, TreewrightError
from treewright.envs.types import Action, Observation, Task
from treewright.envs.web.distance import distance
from treewright.envs.web.environment import FullWebEnvironment
from treewright.envs.web.sameness import SiteMemory
from treewright.search.restore import Pool, Snapshots, Waypoint

__all__ = ["Arrivals", "against_apted", "arrivals", "timed_distances"]

TASK = Task("same", "t", "look around")


@dataclass(slots=True)
class Arrivals:
    """nodes  how many were to be reached again;  found  how many were;  largest  distance of one that was
    pairs  of pages that look alike;  false  how many of them were taken for the same;  lost  what failed, in words"""

    nodes: int = 0
    found: int = 0
    pairs: int = 0
    false: int = 0
    largest: float = 0.0
    lost: list[str] = field(default_factory=list)


async def arrivals(same_page: str, pages: int = COUNT, seed: int = 0) -> Arrivals:
    """Three nodes of each page recorded in one session and come back to in another one; then the page becomes
    another one at the same address, and its first node is come back to once more."""
    site, found = await Site(seed).start(), Arrivals()
    memory = SiteMemory()
    settings: dict[str, Any] = {"same_page": same_page, "memory": memory, "part": 20_000, "deadline": 2.0}

    def opened() -> FullWebEnvironment:
        return FullWebEnvironment(site.url, **settings)

    first, second = opened(), opened()
    try:
        for number in range(pages):
            first.start = second.start = f"{site.url}{site.address(number)}"
            path, names = await _recorded(first)
            await _come_back(second, path, names, found, f"page {number} {site.kind(number)} {site.parts(number)}")
            turned = site.turn(number)
            found.pairs += 1
            if not isinstance(await _reached(second, path[:1]), str):
                found.false += 1
                found.lost.append(f"false: page {number} {site.kind(number)}, {turned}")
    finally:
        await first.close()
        await second.close()
        await site.stop()
    return found


async def _recorded(env: FullWebEnvironment) -> tuple[list[Waypoint], list[str]]:
    """The page, the details that its link leads to, and a look at an address; and what was shown."""
    seen = await env.reset(TASK, 0)
    path, shown = [Waypoint(1, 0, None, seen.fingerprint)], [seen]
    ref = next(e.ref for e in env._view.elements.values() if e.name == "Details")
    for seed, action in ((2, Action.of("click", ref=ref)), (3, Action.of("goto", path=env._view.path))):
        seen = (await env.step(action, 0)).observation
        path.append(Waypoint(seed, 0, action, seen.fingerprint))
        shown.append(seen)
    return path, [_heading(one) for one in shown]


def _heading(seen: Observation) -> str:
    return next((line for line in seen.text.splitlines() if line.startswith("heading")), "")


async def _come_back(
    env: FullWebEnvironment, path: list[Waypoint], names: list[str], found: Arrivals, what: str
) -> None:
    for depth in range(1, len(path) + 1):
        found.nodes += 1
        far = await _reached(env, path[:depth])
        if isinstance(far, str):
            found.lost.append(f"not reached: {what}, node {depth}: {far}")
        else:
            found.found += 1
            found.largest = max(found.largest, far)


async def _reached(env: FullWebEnvironment, path: list[Waypoint]) -> float | str:
    """The distance at which the last waypoint is arrived at, by reset and replay; why not, if it is not."""

    async def same() -> FullWebEnvironment:
        return env

    pool = Pool(same)
    async with pool.lease("t") as session:
        session.at = None
        try:
            await pool.reach(session, "t", TASK, path, Snapshots(0))
        except (Divergence, TreewrightError) as error:
            return f"{type(error).__name__}: {error}"
        return session.distance


def timed_distances(pairs: int, nodes: int = 2000, share: float = 0.05, seed: int = 0) -> list[float]:
    """Milliseconds of each comparison of two pages, one of which has up to 100 changes or is another page."""
    chance = random.Random(seed)
    taken = []
    for turn in range(pairs):
        page = _page(chance, nodes)
        other = _page(chance, nodes) if turn % 4 == 3 else _changed(chance, page, chance.choice((1, 5, 20, 60, 100)))
        began = time.perf_counter()
        distance(page, other, int(share * nodes))
        taken.append(1000 * (time.perf_counter() - began))
    return taken


def against_apted(pairs: int, nodes: int, seed: int = 1) -> tuple[float, float, float] | None:
    """Milliseconds of a comparison without bound by `distance` and by the library apted, and the share of pairs for
    which both give the same; None where that library is missing."""
    try:
        from apted import APTED  # type: ignore[import-not-found]
    except ImportError:
        return None
    chance = random.Random(seed)
    own, library, equal = 0.0, 0.0, 0
    for _ in range(pairs):
        page = _page(chance, nodes)
        other = _changed(chance, page, 5)
        began = time.perf_counter()
        found = distance(page, other)
        between = time.perf_counter()
        best = APTED(_linked(page), _linked(other)).compute_edit_distance()
        own, library = own + between - began, library + time.perf_counter() - between
        equal += found == best
    return 1000 * own / pairs, 1000 * library / pairs, equal / pairs


@dataclass(slots=True)
class _Linked:
    """A node as that library takes it."""

    name: str
    children: list[_Linked] = field(default_factory=list)


def _linked(rows: list[tuple[int, str]]) -> _Linked:
    root = _Linked("")
    trail = [(-1, root)]
    for depth, label in rows:
        while trail[-1][0] >= depth:
            trail.pop()
        node = _Linked(label)
        trail[-1][1].children.append(node)
        trail.append((depth, node))
    return root.children[0]


def _page(chance: random.Random, nodes: int) -> list[tuple[int, str]]:
    rows = [(0, "page")]
    while len(rows) < nodes:
        depth = max(1, min(9, rows[-1][0] + chance.choice((-2, -1, 0, 0, 0, 1))))
        rows.append((depth, f"{chance.choice(('text', 'link', 'listitem', 'button'))} {chance.randrange(600)}"))
    return rows


def _changed(chance: random.Random, page: list[tuple[int, str]], times: int) -> list[tuple[int, str]]:
    rows = list(page)
    for _ in range(times):
        at = chance.randrange(1, len(rows))
        way = chance.random()
        if way < 0.5:
            rows[at] = (rows[at][0], f"text {chance.randrange(10**6)}")
        elif way < 0.75:
            rows.insert(at, (rows[at][0], f"text {chance.randrange(10**6)}"))
        elif at + 1 == len(rows) or rows[at + 1][0] <= rows[at][0]:
            del rows[at]
    return rows
