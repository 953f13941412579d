"""Twenty pages of MiniWoB, learned by trees alone: the packaged model for the web before and after, held-out seeds."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

__all__ = ["SUITE", "learned"]

SUITE = "miniwob:simple"


async def learned(
    console: Console, rounds: int, each: int, held_out: int, seed: int = 0
) -> dict[str, tuple[float, str]]:
    """The demo's own loop on `miniwob:simple`: `rounds` of `each` trees; the policy alone on `held_out` test tasks."""
    from treewright.agent.runs.demo import DemoPlan, demo_config, run_demo

    plan = DemoPlan(alone={SUITE: held_out}, searched={})
    with tempfile.TemporaryDirectory(prefix="treewright-web-") as folder:
        given = [f'worlds.suites=["{SUITE}"]', f"loop.iterations={rounds}", f"loop.tasks={each}", f"seed={seed}"]
        found = await run_demo(demo_config(Path(folder) / "run", given), plan, console)
    kept = {"before": "%", "after": "%", "gain_points": "points", "gain_low": "points", "gain_high": "points"}
    return {
        **{f"miniwob_learned_{name}": (found[f"{SUITE}.policy_{name}"], unit) for name, unit in kept.items()},
        "miniwob_learned_tasks": (found[f"{SUITE}.tasks"], "held-out tasks"),
        "miniwob_learned_trees": (float(rounds * each), "trees"),
        "miniwob_learned_seconds": (found["seconds"], "s"),
    }
