"""Suites by name, imported only when asked for. Third parties register under the entry point `treewright.envs`."""

from __future__ import annotations

import difflib
from importlib import import_module
from importlib.metadata import entry_points

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Suite

__all__ = ["BUILT_IN", "names", "suite"]

BUILT_IN = {
    "maze": "treewright.envs.maze",
    "kg": "treewright.envs.retrieval.kg",
    "stdlib": "treewright.envs.retrieval.stdlib",
    "workbench": "treewright.envs.tools.workbench",
    "market": "treewright.envs.web.market",
    "bazaar": "treewright.envs.web.bazaar",
    "miniwob": "treewright.envs.web.miniwob",
    "webarena": "treewright.envs.web.webarena",
}


def names() -> list[str]:
    """Every suite that can be asked for, built-in ones first."""
    return [*BUILT_IN, *sorted({e.name for e in entry_points(group="treewright.envs")} - set(BUILT_IN))]


def suite(name: str) -> Suite:
    """The suite of that name. Raises TreewrightError with the nearest known name, or with what to install."""
    try:
        if name in BUILT_IN:
            found = import_module(BUILT_IN[name]).SUITE
        else:
            found = next((e for e in entry_points(group="treewright.envs") if e.name == name), None)
            if found is None:
                near = difflib.get_close_matches(name, names(), n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names())}"
                raise TreewrightError(f"no suite named {name!r}; {hint}")
            found = found.load()
    except ImportError as error:
        extra = "web" if ".web." in BUILT_IN.get(name, "") else "train"
        raise TreewrightError(
            f"suite {name!r} needs a package that is missing ({error.name}); type: pip install 'treewright[{extra}]'"
        ) from error
    if not isinstance(found, Suite):
        raise TreewrightError(f"entry point {name!r} holds a {type(found).__name__}, not a treewright.envs.Suite")
    return found
