"""`treewright bench real`: the whole line with a real pretrained model, `hf:smollm2`, in the sections of `SECTIONS`.

It takes hours on two cores; `--only valid|exact|servers|learning|memory|sampling|step|update|shapes|judges` measures a
part and keeps the others' figures. Written as `bench search` writes its own.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from treewright.agent.policies.opening import open_policy
from treewright.agent.policies.worked import save_worked
from treewright.agent.runs.collect import UNLIMITED, open_worlds
from treewright.agent.runs.doctor import examined
from treewright.agent.runs.imitation import worked_examples
from treewright.agent.runs.setup import tasks_for
from treewright.benchmarks import search
from treewright.benchmarks.real_parts import FULL, QUICK, Figures, kept, measuring, share_interval, size_of, sized

__all__ = ["SECTIONS", "SPEC", "main", "valid_figures"]

SPEC = "hf:smollm2"
SECTIONS = (
    "treewright.benchmarks.real:valid_figures",
    "treewright.benchmarks.real_exact:exact_figures",
    "treewright.benchmarks.real_servers:servers_figures",
    "treewright.benchmarks.real_learning:learning_figures",
    "treewright.benchmarks.real_memory:memory_figures",
    "treewright.benchmarks.real_sampling:sampling_figures",
    "treewright.benchmarks.real_step:step_figures",
    "treewright.benchmarks.real_update:update_figures",
    "treewright.benchmarks.real_shapes:shapes_figures",
    "treewright.benchmarks.real_judges:judges_figures",
)
SUITES = ("kg", "workbench", "stdlib")


def main(
    quick: bool = False, json_path: str | None = None, plot_path: str | None = None, *,
    only: Sequence[str] | None = None, size: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measures and prints; see `treewright.benchmarks.search.main`.

    size  how much of each part, such as "tasks=4,trees=10", see `Size`
    """
    with measuring(sized(size, QUICK if quick else FULL), None if quick else Path("runs") / "real"):
        return search.main(quick, json_path, plot_path, SECTIONS, only=only)


def valid_figures(quick: bool, spec: str = SPEC) -> Figures:
    """Share of the draws that are actions of the world, untouched: as it is, with the grammar, with worked examples,
    with both. An interval takes each task for one observation, since the draws of a rollout are alike."""
    size = size_of(quick)
    names = SUITES[: size.suites]
    ways = ("plain", "grammar") if spec == "seedling" else ("plain", "grammar", "examples", "both")
    out, best = Figures({"valid/tasks": (float(size.tasks), "tasks")}), dict[str, float]()
    for name in names:
        for way in ways:
            of = {"part": "valid", "spec": spec, "suite": name, "way": way, "tasks": size.tasks}
            found = kept(of, partial(_valid, spec, name, way, size.tasks))
            out |= found
            if way != "plain":
                best[name] = max(best.get(name, 0.0), found[f"valid/{way}/{name}"][0])
    return {**out, "real_valid_share_min": (min(best.values()), "share of draws")}


def _valid(spec: str, name: str, way: str, tasks: int) -> Figures:
    """One suite, prompted in one way."""

    async def work(folder: Path) -> Figures:
        async with open_worlds([name]) as worlds:
            options: dict[str, Any] = {"grammar": True} if way in ("grammar", "both") else {}
            if way in ("examples", "both"):
                file = folder / "examples.json"
                save_worked(file, await worked_examples(worlds, 2, 12 if tasks < 4 else 40))
                options["template_options"] = {"examples": str(file)}
            policy = open_policy(spec, **options)
            try:
                (one,) = await examined(policy, worlds, tasks_for(worlds, "test", 0, tasks), UNLIMITED)
            finally:
                await policy.close()
        low, high = share_interval(one.share, tasks)
        return {
            f"valid/{way}/{name}": (one.share, "share of draws"),
            f"valid_low/{way}/{name}": (low, "share of draws"),
            f"valid_high/{way}/{name}": (high, "share of draws"),
            f"refused/{way}/{name}": (one.refused / one.draws if one.draws else 0.0, "share of draws"),
            f"valid_draws/{way}/{name}": (float(one.draws), "draws"),
            f"solved/{way}/{name}": (one.solved, "share of tasks"),
        }

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(work(Path(folder)))
