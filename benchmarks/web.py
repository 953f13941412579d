"""`treewright bench web`: MiniWoB, the browser's cost beside peers and the build before, the way back, live worlds,
the same page, exploration. Parts can be measured one at a time."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.agent.runs.figures import commit, hardware, versions, write_result
from treewright.benchmarks.engine import click, speedup
from treewright.benchmarks.peer_playwright_mcp import mcp_steps
from treewright.benchmarks.web_before import demo_gain, paired_costs
from treewright.benchmarks.web_learned import learned
from treewright.benchmarks.web_pages import COUNT
from treewright.benchmarks.web_same import against_apted, arrivals, timed_distances
from treewright.benchmarks.web_taught import taught
from treewright.benchmarks.web_trials import (
    Live,
    MiniWob,
    back_vs_replay,
    compare_live,
    fingerprints,
    miniwob,
    our_steps,
    peer_steps,
)
from treewright.benchmarks.web_where import where
from treewright.envs.errors import TreewrightError
from treewright.search.restore import Pool

__all__ = ["PARTS", "PEER_VARIABLE", "main"]

PEER_VARIABLE, MCP_VARIABLE = "TREEWRIGHT_PEER_PYTHON", "TREEWRIGHT_PEER_MCP"
Figures = dict[str, dict[str, Any]]


def main(
    quick: bool = False,
    json_path: str | None = None,
    plot_path: str | None = None,
    peer_python: Path | str | None = None,
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """Prints tables and returns {"figures": {name: {"value", "unit"}}, "quick", …}. There is no plot.

    quick        a sample of pages and tasks, within a minute or two
    only         parts with one of these in their names; their figures are put beside those that the JSON holds
    peer_python  an interpreter that has browsergym-core and browsergym-miniwob; None: $TREEWRIGHT_PEER_PYTHON, and
                 without that BrowserGym is not measured
    $TREEWRIGHT_PEER_MCP is the folder where npm put @playwright/mcp; without it that is not measured
    """
    console, peer = Console(emoji=False), peer_python or os.environ.get(PEER_VARIABLE)
    chosen = [name for name in PARTS if not only or any(part in name for part in only)]
    if not chosen:
        raise TreewrightError(f"bench web has no part called {only[0]!r}; there are {', '.join(PARTS)}")
    if quick and not only:
        chosen = [name for name in chosen if name not in HEAVY]
    asked = Asked(console, quick, Path(peer) if peer else None)
    for name in chosen:
        began, before, load = time.monotonic(), dict(asked.figures), round(os.getloadavg()[0], 1)
        asyncio.run(_part(PARTS[name], asked))
        told = {"commit": commit(), "quick": quick, "load": load, "seconds": round(time.monotonic() - began)}
        asked.more["parts"][name] = told
        if json_path:  # at once: what was measured is there whatever comes next
            keep(Path(json_path), {k: v for k, v in asked.figures.items() if k not in before}, asked.more)
    if quick:
        console.print("quick: a sample of pages and tasks; use the full run for anything that is quoted")
    return {"figures": asked.figures, "quick": quick, **asked.more}


@dataclass(slots=True)
class Asked:
    """What a part is given, and where it puts what it found."""

    console: Console
    quick: bool
    peer: Path | None
    figures: Figures = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=lambda: {"parts": {}})

    def put(self, name: str, value: float, unit: str) -> None:
        _put(self.figures, name, value, unit)


async def _part(part: Callable[[Asked], Awaitable[None]], asked: Asked) -> None:
    from treewright.envs.web import market
    from treewright.envs.web.bazaar import SUITE as BAZAAR

    try:
        await part(asked)
    finally:
        await market.SITE.stop()
        if BAZAAR.close is not None:
            await BAZAAR.close()


def keep(path: Path, figures: Figures, more: Mapping[str, Any]) -> None:
    """Puts what parts found into a result, beside what is there of others."""
    before: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    parts = {**before.get("parts", {}), **more["parts"]}
    found = {**before, **more, "figures": {**before.get("figures", {}), **figures}, "parts": parts}
    found["quick"] = all(part["quick"] for part in parts.values())
    found.pop("commit", None)  # which is given anew
    write_result(path, {**found, "hardware": hardware(), "versions": versions()})


# -- parts -----------------------------------------------------------------------------------------------------------


async def _miniwob(asked: Asked) -> None:
    from treewright.envs.web.miniwob import names
    from treewright.envs.web.miniwob_oracles import KNOWN

    pages = names()[:: 10 if asked.quick else 1]
    played = await miniwob(pages, KNOWN[:: 8 if asked.quick else 1])
    _miniwob_figures(asked.console, asked.figures, played, len(pages))
    asked.more["miniwob"] = {"unreachable": played.unreachable, "solved": played.solved}


async def _steps(asked: Asked) -> None:
    from treewright.envs.web.miniwob import names

    timed = names()[:: 10 if asked.quick else 3]
    await _speed(asked.console, asked.figures, timed, 4.0 if asked.quick else 20.0, asked.peer)


async def _back(asked: Asked) -> None:
    from treewright.envs.web import market

    tasks = market.SUITE.tasks("test", 8 if asked.quick else 32)
    chosen = [task for task in tasks if task.truth["kind"] in ("buy", "cart", "cancel")]
    back = await back_vs_replay(market.SUITE, chosen, 2 if asked.quick else 5)
    asked.put("back_vs_replay", back["restore"] / back["replay"], "1")
    asked.put("back_s", back["restore"], "s")
    asked.put("replay_s", back["replay"], "s")
    asked.console.print(
        f"back to a node {back['restore']:.3f} s, by reset and {back['depth']:.1f} steps {back['replay']:.3f} s "
        f"({back['restore'] / back['replay']:.2f})"
    )


async def _live(asked: Asked) -> None:
    from treewright.envs.web.bazaar import SUITE as BAZAAR

    lived = await compare_live(BAZAAR.tasks("test", 6 if asked.quick else 72), 12 if asked.quick else 16, 0.1)
    _live_figures(asked.console, asked.figures, lived)


async def _fingerprints(asked: Asked) -> None:
    prints = await fingerprints(3 if asked.quick else 20, 4 if asked.quick else 8)
    for name, value in prints.items():
        asked.put(f"fingerprint_{name}", value, "share of pairs")
    asked.console.print(
        f"fingerprints: {prints['same']:.3f} of visits equal (every character: {prints['strict']:.3f}), "
        f"{prints['other']:.3f} of real changes told apart"
    )


async def _arrivals(asked: Asked) -> None:
    await _same_page(asked.console, asked.figures, asked.more, 4 if asked.quick else COUNT)


async def _distance(asked: Asked) -> None:
    _distances(asked.console, asked.figures, 20 if asked.quick else 200)


async def _explored(asked: Asked) -> None:
    await _exploration(asked.console, asked.figures, 40 if asked.quick else 500)


async def _before(asked: Asked) -> None:
    """Clicks on MiniWoB's pages, wall clock, beside the build before 0.2.0."""
    found = await _beside(asked, "miniwob", 4 if asked.quick else 44)
    ratios = 1 / found["ratio"], 1 / found["high"], 1 / found["low"]  # steps per second: seconds per step upside down
    _told_beside(asked, "web_steps_vs_before", found, ratios)


async def _cpu(asked: Asked) -> None:
    """The expert on `market`, processor time of a step, the browser's included, beside the build before 0.2.0."""
    found = await _beside(asked, "market", 4 if asked.quick else 24)
    _told_beside(asked, "market_cpu_vs_before", found, (found["ratio"], found["low"], found["high"]))


async def _where(asked: Asked) -> None:
    """Where the processor time of a step of `market` goes."""
    found = await where(4 if asked.quick else 24)
    for name, value in found.items():
        asked.put(f"market_cpu_ms_{name}", value, "ms/step")
    asked.console.print("a step of market: " + ", ".join(f"{name} {value:.1f} ms" for name, value in found.items()))


async def _beside(asked: Asked, work: str, size: int) -> dict[str, Any]:
    return await asyncio.to_thread(paired_costs, work, size, 2 if asked.quick else 5)


def _told_beside(asked: Asked, name: str, found: dict[str, Any], ratios: tuple[float, float, float]) -> None:
    for suffix, one in zip(("", "_low", "_high"), ratios, strict=True):
        asked.put(f"{name}{suffix}", one, "x")
    asked.more[name] = found
    value, low, high = ratios
    asked.console.print(f"{name}: {value:.2f} ({low:.2f} … {high:.2f}) beside {found['old']}, turns A B A B")


async def _sessions(asked: Asked) -> None:
    """The same trees of `market` by eight sessions and by one, the policy random clicks."""
    from treewright.envs.web.market import SUITE

    some, turns = ((8, 1), 1) if asked.quick else ((32, 3), 3)
    clicks = ScriptedPolicy(click, trainable=False)
    found = sorted([await speedup(SUITE, clicks, 8, *some) for _ in range(turns)])
    asked.put("web_sessions_8_vs_1", found[len(found) // 2], "x")
    asked.more["web_sessions_8_vs_1"] = found
    asked.console.print(f"eight sessions on market: {found[len(found) // 2]:.2f} times one (turns: {found})")


async def _demo(asked: Asked) -> None:
    """What the demo published; it is measured by `treewright demo`."""
    for name, (value, unit) in demo_gain().items():
        asked.put(name, value, unit)
    asked.console.print(
        f"market in the demo: {asked.figures['market_gain_points']['value']:+.1f} points, at least "
        f"{asked.figures['market_gain_low']['value']:+.1f}"
    )


async def _taught(asked: Asked) -> None:
    """The packaged model on `market` before and after it imitates the expert."""
    for name, (value, unit) in (await taught(8, 1, 4) if asked.quick else await taught(300, 6, 100)).items():
        asked.put(name, value, unit)
    shown = {name: one["value"] for name, one in asked.figures.items() if name.startswith("market_taught")}
    asked.console.print(
        f"market, {shown['market_taught_demos']:.0f} episodes of the expert imitated: "
        f"{shown['market_taught_before']:.0f} % → {shown['market_taught_after']:.0f} % of "
        f"{shown['market_taught_tasks']:.0f} held-out tasks, {shown['market_taught_gain_points']:+.0f} points, "
        f"at least {shown['market_taught_gain_low']:+.0f}"
    )


async def _learned(asked: Asked) -> None:
    """Twenty pages of MiniWoB, learned by trees alone."""
    rounds, each, held_out = (2, 20, 20) if asked.quick else (15, 40, 100)
    for name, (value, unit) in (await learned(asked.console, rounds, each, held_out)).items():
        asked.put(name, value, unit)


PARTS: Final[Mapping[str, Callable[[Asked], Awaitable[None]]]] = {
    "miniwob": _miniwob, "steps": _steps, "back": _back, "live": _live, "fingerprints": _fingerprints,
    "arrivals": _arrivals, "distance": _distance, "explored": _explored, "before": _before, "cpu": _cpu,
    "where": _where, "sessions": _sessions, "demo": _demo, "taught": _taught, "learned": _learned,
}  # fmt: skip
HEAVY = ("before", "cpu", "where", "sessions", "explored", "taught", "learned")  # a quick run leaves them out unnamed


async def _same_page(console: Console, figures: Figures, more: dict[str, Any], pages: int) -> None:
    """Restless pages that are come back to, and pairs that look alike."""
    found = await arrivals("distance:0.05", pages)
    strict = await arrivals("exact", min(pages, 10))
    _put(figures, "same_page_found", found.found / found.nodes, "share of nodes")
    _put(figures, "same_page_found_exact", strict.found / strict.nodes, "share of nodes")
    _put(figures, "same_page_false", found.false, "pairs")
    _put(figures, "same_page_pairs", found.pairs, "pairs")
    _put(figures, "same_page_largest", found.largest, "share of nodes that differ")
    more["same_page_lost"] = found.lost
    console.print(
        f"the same page: {found.found} of {found.nodes} nodes of {pages} restless pages reached again (exact: "
        f"{strict.found} of {strict.nodes}), {found.false} of {found.pairs} pairs that look alike taken for the same"
    )


async def _exploration(console: Console, figures: Figures, steps: int) -> None:
    """The bazaar without tasks, beside a random walk of as many steps."""
    from treewright.agent.runs.explore import explore, wander
    from treewright.envs.web.bazaar import SITE
    from treewright.envs.web.bazaar import SUITE as BAZAAR
    from treewright.envs.web.bazaar_site import bazaar_routes

    pool = Pool(BAZAAR.open, 2)
    try:
        (task,) = BAZAAR.tasks("test", 1)
        seen = await explore(task, pool, steps, explorers=2)
        walked = await wander(task, pool, steps)
    finally:
        await pool.close()
    pages = [route for route in bazaar_routes(SITE) if "GET" in (route.methods or ())]
    paths = [urlsplit(address).path for address in seen.addresses]
    kinds = {route.path for route in pages for path in paths if route.path_regex.match(path)}
    _put(figures, "explore_kinds_share", len(kinds) / len(pages), "share of page kinds")
    _put(figures, "explore_states", len(seen.states), "states")
    _put(figures, "explore_replay_share", len(seen.verified) / len(seen.states), "share of states")
    _put(figures, "explore_states_vs_random", len(seen.states) / walked, "1")
    _put(figures, "explore_tasks", len(seen.tasks), "tasks")
    console.print(
        f"exploring the bazaar for {steps} steps: {len(seen.states)} states ({walked} by a random walk), "
        f"{len(kinds)} of {len(pages)} kinds of pages, {len(seen.verified)} states reached again by replay, "
        f"{len(seen.tasks)} tasks"
    )


def _distances(console: Console, figures: Figures, pairs: int) -> None:
    taken = sorted(timed_distances(pairs))
    _put(figures, "page_distance_ms_p95", taken[int(0.95 * (len(taken) - 1))], "ms")
    _put(figures, "page_distance_ms_median", taken[len(taken) // 2], "ms")
    console.print(
        f"distance of two pages of 2,000 nodes: {figures['page_distance_ms_median']['value']:.1f} ms, "
        f"{figures['page_distance_ms_p95']['value']:.1f} ms at p95"
    )
    compared = against_apted(3, 200)
    if compared is None:
        console.print("not compared with APTED; type: pip install apted==1.0.3")
        return
    own, library, equal = compared
    _put(figures, "page_distance_200_ms", own, "ms")
    _put(figures, "page_distance_apted_200_ms", library, "ms")
    _put(figures, "page_distance_equals_apted", equal, "share of pairs")
    console.print(f"of 200 nodes: {own:.2f} ms, APTED {library:.0f} ms; {equal:.2f} of distances equal")


def _put(figures: Figures, name: str, value: float, unit: str) -> None:
    figures[name] = {"value": value, "unit": unit}


def _miniwob_figures(console: Console, figures: Figures, found: MiniWob, pages: int) -> None:
    _put(figures, "miniwob_pages", pages, "pages")
    _put(figures, "miniwob_started", found.started, "pages")
    _put(figures, "miniwob_restored", found.restored, "pages")
    _put(figures, "miniwob_requests_out", found.requests_out, "requests")
    _put(figures, "miniwob_oracles", found.experts, "pages")
    _put(figures, "miniwob_oracle_solved", len(found.solved), "pages")
    console.print(
        f"MiniWoB: {found.started} of {pages} pages started, {found.requests_out} requests out, "
        f"{found.restored} restored after two steps and verified, "
        f"{len(found.solved)} of {found.experts} experts solved their page"
    )
    if found.unreachable:
        console.print(f"not restored: {', '.join(found.unreachable)}")


async def _speed(console: Console, figures: Figures, pages: tuple[str, ...], seconds: float, peer: Path | None) -> None:
    ours = await our_steps(pages, seconds)
    rate = ours["steps"] / ours["step_s"]
    _put(figures, "steps_per_s", rate, "1/s")
    _put(figures, "resets_per_s", ours["resets"] / ours["reset_s"], "1/s")
    table = Table("", "steps/s", "resets/s", "steps", title="clicks on MiniWoB's pages, one session")
    table.add_row("treewright", f"{rate:.1f}", f"{ours['resets'] / ours['reset_s']:.1f}", f"{ours['steps']:.0f}")
    if peer is not None:
        for name, found in (await asyncio.to_thread(peer_steps, peer, pages, seconds)).items():
            theirs = found["steps"] / found["step_s"]
            suffix = "" if name == "default" else "_without_its_wait"
            _put(figures, f"browsergym_steps_per_s{suffix}", theirs, "1/s")
            _put(figures, f"vs_browsergym_steps{suffix}", rate / theirs, "1")
            shown = "BrowserGym" if name == "default" else "BrowserGym, its wait of 0.5 s left out"
            table.add_row(shown, f"{theirs:.2f}", f"{found['resets'] / found['reset_s']:.2f}", f"{found['steps']:.0f}")
    if folder := os.environ.get(MCP_VARIABLE):
        for suffix, found in (await mcp_steps(Path(folder), pages, seconds)).items():
            theirs = found["steps"] / found["step_s"]
            _put(figures, f"playwright_mcp_steps_per_s{suffix}", theirs, "1/s")
            _put(figures, f"vs_playwright_mcp_steps{suffix}", rate / theirs, "1")
            shown = f"Playwright MCP{', its wait of 0.5 s left out' if suffix else ''}"
            table.add_row(shown, f"{theirs:.2f}", f"{found['resets'] / found['reset_s']:.2f}", f"{found['steps']:.0f}")
    console.print(table)
    if not folder:
        console.print(f"Playwright MCP was not measured: set {MCP_VARIABLE} (make bench-web does)")
    if peer is None:
        console.print(f"BrowserGym was not measured: give --peer-python PATH or set {PEER_VARIABLE}")


def _live_figures(console: Console, figures: Figures, found: dict[str, Live]) -> None:
    table = Table(
        "search", "success", "irreversible", "unapproved", "diverged", "s", title=f"bazaar, {found['safe'].tasks} tasks"
    )
    names = {"sandboxed": "sandboxed", "safe": "live, by the rules", "careless": "live, without them"}
    for name, shown in names.items():
        live = found[name]
        table.add_row(
            shown,
            f"{live.success:.3f}",
            str(live.irreversible),
            str(live.unapproved),
            str(live.diverged),
            f"{live.seconds:.0f}",
        )
    console.print(table)
    sandboxed, safe, careless = (found[name] for name in names)
    ratio = safe.success / sandboxed.success if sandboxed.success else float("nan")
    _put(figures, "market_safe_vs_forked_success", ratio, "1")
    _put(figures, "market_forked_success", sandboxed.success, "share of tasks")
    _put(figures, "market_safe_success", safe.success, "share of tasks")
    _put(figures, "market_unsafe_success", careless.success, "share of tasks")
    _put(figures, "market_unapproved_irreversible", safe.unapproved, "requests")
    _put(figures, "market_approved_irreversible", safe.approved, "requests")
    _put(figures, "market_unsafe_irreversible", careless.unapproved, "requests")
