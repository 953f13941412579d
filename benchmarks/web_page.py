"""The table of docs/web.md from docs/web.json: python -m treewright.benchmarks.web_page docs/web.json docs/web.md"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from treewright.envs.errors import TreewrightError
from treewright.envs.whole import write_whole

__all__ = ["ROWS", "busy", "put_table", "table"]

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
# What is measured; figures and texts in braces, rows whose figures are not there are left out; the goal.
# ruff: noqa: E501
ROWS: Final[tuple[tuple[str, str, str], ...]] = (
    ("steps per second, beside Playwright MCP with its wait of 0.5 s left out", "{vs_playwright_mcp_steps_without_its_wait:.2f} times ({steps_per_s:.1f} against {playwright_mcp_steps_per_s_without_its_wait:.1f})", ""),
    ("… beside BrowserGym with its wait of 0.5 s left out", "{vs_browsergym_steps_without_its_wait:.1f} times ({browsergym_steps_per_s_without_its_wait:.2f})", ""),
    ("… beside Playwright MCP and BrowserGym as they come", "{vs_playwright_mcp_steps:.1f} and {vs_browsergym_steps:.0f} times", ""),
    ("`web_steps_vs_before`: steps per second on MiniWoB beside the build before 0.2.0, turns A B A B", "{web_steps_vs_before:.2f} times ({web_steps_vs_before_low:.2f} … {web_steps_vs_before_high:.2f})", "≥ 1.6"),
    ("`market_cpu_vs_before`: processor time of a step of `market`, the browser's included", "{market_cpu_vs_before:.2f} of it ({market_cpu_vs_before_low:.2f} … {market_cpu_vs_before_high:.2f})", "≤ .5"),
    ("… of which Playwright's driver, Python, Chromium's pages, its browser process, its network process", "{market_cpu_ms_driver:.1f}, {market_cpu_ms_python:.1f}, {market_cpu_ms_renderer:.1f}, {market_cpu_ms_browser:.1f}, {market_cpu_ms_network:.1f} of {market_cpu_ms_sum:.1f} ms", ""),
    ("`web_sessions_8_vs_1`: eight sessions of `market` beside one, on two cores", "{web_sessions_8_vs_1:.2f} times", "≥ 1.8"),
    ("`same_page_found`: nodes of 40 restless pages reached again under `distance:0.05`", "{same_page_found:.3f}", "≥ .95"),
    ("`same_page_false`: of 40 pairs that look alike, taken for the same", "{same_page_false:.0f}", "0"),
    ("`page_distance_ms_p95`: two pages of 2,000 nodes", "{page_distance_ms_p95:.1f} ms", "≤ 30"),
    ("`explore_states_vs_random`: states of `bazaar` in 500 steps, beside a random walk", "{explore_states_vs_random:.2f} times ({explore_states:.0f} states)", "≥ 2"),
    ("… kinds of pages seen, tasks made of them", "{explore_kinds_share:.2f} of all, {explore_tasks:.0f}", "≥ .9, ≥ 100"),
    ("`explore_replay_share`: states, and so tasks, that a new session gets to by replay", "{explore_replay_share:.3f}", "≥ .95"),
    ("`market_gain_points`, `market_gain_low`: the demo's gain on `market` by trees alone, held-out tasks", "{market_gain_points:+.1f}, at least {market_gain_low:+.1f}", "≥ 20, > 5"),
    ("… by {market_taught_demos:.0f} episodes of the expert, imitated (`train sft --suites market`)", "{market_taught_before:.0f} → {market_taught_after:.0f} % of {market_taught_tasks:.0f} tasks: {market_taught_gain_points:+.0f} ({market_taught_gain_low:+.0f} … {market_taught_gain_high:+.0f})", ""),
    ("`miniwob_learned_after`: 20 pages of MiniWoB (`miniwob:simple`), learned by {miniwob_learned_trees:.0f} trees alone, held-out seeds", "{miniwob_learned_before:.0f} → {miniwob_learned_after:.0f} % of {miniwob_learned_tasks:.0f} tasks: {miniwob_learned_gain_points:+.0f} ({miniwob_learned_gain_low:+.0f} … {miniwob_learned_gain_high:+.0f})", "< 30 → ≥ 60"),
    ("MiniWoB pages started, restored after two steps and verified; requests that left the machine", "{miniwob_started:.0f}, {miniwob_restored:.0f} of {miniwob_pages:.0f}; {miniwob_requests_out:.0f}", "130; 0"),
    ("experts that solved their page", "{miniwob_oracle_solved:.0f} of {miniwob_oracles:.0f}", ""),
    ("getting back to a node of `market`, share of reset and replay", "{back_vs_replay:.2f}", ""),
    ("success on 72 tasks of the bazaar, sandboxed / live by the rules / live without", "{market_forked_success:.2f} / {market_safe_success:.2f} / {market_unsafe_success:.2f}", ""),
    ("final requests that nobody approved, by the rules / without", "{market_unapproved_irreversible:.0f} / {market_unsafe_irreversible:.0f}", "0"),
    ("visits of one page whose fingerprints are equal / changes told apart", "{fingerprint_same:.2f} / {fingerprint_other:.2f}", ""),
)  # fmt: skip


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows as Markdown."""
    values = {name: one["value"] for name, one in figures.items()}
    lines = ["| figure | | goal |", "|---|---|---|"]
    for what, shown, goal in ROWS:
        try:
            lines.append(f"| {what.format(**values)} | {shown.format(**values)} | {goal} |")
        except KeyError:
            continue
    return "\n".join(lines)


def busy(result: Mapping[str, Any]) -> str:
    """Which parts were not taken on an idle machine, or not known to be, as a paragraph; '' where all were."""
    cores, parts = result.get("hardware", {}).get("cores") or 1, result.get("parts", {})
    loads = [f"{name} ({part['load']})" for name, part in parts.items() if part.get("load", 0) > 0.5 * cores]
    unknown = [name for name, part in parts.items() if "load" not in part]
    told = f"Other work shared the {cores} cores while these parts were taken (load average at their begin): "
    told = f"{told}{', '.join(loads)}. " if loads else ""
    told += f"The load was not recorded for: {', '.join(unknown)}." if unknown else ""
    return f"\n\n{told.strip()}" if told else ""


def put_table(result: Path, page: Path) -> None:
    """Puts the table where the page has its marks. Raises TreewrightError for a page without them."""
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise TreewrightError(f"{page} has no place for the table: put {BEGIN} and {END} into it")
    found = json.loads(result.read_text())
    write_whole(page, f"{before}{BEGIN}\n{table(found['figures'])}{busy(found)}\n{END}{after}")


if __name__ == "__main__":
    put_table(Path(sys.argv[1]), Path(sys.argv[2]))
