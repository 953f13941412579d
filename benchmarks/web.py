"""`treewright bench web`: MiniWoB's pages, steps per second, the way back, live against sandboxed, fingerprints."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from treewright.benchmarks.web_pages import COUNT
from treewright.benchmarks.web_same import against_apted, arrivals, timed_distances
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
from treewright.search.restore import Pool

__all__ = ["PEER_VARIABLE", "main"]

PEER_VARIABLE = "TREEWRIGHT_PEER_PYTHON"
Figures = dict[str, dict[str, Any]]


def main(
    quick: bool = False,
    json_path: str | None = None,
    plot_path: str | None = None,
    peer_python: Path | str | None = None,
) -> dict[str, Any]:
    """Prints tables and returns {"figures": {name: {"value", "unit"}}, "quick", …}. There is no plot.

    quick        a sample of pages and tasks, within a minute
    peer_python  an interpreter that has browsergym-core and browsergym-miniwob; None: $TREEWRIGHT_PEER_PYTHON, and
                 without that BrowserGym is not measured
    """
    console, peer = Console(emoji=False), peer_python or os.environ.get(PEER_VARIABLE)
    result = asyncio.run(_measured(console, quick, Path(peer) if peer else None))
    if json_path:
        Path(json_path).write_text(json.dumps(result, indent=1) + "\n")
    return result


async def _measured(console: Console, quick: bool, peer: Path | None) -> dict[str, Any]:
    from treewright.envs.web import market
    from treewright.envs.web.bazaar import SUITE as BAZAAR
    from treewright.envs.web.miniwob import names
    from treewright.envs.web.miniwob_oracles import KNOWN

    figures: Figures = {}
    more: dict[str, Any] = {"quick": quick}
    try:
        pages = names()[:: 10 if quick else 1]
        played = await miniwob(pages, KNOWN[:: 8 if quick else 1])
        _miniwob_figures(console, figures, played, len(pages))
        more["miniwob"] = {"unreachable": played.unreachable, "solved": played.solved}
        timed = names()[:: 10 if quick else 3]
        await _speed(console, figures, timed, 4.0 if quick else 30.0, peer)
        chosen = [
            t for t in market.SUITE.tasks("test", 8 if quick else 32) if t.truth["kind"] in ("buy", "cart", "cancel")
        ]
        back = await back_vs_replay(market.SUITE, chosen, 2 if quick else 5)
        _put(figures, "back_vs_replay", back["restore"] / back["replay"], "1")
        _put(figures, "back_s", back["restore"], "s")
        _put(figures, "replay_s", back["replay"], "s")
        console.print(
            f"back to a node {back['restore']:.3f} s, by reset and {back['depth']:.1f} steps {back['replay']:.3f} s "
            f"({back['restore'] / back['replay']:.2f})"
        )
        lived = await compare_live(BAZAAR.tasks("test", 6 if quick else 72), 12 if quick else 16, 0.1)
        _live_figures(console, figures, lived)
        prints = await fingerprints(3 if quick else 20, 4 if quick else 8)
        for name, value in prints.items():
            _put(figures, f"fingerprint_{name}", value, "share of pairs")
        console.print(
            f"fingerprints: {prints['same']:.3f} of visits equal (every character: {prints['strict']:.3f}), "
            f"{prints['other']:.3f} of real changes told apart"
        )
        await _same_page(console, figures, more, 4 if quick else COUNT)
        _distances(console, figures, 20 if quick else 200)
        await _exploration(console, figures, 40 if quick else 500)
    finally:
        await market.SITE.stop()
        if BAZAAR.close is not None:
            await BAZAAR.close()
    if quick:
        console.print("quick: a sample of pages and tasks; use the full run for anything that is quoted")
    return {"figures": figures, **more}


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
    from treewright.envs.web.bazaar import SUITE as BAZAAR

    pool = Pool(BAZAAR.open, 2)
    try:
        (task,) = BAZAAR.tasks("test", 1)
        seen = await explore(task, pool, steps, explorers=2)
        walked = await wander(task, pool, steps)
    finally:
        await pool.close()
    _put(figures, "explore_states", len(seen.states), "states")
    _put(figures, "explore_replay_share", len(seen.verified) / len(seen.states), "share of states")
    _put(figures, "explore_states_vs_random", len(seen.states) / walked, "1")
    _put(figures, "explore_tasks", len(seen.tasks), "tasks")
    console.print(
        f"exploring the bazaar for {steps} steps: {len(seen.states)} states ({walked} by a random walk), "
        f"{len(seen.verified)} reached again by replay, {len(seen.tasks)} tasks"
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
    console.print(table)
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
