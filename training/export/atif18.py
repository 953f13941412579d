"""Paths as ATIF documents of version 1.8, with sub-agents inside and shared prefixes marked.

Written from the format's RFC 0001 (the Harbor project). One document a finished path. Steps that an earlier document
of the same tree holds have `is_copied_context`: whoever imitates them all learns each step once. The conversation of a
helper (a request that `spawns`) is a trajectory of its own in `subagent_trajectories`; the step whose answer it follows
refers to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from treewright import __version__
from treewright.search.tree import Tree
from treewright.training.export.atif import step_of
from treewright.training.export.requests import answer_of, conversation_at, request_at
from treewright.training.export.view import Row, View, clean, known, plain_json

__all__ = ["atif18"]

VERSION = "ATIF-v1.8"


@dataclass(slots=True)
class _Thread:
    """One conversation of a path: its own steps, and where it was begun."""

    name: str
    tools: list[Row]
    steps: list[Row] = field(default_factory=list)
    helpers: list[_Thread] = field(default_factory=list)


def atif18(view: View) -> Iterator[Row]:
    """ATIF 1.8: a document for each finished path, helpers embedded, shared prefixes marked as copied."""
    told: set[int] = set()
    for leaf in view.leaves():
        yield _document(view, leaf, told)
        told.update(view.tree.path(leaf))


def _document(view: View, leaf: int, told: set[int]) -> Row:
    tree = view.tree
    path = tree.path(leaf)
    main = _begun(view, f"{tree.tree_id}-{leaf}", path[0], copied=0 in told)
    owner: dict[int, _Thread] = {}
    current, step_at = main, dict[int, Row]()
    for node in path[1:]:
        above = tree.parent[node]
        request = request_at(tree, above)
        if request is not None and above != 0:
            if request["start"]:
                current = owner[path[request["of"]]]
            elif request["link"] == "spawns":
                current = _begun(view, f"{main.name}-{len(main.helpers) + 1}", above, copied=above in told)
                main.helpers.append(current)
                _refer(step_at[above], current.name)
            elif request["link"] == "rewrites":
                current.steps += _opening(view, above, above in told)
        owner[node] = current
        step = step_at[node] = _answer(view, node, path, request is not None)
        if node in told:
            step["is_copied_context"] = True
        current.steps.append(step)
    return {
        **_written(view, main), "session_id": tree.tree_id,
        "extra": {
            "leaf": leaf, "goal": clean(tree.task.goal), "outcome": known(tree.outcome_of(leaf)),
            "chosen": leaf == tree.chosen,
            "weight": tree.mass[leaf], "reasons": [clean(r) for r in tree.reasons], **view.common(leaf),
        },
        **({"subagent_trajectories": [_written(view, one) for one in main.helpers]} if main.helpers else {}),
    }  # fmt: skip


def _begun(view: View, name: str, node: int, copied: bool) -> _Thread:
    _, tools = conversation_at(view, node)
    return _Thread(name, tools, _opening(view, node, copied))


def _opening(view: View, node: int, copied: bool) -> list[Row]:
    """The messages of a request that goes on from no answer."""
    messages, _ = conversation_at(view, node)
    return [_message(one, copied) for one in messages]


def _message(one: Mapping[str, Any], copied: bool) -> Row:
    source = {"system": "system", "assistant": "agent"}.get(one["role"], "user")
    row: Row = {"source": source, "message": one["content"]}
    if source == "agent":
        row["llm_call_count"] = 0  # shown to the model, not drawn here
    return {**row, "is_copied_context": True} if copied else row


def _answer(view: View, node: int, path: list[int], asked: bool) -> Row:
    """The step of an answer, with what the agent told the model next in the same conversation as its results."""
    tree = view.tree
    step = step_of(view, node)
    if not asked:
        return step
    said = answer_of(tree.action[node], tree.text[node])
    calls = said.get("tool_calls", [])
    step["message"] = said["content"]
    step["extra"].pop("calls_in_message", None)
    step.pop("observation", None)
    step.pop("tool_calls", None)
    if calls:
        names = tree.action[node]
        given = [call for call in (names.calls if names is not None else ()) if call.name != "say"]
        step["tool_calls"] = [
            {"tool_call_id": f"call-{node}-{i}", "function_name": clean(c.name), "arguments": plain_json(c.arguments)}
            for i, c in enumerate(given)
        ]
    results = _results(tree, node, path, len(calls))
    if results:
        step["observation"] = {"results": results}
    return step


def _results(tree: Tree, node: int, path: list[int], calls: int) -> list[Row]:
    """What follows an answer in its own conversation: results of its calls, and words."""
    depth = path.index(node)
    for later in path[depth:]:
        request = request_at(tree, later)
        if request is not None and request["start"] and request["of"] == depth:
            out: list[Row] = []
            for one in request["messages"]:
                row: Row = {"content": clean(one["content"])}
                if one["role"] == "tool" and len(out) < calls:
                    row["source_call_id"] = f"call-{node}-{len(out)}"
                out.append(row)
            return out
    seen = tree.observation[path[-1]] if node == path[-1] else None
    return [{"content": clean(seen.text)}] if seen is not None and seen.text else []


def _refer(step: Row, name: str) -> None:
    results = step.setdefault("observation", {"results": []})["results"]
    results.append({"subagent_trajectory_ref": [{"trajectory_id": name}]})


def _written(view: View, thread: _Thread) -> Row:
    agent: Row = {
        "name": "treewright", "version": __version__,
        "model_name": clean(view.tree.header.policy_version) or "unknown",
    }  # fmt: skip
    if thread.tools:
        agent["tool_definitions"] = thread.tools
    steps = [{"step_id": i, **step} for i, step in enumerate(thread.steps, 1)]
    return {"schema_version": VERSION, "trajectory_id": thread.name, "agent": agent, "steps": steps}
