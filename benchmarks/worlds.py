"""`treewright bench worlds`: figures of the worlds, each section by a module of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from treewright.agent.runs.figures import write_result

__all__ = ["SECTIONS", "main"]

SECTIONS = (
    "treewright.benchmarks.tools_worlds:figures",
    "treewright.benchmarks.tools_sessions:figures",
    "treewright.benchmarks.retrieval:figures",
    "treewright.benchmarks.probtree:figures",
)
"""Functions figures(quick) -> {name: (value, unit)}, imported when their turn comes."""


def main(quick: bool = False, json_path: str | None = None, plot_path: str | None = None) -> Mapping[str, Any]:
    """Measures every section, prints a table, and returns {"figures": {name: {"value", "unit"}}, "quick", …}."""
    began, found = time.monotonic(), dict[str, tuple[float, str]]()
    for section in SECTIONS:
        module, _, name = section.partition(":")
        measure: Callable[[bool], dict[str, tuple[float, str]]] = getattr(import_module(module), name)
        found.update(measure(quick))
    table = Table("figure", "value", "unit", title="worlds" + (" (quick)" if quick else ""))
    for name, (value, unit) in found.items():
        table.add_row(name, f"{value:.4g}", unit)
    Console(emoji=False).print(table)
    result = {
        "figures": {name: {"value": value, "unit": unit} for name, (value, unit) in found.items()},
        "quick": quick,
        "seconds": time.monotonic() - began,
    }
    if json_path is not None:
        write_result(Path(json_path), result)
    return result
