"""`treewright bench meter`: what it costs to count what a run costs, as a share of the run's processor time.

The meter does two things: its clocks are entered around every draw, step and judgement while trees grow, and finished
trees are counted. The first is the number of entries times what one takes, the second is measured as it is. Both are
of the processor, so that a busy machine does not show in them.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console

from treewright.agent.config import load_config
from treewright.agent.policies.opening import open_policy
from treewright.agent.runs.collect import collect, open_worlds, suites_of
from treewright.agent.runs.figures import write_result
from treewright.agent.runs.setup import budget_of, evaluator_of, rule_of, settings_of, tasks_for
from treewright.search.meter import Busy, measured, metering, work_of
from treewright.search.tree import Tree

__all__ = ["main", "one_entry"]


def one_entry(times: int = 200_000) -> float:
    """Processor seconds that entering and leaving a clock takes."""
    clock, began = Busy(), time.process_time()
    for _ in range(times):
        with clock:
            pass
    return (time.process_time() - began) / times


async def _grown(tasks: int) -> tuple[list[Tree], float, float]:
    """Trees of kg by the packaged model, processor seconds of growing them, and of counting them."""
    config = load_config(None, ['worlds.suites=["kg"]', "search.expansions=4"])
    policy = open_policy("seedling")
    try:
        async with open_worlds(suites_of(config)) as worlds:
            began = time.process_time()
            trees = await collect(
                tasks_for(worlds, "train", 0, tasks), worlds, policy, rule=rule_of(config.search),
                budget=budget_of(config.search), evaluator=evaluator_of(config.search, policy),
                settings=settings_of(config.search, run="meter", seed=1),
            )  # fmt: skip
            whole = time.process_time() - began
        work, began = work_of(policy), time.process_time()
        for _ in range(10):
            measured(trees, work)
        return trees, whole, (time.process_time() - began) / 10
    finally:
        await policy.close()


def main(quick: bool = False, json_path: str | None = None, plot_path: str | None = None) -> dict[str, Any]:
    """Grows trees under a meter and tells its share; `quick` grows fewer."""
    entries = [0]
    enter, add = Busy.__enter__, Busy.add

    def entered(busy: Busy) -> None:
        entries[0] += 1
        enter(busy)

    def added(busy: Busy, since: float) -> None:  # takes less than an entry
        entries[0] += 1
        add(busy, since)

    with patch.object(Busy, "__enter__", entered), patch.object(Busy, "add", added), metering():
        trees, whole, counting = asyncio.run(_grown(2 if quick else 16))
    each = one_entry()
    share = (entries[0] * each + counting) / whole
    Console(emoji=False).print(
        f"{len(trees)} trees of {sum(map(len, trees))} nodes took {whole:.2f} s of the processor; {entries[0]} entries "
        f"of clocks {entries[0] * each * 1e3:.2f} ms, counting the trees {counting * 1e3:.2f} ms: {share:.3%}"
        + (" (quick: measures little)" if quick else "")
    )
    values = {"meter_overhead": (share, "1"), "meter_clock_entries": (entries[0], "1"),
              "meter_entry_us": (each * 1e6, "us"), "meter_counting_ms": (counting * 1e3, "ms"),
              "growing_s": (whole, "s"), "nodes": (sum(map(len, trees)), "1")}  # fmt: skip
    result = {"quick": quick, "figures": {name: {"value": v, "unit": unit} for name, (v, unit) in values.items()}}
    if json_path is not None:
        write_result(Path(json_path), result)
    return result
