"""`treewright bench search`: what the rules and the engine cost, and what they find.

The benchmark is a list of sections. A section is a module-level function

    figures(quick: bool) -> dict[str, tuple[float, str]]        # {name: (value, unit)}

named in `SECTIONS` as "module:function". A section whose optional package is missing is left out, and the result says
so. Figures called `table/RULE/SUITE/QUANTITY` are the cells of the table of all rules on all suites.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from treewright.agent.runs.figures import commit, hardware, versions, write_result
from treewright.envs.errors import TreewrightError

__all__ = ["SECTIONS", "Figures", "load", "main", "markdown", "measure", "report", "section", "write_page"]

SECTIONS: tuple[str, ...] = (
    "treewright.benchmarks.engine:figures",
    "treewright.benchmarks.rules:astar_figures",
    "treewright.benchmarks.astar:learned_figures",
    "treewright.benchmarks.rules:ets_figures",
    "treewright.benchmarks.and_or:figures",
    "treewright.benchmarks.rules:table_figures",
    "treewright.benchmarks.engine:session_figures",
    "treewright.benchmarks.repair:figures",
    "treewright.benchmarks.graph:figures",
)
TABLE = "table"
MARKS = ("<!-- measured -->", "<!-- /measured -->")

Figures = dict[str, tuple[float, str]]


def section(name: str) -> Callable[[bool], Mapping[str, tuple[float, str]]]:
    """The function behind "module:function". Raises TreewrightError naming what is not there."""
    module, _, function = name.partition(":")
    if not function:
        raise TreewrightError(f"section {name!r} names no function; write module:function")
    try:
        found = getattr(import_module(module), function, None)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("treewright"):
            raise TreewrightError(f"section {name!r}: there is no module {error.name}") from error
        raise
    if not callable(found):
        raise TreewrightError(f"section {name!r}: {module} has no function {function!r}")
    return found  # type: ignore[no-any-return]


def measure(
    names: Sequence[str], quick: bool, on_section: Callable[[str, Mapping[str, tuple[float, str]], float], None]
) -> tuple[Figures, dict[str, str]]:
    """The figures of all sections in order, and why sections were left out, by name.

    Raises TreewrightError if two sections give a figure of the same name.
    """
    out: Figures = {}
    left_out: dict[str, str] = {}
    for name in names:
        began = time.monotonic()
        try:
            found = section(name)(quick)
        except ImportError as error:
            left_out[name] = f"needs the package {error.name}"
            continue
        if twice := sorted(out.keys() & found.keys()):
            raise TreewrightError(f"section {name!r} gives {twice[0]!r}, which another section gave already")
        out.update(found)
        on_section(name, found, time.monotonic() - began)
    return out, left_out


def main(
    quick: bool = False,
    json_path: str | None = None,
    plot_path: str | None = None,
    sections: Sequence[str] = SECTIONS,
    *,
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measures and prints. The result holds "figures", "quick" and "left_out"; there is no plot.

    only  sections by a part of their names, such as "astar" or "bench_repair"; a result at `json_path` keeps the
          figures of the others, with the commits they are of. Raises TreewrightError for one that names none.
    """
    console = Console(emoji=False)
    if only:
        if wrong := [part for part in only if not any(part in name for name in sections)]:
            raise TreewrightError(f"no section is called {wrong[0]!r}; there are {', '.join(sections)}")
        sections = [name for name in sections if any(part in name for part in only)]
    if quick:
        console.print("quick run: few tasks, small trees; its figures are not the published ones")
    if plot_path is not None:
        console.print("bench search draws no plot; --plot is ignored")

    def show(name: str, found: Mapping[str, tuple[float, str]], seconds: float) -> None:
        rows = {key: value for key, value in found.items() if not key.startswith(f"{TABLE}/")}
        if rows:
            table = Table(title=f"{name} ({seconds:.0f} s)", title_justify="left")
            table.add_column("figure")
            table.add_column("value", justify="right")
            table.add_column("unit")
            for key, (value, unit) in rows.items():
                table.add_row(key, f"{value:.4g}", unit)
            console.print(table)
        if len(rows) < len(found):
            console.print(markdown({k: {"value": v, "unit": u} for k, (v, u) in found.items()}), markup=False)

    found, left_out = measure(sections, quick, show)
    for name, why in left_out.items():
        console.print(f"left out: {name}: {why}", markup=False)
    result: dict[str, Any] = {
        "figures": {name: {"value": v, "unit": unit} for name, (v, unit) in found.items() if math.isfinite(v)},
        "quick": quick,
        "left_out": left_out,
    }
    if json_path is not None:
        before = load(Path(json_path)) if only and Path(json_path).exists() else {}
        if before.get("quick") == quick:
            result = _beside(result, before)
        write_result(Path(json_path), {**result, "hardware": hardware(), "versions": versions()})
    return result


def _beside(result: dict[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """A result of some sections with those that were measured before; "of" has the commits of the older ones, "on" the
    hardware by these commits."""
    fresh = result["figures"]
    of = {name: before.get("of", {}).get(name, before["commit"]) for name in before["figures"] if name not in fresh}
    machines = {before["commit"]: before["hardware"], **before.get("on", {})}
    return {
        **result,
        "figures": {**{name: before["figures"][name] for name in of}, **fresh},
        "left_out": {**before["left_out"], **result["left_out"]},
        "of": {name: made for name, made in of.items() if made != commit()},
        "on": {made: machines[made] for made in sorted(set(of.values()) & set(machines)) if made != commit()},
    }


def markdown(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of all rules on all suites out of a run's figures, in Markdown; one cell for each rule and suite.

    A cell shows what was chosen / found by truth among all leaves, in per cent of the tasks, and how much it cost.
    """
    cells: dict[tuple[str, str], dict[str, float]] = {}
    for name, figure in figures.items():
        if name.startswith(f"{TABLE}/"):
            _, rule, suite, quantity = name.split("/")
            cells.setdefault((rule, suite), {})[quantity] = float(figure["value"])
    rules, suites = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    lines = ["| rule | " + " | ".join(suites) + " |", "|---|" + "---:|" * len(suites)]
    for rule in rules:
        lines.append(f"| {rule} | " + " | ".join(_cell(cells.get((rule, suite))) for suite in suites) + " |")
    return "\n".join(lines)


def _cell(of: Mapping[str, float] | None) -> str:
    if of is None:
        return "–"
    return f"{of['chosen']:.0f} / {of['found']:.0f}"


def load(path: Path) -> dict[str, Any]:
    """A result that this benchmark wrote."""
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def report(result: Mapping[str, Any]) -> str:
    """What a page shows of a result, in Markdown: how it was measured, the figures, and the table of all rules."""
    figures: Mapping[str, Mapping[str, Any]] = result["figures"]
    machine = result["hardware"]
    how = "a quick run" if result["quick"] else "a full run"
    lines = [f"From {how} on {machine['cores']} cores of {machine['cpu']}, commit {result['commit']}:", ""]
    older = sorted(set(result.get("of", {}).values()))
    for made in older:
        names = [name for name in figures if result["of"].get(name) == made and not name.startswith(f"{TABLE}/")]
        tables = ["the table"] if any(n.startswith(f"{TABLE}/") and m == made for n, m in result["of"].items()) else []
        on = result.get("on", {}).get(made)
        where = f" on {on['cores']} cores of {on['cpu']}" if on else ""
        lines[-1:-1] = ["", f"Of commit {made}{where}: {', '.join([*(f'`{name}`' for name in names), *tables])}."]
    lines += ["| figure | value | unit |", "|---|---:|---|"]
    lines += [
        f"| {name} | {figure['value']:.4g} | {figure['unit']} |"
        for name, figure in figures.items()
        if not name.startswith(f"{TABLE}/")
    ]
    return "\n".join([*lines, "", "Chosen / found, per cent:", "", markdown(figures)])


def write_page(result: Path, page: Path) -> None:
    """Puts the report of a result into a page, between its marks. Raises TreewrightError where they are missing."""
    before, begin, rest = page.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not begin or not end:
        raise TreewrightError(f"{page} has no place for figures; put {MARKS[0]} and {MARKS[1]} there")
    page.write_text(f"{before}{begin}\n{report(load(result))}\n{end}{after}")


if __name__ == "__main__":
    import sys

    write_page(Path(sys.argv[1]), Path(sys.argv[2]))
