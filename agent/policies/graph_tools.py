"""Which nodes of a LangGraph graph run tools: found by what they are, not by their names.

A graph that is searched must not run its tools: the search executes them in its own world, at most once where they
cannot be undone. `stops` finds the nodes to stop before, and refuses a graph of which it cannot tell what it runs;
`NoTools` watches while the graph runs, so that a tool that is called nevertheless does not begin.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.tools import BaseTool
from langgraph.prebuilt import ToolNode
from langgraph.pregel import Pregel

from treewright.envs.errors import TreewrightError

__all__ = ["NoTools", "stops"]

LIBRARIES = ("langgraph", "langchain", "langchain_core")


def stops(graph: Any, stop_before: Sequence[str] | None, run_inside: Sequence[str]) -> list[str]:
    """The nodes that the graph must stop before.

    stop_before  nodes that execute tools, besides those that are seen to;  run_inside  nodes that may run all they have
    Raises TreewrightError for names that are no nodes, and for nodes of which it is not known what they run.
    """
    names = [name for name in graph.nodes if name != "__start__"]
    for field, given in (("stop_before", stop_before or ()), ("run_inside", run_inside)):
        for name in (given,) if isinstance(given, str) else given:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise TreewrightError(f"{field} names {name!r}, but the graph has no such node; {hint}{_known(names)}")
    usual = [name for name in names if name == "tools"]
    stopping = set([stop_before] if isinstance(stop_before, str) else usual if stop_before is None else stop_before)
    stopping -= set(allowed := [run_inside] if isinstance(run_inside, str) else list(run_inside))
    for name in names:
        if name in stopping or name in allowed:
            continue
        found = list(_what_runs(graph.nodes[name].bound))
        if any(kind == "tools" for kind, _ in found):
            stopping.add(name)
        elif found:
            raise TreewrightError(
                f"node {name!r} {found[0][1]}, so it may run tools for real while the search only tries things out; "
                f"write stop_before=({name!r},) if it executes tools, or run_inside=({name!r},) if all that it does "
                f"may happen any number of times; {_known(names)}"
            )
    if loop := _loop(graph, stopping | set(allowed)):
        raise TreewrightError(
            f"the graph goes round through {' → '.join(loop)} without a node that is seen to execute tools, so it may "
            "act by itself while the search only tries things out; name the node that executes tools in stop_before, "
            f"or nodes that may run any number of times in run_inside; {_known(names)}"
        )
    return [name for name in names if name in stopping]


class NoTools(BaseCallbackHandler):
    """Lets no tool begin outside the nodes in `allowed`; `refused` is the name of one that tried."""

    raise_error = True
    run_inline = True

    def __init__(self, allowed: Sequence[str]) -> None:
        self.allowed = set([allowed] if isinstance(allowed, str) else allowed)
        self.refused: str | None = None

    def on_tool_start(
        self, serialized: dict[str, Any] | None, input_str: str, *, metadata: dict[str, Any] | None = None, **more: Any
    ) -> None:
        told = metadata or {}
        outer = str(told.get("langgraph_checkpoint_ns", "")).split("|")[0].split(":")[0]
        if not {outer, told.get("langgraph_node")} & self.allowed:
            self.refused = (serialized or {}).get("name") or "a tool"
            raise TreewrightError(f"{self.refused} was not run: the search executes tools in its own world")


def _known(names: Sequence[str]) -> str:
    return f"its nodes: {', '.join(names)}"


def _what_runs(part: Any, seen: set[int] | None = None) -> Iterator[tuple[str, str]]:
    """('tools', …) for what is sure to execute tools, ('perhaps', why) for what may; nothing for the rest."""
    seen = set() if seen is None else seen
    if id(part) in seen:
        return
    seen.add(id(part))
    if isinstance(part, ToolNode | BaseTool):
        yield "tools", "executes tools"
    elif isinstance(part, Pregel):
        for name, node in part.nodes.items():
            for _ in _what_runs(node.bound, seen):
                yield "perhaps", f"is a graph of its own, whose node {name!r} may run tools"
    elif isinstance(part, types.MethodType):
        yield from _what_runs(part.__func__, seen)
    elif isinstance(part, types.FunctionType):
        yield from _in_function(part, seen)
    else:
        for inner in ("func", "afunc", "bound", "__wrapped__"):
            if (held := getattr(part, inner, None)) is not None and not isinstance(held, str):
                yield from _what_runs(held, seen)
        for step in getattr(part, "steps", None) or ():
            yield from _what_runs(step, seen)
        if not isinstance(part, type) and type(part).__module__.split(".")[0] not in LIBRARIES and callable(part):
            yield from _what_runs(type(part).__call__, seen)


def _in_function(function: types.FunctionType, seen: set[int]) -> Iterator[tuple[str, str]]:
    """What a node's own code names; code of the libraries runs tools only where it is a ToolNode."""
    if (function.__module__ or "").split(".")[0] in LIBRARIES:
        return
    names, texts = _words(function.__code__)
    held = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    held += [function.__globals__[name] for name in names if name in function.__globals__]
    for part in held:
        inner = list(part.values() if isinstance(part, dict) else part if isinstance(part, list | tuple) else [part])
        if any(isinstance(one, ToolNode) for one in inner):
            yield "tools", "executes tools"
        elif any(isinstance(one, BaseTool) for one in inner) and "bind_tools" not in names:
            yield "perhaps", "uses tools of its own"
        for one in inner:
            if isinstance(one, types.FunctionType | types.MethodType | Pregel):
                yield from _what_runs(one, seen)
    if "tool_calls" in names or "tool_calls" in texts:
        yield "perhaps", "reads the tool calls of a message"


def _words(code: types.CodeType) -> tuple[set[str], set[str]]:
    """The names and the texts in a piece of code, and in what is defined inside it."""
    names, texts = set(code.co_names), {part for part in code.co_consts if isinstance(part, str)}
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            inner_names, inner_texts = _words(part)
            names, texts = names | inner_names, texts | inner_texts
    return names, texts


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _loop(graph: Any, left_out: set[str]) -> list[str]:
    """Nodes that the graph may go round through without entering one of `left_out`; [] for none.

    A node that only seems to follow itself is none: a router that does not say where it leads may lead anywhere.
    """
    after: dict[str, set[str]] = {}
    for source, target in _edges(graph):
        if source != target and not {source, target} & left_out:
            after.setdefault(source, set()).add(target)
    for first in sorted(after):
        ways = [[first]]
        seen = {first}
        while ways:
            way = ways.pop()
            for node in sorted(after.get(way[-1], ())):
                if node == first:
                    return [*way, first]
                if node not in seen:
                    seen.add(node)
                    ways.append([*way, node])
    return []


def _edges(graph: Any) -> Iterator[tuple[str, str]]:
    """From node to node; a router without a map leads to the nodes that its code names, or to any."""
    made = getattr(graph, "builder", None)
    if made is None:
        yield from ((edge.source, edge.target) for edge in graph.get_graph().edges)
        return
    yield from made.edges
    yield from ((source, target) for sources, target in made.waiting_edges for source in sources)
    yield from ((name, target) for name, node in made.nodes.items() for target in node.ends or ())
    for source, branches in made.branches.items():
        for branch in branches.values():
            targets = list(branch.ends.values()) if branch.ends else _said(branch.path, set(made.nodes))
            yield from ((source, target) for target in targets)


def _said(router: Any, names: set[str]) -> set[str]:
    code = getattr(getattr(router, "func", None) or getattr(router, "afunc", None), "__code__", None)
    return (code is not None and _words(code)[1] & names) or names
