"""Suites by name, imported only when asked for. Third parties register under the entry point `treewright.envs`."""

from __future__ import annotations

import difflib
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

from treewright.envs.errors import TreewrightError
from treewright.envs.naming import modules_here
from treewright.envs.types import Suite

__all__ = ["BUILT_IN", "SCHEMES", "names", "refuse_misspelt", "suite"]

BUILT_IN = {
    "maze": "treewright.envs.maze",
    "kg": "treewright.envs.retrieval.kg",
    "stdlib": "treewright.envs.retrieval.stdlib",
    "workbench": "treewright.envs.tools.workbench",
    "office": "treewright.envs.tools.office",
    "market": "treewright.envs.web.market",
    "bazaar": "treewright.envs.web.bazaar",
    "miniwob": "treewright.envs.web.miniwob",
    "webarena": "treewright.envs.web.webarena",
    "code": "treewright.envs.code.world",
    "puzzles": "treewright.envs.reasoning.puzzles",
}

SCHEMES = {
    "mcp": "treewright.envs.tools.mcp_suite:mcp_suite",
    "agentdojo": "treewright.envs.tools.agentdojo:agentdojo_suite",
    "gym": "treewright.envs.tools.gym:gym_suite",
    "web": "treewright.envs.web.own_site:web_suite",
    "miniwob": "treewright.envs.web.miniwob:miniwob_suite",
    "webarena-verified": "treewright.envs.web.verified:verified_suite",
    "verifiers": "treewright.envs.tools.verifiers:verifiers_suite",
    "reasoning": "treewright.envs.reasoning.gym:reasoning_suite",
    "puzzles": "treewright.envs.reasoning.puzzles:puzzles_suite",
    "recipes": "treewright.envs.recipes:recipes_suite",
    "harbor": "treewright.envs.harbor.suite:harbor_suite",
}
"""Names of the form SCHEME:REST are suites too; the function gets REST. `mcp:uvx mcp-server-time`, say."""


def names() -> list[str]:
    """Every suite that can be asked for, built-in ones first."""
    return [*BUILT_IN, *sorted({e.name for e in entry_points(group="treewright.envs")} - set(BUILT_IN))]


def suite(name: str) -> Suite:
    """The suite of that name: built in, SCHEME:REST, of an entry point, or 'module:thing' of one's own (see own.py).

    Raises TreewrightError with the nearest known name, or with what to install.
    """
    try:
        scheme, colon, rest = name.partition(":")
        if name in BUILT_IN:
            found = import_module(BUILT_IN[name]).SUITE
        elif colon and scheme in SCHEMES:
            module, _, function = SCHEMES[scheme].partition(":")
            found = getattr(import_module(module), function)(rest)
        else:
            entry = next((e for e in entry_points(group="treewright.envs") if e.name == name), None)
            found = _declared(entry) if entry is not None else _own(name, scheme, bool(colon and rest))
    except ImportError as error:
        extra = "web" if ".web." in BUILT_IN.get(name, SCHEMES.get(name.partition(":")[0], "")) else "train"
        raise TreewrightError(
            f"suite {name!r} needs a package that is missing ({error.name}); type: pip install 'treewright[{extra}]'"
        ) from error
    if not isinstance(found, Suite):
        raise TreewrightError(f"suite {name!r} is a {type(found).__name__}, not a treewright.envs.Suite")
    return found


def _declared(entry: EntryPoint) -> Suite:
    """What an installed package declares: a suite, or anything else that can be named module:thing, see own.py."""
    from treewright.envs.own import suite_of

    try:
        made = entry.load()
    except AttributeError as error:
        raise TreewrightError(f"suite {entry.name!r} is declared by {entry.value}: {error}") from error
    return suite_of(made, entry.name)


def _own(name: str, scheme: str, colon: bool) -> Suite:
    """'module:thing', where there is such a module; else what name was meant."""
    if colon:
        from treewright.envs.own import bare_suite

        refuse_misspelt(name)
        return bare_suite(name)
    if name in SCHEMES:
        raise TreewrightError(f"no suite named {name!r} alone; write what it is about behind a colon: {name}:…")
    near = difflib.get_close_matches(name, names(), n=1)
    known = ", ".join([*names(), *(f"{s}:…" for s in SCHEMES), "MODULE:CLASS of your own"])
    hint = f"did you mean {near[0]!r}?" if near else f"known: {known}"
    raise TreewrightError(f"no suite named {name!r}; {hint}")


def refuse_misspelt(name: str) -> None:
    """Raises TreewrightError for 'gmy:CartPole-v1': no module is named so, but a scheme nearly is."""
    scheme = name.partition(":")[0]
    near = difflib.get_close_matches(scheme, SCHEMES, n=1)
    if near and not _is_module(scheme):
        raise TreewrightError(f"no suite named {name!r}; did you mean '{near[0]}:'?")


def _is_module(name: str) -> bool:
    with modules_here():
        try:
            return find_spec(name) is not None
        except (ImportError, ValueError):
            return False
