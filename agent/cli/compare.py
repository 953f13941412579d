"""`treewright compare`: two runs on the same tasks, or the learning curves of many over any axis of cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from treewright.agent.cli.options import console, say
from treewright.agent.cli.store import find_store
from treewright.envs.errors import TreewrightError
from treewright.envs.whole import write_whole

if TYPE_CHECKING:
    from treewright.agent.runs.compared import Arm
    from treewright.search.store.reading import TreeRow

__all__ = ["compare_command"]


def compare_command(
    runs: Annotated[
        list[str],
        typer.Argument(help="Names of runs. Without --axis two: each a name, a store, or STORE#RUN."),
    ],
    axis: Annotated[
        str | None,
        typer.Option(help="Learning curves against this: sampled_tokens, prompt_computed, flops, env_steps, seconds…"),
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="With --axis: write curves and ratios.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="With --axis: draw the curves, as .svg or .png.")] = None,
) -> None:
    """Success of two runs on the tasks that both have finished, with the paired bootstrap's 95 % interval.

    With --axis: success of trained runs against what it cost. Runs called NAME-1, NAME-2, … are seeds of one arm.

      treewright compare first second
      treewright compare all.sqlite#first/0 all.sqlite#first/7
      treewright compare chains-1 chains-2 late-1 late-2 --axis flops --json curves.json --plot curves.svg
    """
    if axis is not None:
        _curves(runs, axis, json, plot)
        return
    if len(runs) != 2 or json is not None or plot is not None:
        what = "--json and --plot are" if len(runs) == 2 else f"{len(runs)} runs are compared by their curves, that is"
        raise TreewrightError(f"{what} with --axis, for instance --axis sampled_tokens; without it name two runs")
    from treewright.search.store import compare

    table = Table(
        "suite", "tasks", "first", "second", "gain, points", "95 % interval", "only first", "only second", "tokens"
    )
    for c in compare(_rows_of(runs[0]), _rows_of(runs[1])):
        table.add_row(
            c.suite, f"{c.tasks}", f"{100 * c.first:.1f} %", f"{100 * c.second:.1f} %", f"{100 * c.gain:+.1f}",
            f"{100 * c.low:+.1f} … {100 * c.high:+.1f}", f"{c.only_first}", f"{c.only_second}",
            f"{c.tokens[0]} / {c.tokens[1]}",
        )  # fmt: skip
    console.print(table)


def _curves(runs: list[str], axis: str, json: Path | None, plot: Path | None) -> None:
    from treewright.agent.runs.compared import arms_of, curve_of, figures_of
    from treewright.agent.runs.figures import write_result

    arms, end = arms_of([curve_of(run, axis) for run in runs])
    table = Table("arm", "seeds", "mean success", "at the end", f"area over {arms[0].name}", "95 % interval", "pairs")
    for arm in arms:
        table.add_row(
            arm.name, f"{len(arm.runs)}", f"{100 * arm.area:.1f} %", f"{100 * arm.final:.1f} %",
            "–" if arm.ratio is None else f"{arm.ratio:.2f}",
            "–" if arm.low is None or arm.high is None else f"{arm.low:.2f} … {arm.high:.2f}", f"{arm.pairs}",
        )  # fmt: skip
    console.print(table)
    say(f"over {end:g} {axis}, as far as all runs come; intervals need two seeds that both arms have")
    if json is not None:
        write_result(json, figures_of(arms, axis, end))
    if plot is not None:
        _draw(arms, axis, plot)


def _draw(arms: list[Arm], axis: str, path: Path) -> None:
    import numpy as np

    from treewright.agent.view.chart import Chart, Series, draw_png, draw_svg

    lines = []
    for arm in arms:
        grid = np.linspace(0.0, min(curve.spent[-1] for curve in arm.runs), 101)
        mean = np.mean([np.interp(grid, c.spent, c.success) for c in arm.runs], axis=0)
        lines.append(Series(arm.name, grid.tolist(), mean.tolist()))
    chart = Chart(
        "curves", "success while learning", axis.replace("_", " "), "success", lines,
        "mean over the seeds of an arm; a point stands at what the rounds before it cost", share=True,
    )  # fmt: skip
    if path.suffix == ".png":
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_png(chart, path)
    else:
        write_whole(path, draw_svg(chart))


def _rows_of(name: str) -> list[TreeRow]:
    from treewright.search.store import TreeStore

    where, _, run = name.partition("#")
    with TreeStore.open(find_store(where), read_only=True) as store:
        rows = store.trees(run=run or None)
        runs = ", ".join(dict.fromkeys(row.run for row in store.trees())) if not rows else ""
    if not rows:
        raise TreewrightError(f"{name!r} has no trees" + (f"; the store has the runs {runs}" if runs else ""))
    return rows
