"""`treewright bench NAME`: one table of benchmarks, each a module with a `main(quick, json_path, plot_path)`."""

from __future__ import annotations

import difflib
import inspect
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from treewright.envs.errors import TreewrightError

__all__ = ["HOMES", "bench"]

# Each module is imported when its benchmark is asked for.
HOMES = {
    "control": "treewright.agent.control",
    "credit": "treewright.training.bench_credit",
    "kernels": "treewright.kernels.bench",
    "learning": "treewright.training.bench_learning",
    "learning-suites": "treewright.agent.bench_suites",
    "policy": "treewright.agent.bench_policy",
    "recipes": "treewright.agent.bench_recipes",
    "search": "treewright.agent.bench_search",
    "store": "treewright.agent.bench_store",
    "web": "treewright.agent.bench_web",
    "worlds": "treewright.agent.bench_worlds",
}


def bench(
    name: Annotated[str, typer.Argument(help=" | ".join(HOMES))],
    quick: Annotated[bool, typer.Option(help="End within a minute on two cores; says that it is quick.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures with hardware, versions and commit.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a plot, where matplotlib is installed.")] = None,
    peer_python: Annotated[
        Path | None, typer.Option(help="An interpreter that has the peer to compare with, where a benchmark has one.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="search: only sections with this in their names.")] = None,
    suite: Annotated[list[str] | None, typer.Option(help="control, learning-suites: these suites instead.")] = None,
) -> None:
    """Measure: a table, and JSON with hardware, versions and commit. Nothing is timed on a red correctness gate.

    treewright bench kernels --quick
    treewright bench credit --json credit.json
    """
    from treewright.agent.figures import write_result

    if name not in HOMES:
        near = difflib.get_close_matches(name, HOMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(HOMES)}"
        raise TreewrightError(f"no benchmark named {name!r}; {hint}")
    main = import_module(HOMES[name]).main
    more: dict[str, Any] = {}
    for key, option, value in (
        ("peer_python", "--peer-python", peer_python),
        ("suites", "--suite", suite),
        ("only", "--only", only),
    ):
        if not value:
            continue
        if key not in inspect.signature(main).parameters:
            raise TreewrightError(f"bench {name} has no use for {option}; leave it out")
        more[key] = value
    kept = json if only else None  # the benchmark puts its parts beside those that are there
    result = main(quick, str(kept) if kept else None, str(plot) if plot else None, **more)
    if json is not None and kept is None:
        write_result(json, result)
