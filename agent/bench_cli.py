"""`treewright bench NAME`: one table of benchmarks, each a module with a `main(quick, json_path, plot_path)`."""

from __future__ import annotations

import difflib
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from treewright.agent.store_cli import bench_store_command
from treewright.envs.errors import TreewrightError

__all__ = ["HOMES", "bench"]

# Each module is imported when its benchmark is asked for; `store` takes a URL and has a command of its own.
HOMES = {
    "control": "treewright.agent.control",
    "credit": "treewright.training.bench_credit",
    "kernels": "treewright.kernels.bench",
    "learning": "treewright.training.bench_learning",
    "learning-suites": "treewright.agent.bench_suites",
}
BY_SUITE = ("control", "learning-suites")


def bench(
    name: Annotated[str, typer.Argument(help=" | ".join(sorted([*HOMES, "store"])))],
    quick: Annotated[bool, typer.Option(help="End within a minute on two cores; says that it is quick.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures with hardware, versions and commit.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a plot, where matplotlib is installed.")] = None,
    suite: Annotated[list[str] | None, typer.Option(help="control, learning-suites: these suites instead.")] = None,
) -> None:
    """Measure: a table, and JSON with hardware, versions and commit. Nothing is timed on a red correctness gate.

    treewright bench kernels --quick
    treewright bench credit --json credit.json
    """
    from treewright.agent.figures import write_result

    if name == "store":
        bench_store_command(quick, json, plot)
        return
    if name not in HOMES:
        near = difflib.get_close_matches(name, [*HOMES, "store"], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join([*HOMES, 'store'])}"
        raise TreewrightError(f"no benchmark named {name!r}; {hint}")
    if suite and name not in BY_SUITE:
        raise TreewrightError(f"bench {name} has no suites to choose; --suite goes with {', '.join(BY_SUITE)}")
    more = {"suites": suite} if suite else {}
    result = import_module(HOMES[name]).main(quick, None, str(plot) if plot else None, **more)
    if json is not None:
        write_result(json, result)
