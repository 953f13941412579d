"""`treewright bench NAME`: one table of benchmarks, each a module with a `main(quick, json_path, plot_path)`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from treewright.envs.errors import TreewrightError

__all__ = ["HOMES", "bench"]

# Each module is imported when its benchmark is asked for.
HOMES = {
    "baselines": "baselines",
    "control": "control",
    "credit": "credit",
    "estimators": "estimators",
    "faults": "fault_gradient",
    "gateway": "gateway",
    "kernels": "kernels",
    "learning": "learning.bench",
    "learning-loop": "learning_loop",
    "learning-suites": "suites",
    "learning2": "learning2",
    "memory": "memory",
    "meter": "metering",
    "models": "models",
    "pair": "pair",
    "policy": "policy",
    "real": "real",
    "recipes": "recipes",
    "search": "search",
    "scale": "scale",
    "segments": "segments",
    "store": "store",
    "train": "train",
    "variance": "variance",
    "web": "web",
    "worlds": "worlds",
}


def _main_of(name: str) -> Callable[..., Any]:
    """The benchmark's function. Raises TreewrightError where benchmarks are missing: the wheel leaves them out."""
    try:
        return import_module(f"treewright.benchmarks.{HOMES[name]}").main  # type: ignore[no-any-return]
    except ModuleNotFoundError as error:
        if error.name != "treewright.benchmarks":
            raise
        raise TreewrightError(
            "benchmarks are no part of the installed package; they are in the folder benchmarks/ of a checkout: "
            f"git clone the repository, type pip install -e '.[train,web]' in it, then treewright bench {name}"
        ) from None


def bench(
    name: Annotated[str, typer.Argument(help=" | ".join(HOMES))],
    between: Annotated[
        list[str] | None, typer.Argument(help="pair: OLD NEW, folders with checkouts or commits.", metavar="[OLD NEW]")
    ] = None,
    quick: Annotated[bool, typer.Option(help="End within a minute on two cores; says that it is quick.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures with hardware, versions and commit.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a plot, where matplotlib is installed.")] = None,
    peer_python: Annotated[
        Path | None, typer.Option(help="An interpreter that has the peer to compare with, where a benchmark has one.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="search, pair, web: only parts with this in their names; models, train: only these."),
    ] = None,
    name_: Annotated[
        str | None, typer.Option("--name", "-n", help="variance: the run whose worlds, weights and trees are measured.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="pair: turns of each build.")] = None,
    size: Annotated[
        str | None, typer.Option(help="real: how much of each part, such as tasks=4,trees=10; docs/real-models.md.")
    ] = None,
    suite: Annotated[list[str] | None, typer.Option(help="control, learning-suites: these suites instead.")] = None,
) -> None:
    """Measure: a table, and JSON with hardware, versions and commit. Refuses to report timings if the check fails.

    treewright bench kernels --quick
    treewright bench credit --json credit.json
    """
    from treewright.agent.runs.figures import write_result
    from treewright.search.meter import Meter, metering

    if name not in HOMES:
        near = difflib.get_close_matches(name, HOMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(HOMES)}"
        raise TreewrightError(f"no benchmark named {name!r}; {hint}")
    main = _main_of(name)
    more: dict[str, Any] = {}
    for key, option, value in (
        ("peer_python", "--peer-python", peer_python),
        ("suites", "--suite", suite),
        ("only", "--only", only),
        ("name", "--name", name_),
        ("between", "OLD NEW", between),
        ("rounds", "--rounds", rounds),
        ("size", "--size", size),
    ):
        if not value:
            continue
        if key not in inspect.signature(main).parameters:
            raise TreewrightError(f"bench {name} has no use for {option}; leave it out")
        more[key] = value
    kept = (
        json if only or name in ("pair", "real", "scale", "web") else None
    )  # the benchmark puts its parts beside those that are there
    with metering() as spent:
        result = main(quick, str(kept) if kept else None, str(plot) if plot else None, **more)
    if json is not None and kept is None:
        cost = {} if spent.total() == Meter() else {"meter": spent.total().as_dict()}
        write_result(json, {**cost, **result})
