"""Conversations as an agent asked them: messages and tools out of the requests that a tree keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from treewright.envs.types import Action
from treewright.search.tree import Tree
from treewright.training.export.view import Row, View, clean

__all__ = ["answer_of", "conversation_at", "ends", "request_at"]

SAY = "say"


def request_at(tree: Tree, node: int) -> Mapping[str, Any] | None:
    """What an agent asked at a node; None in trees of other worlds."""
    seen = tree.observation[node]
    parts = seen.parts if seen is not None else ()
    return next((part for part in parts if part.get("type") == "request"), None)


def answer_of(action: Action | None, text: str) -> Row:
    """An answer as a message in OpenAI's form: its words, and the tools that it calls."""
    if action is None:
        return {"role": "assistant", "content": clean(text)}
    said, calls = "", list[Row]()
    for i, call in enumerate(action.calls):
        if call.name == SAY and i == 0:
            said = clean(str(call.arguments.get("text", "")))
        else:
            given = json.dumps(dict(call.arguments), ensure_ascii=False)
            function = {"name": clean(call.name), "arguments": clean(given)}
            calls.append({"id": f"call_{len(calls)}", "type": "function", "function": function})
    return (
        {"role": "assistant", "content": said, "tool_calls": calls} if calls else {"role": "assistant", "content": said}
    )


def conversation_at(view: View, node: int) -> tuple[list[Row], list[Row]]:
    """(messages, tools) in OpenAI's form, in which the children of `node` are drawn."""
    tree = view.tree
    request = request_at(tree, node)
    if request is None:
        return [dict(message) for message in view.messages(node)], []
    path = tree.path(node)
    tools = [{"type": "function", "function": one} for one in json.loads(request["tools"])]
    return _messages(tree, path, len(path) - 1), tools


def _messages(tree: Tree, path: list[int], depth: int) -> list[Row]:
    request = request_at(tree, path[depth])
    if request is None:
        return []
    if request["link"] == "again":  # the same request, for its next answer
        return _messages(tree, path, depth - 1)
    before: list[Row] = []
    if request["start"]:
        of = request["of"]
        answer = path[of]
        before = [*_messages(tree, path, of - 1), answer_of(tree.action[answer], tree.text[answer])]
    return [*before, *map(_plain, _related(request["messages"], before))]


def _related(messages: list[Mapping[str, Any]], before: list[Row]) -> Iterator[Mapping[str, Any]]:
    """Results bear the ids that the calls of the answer before them have here."""
    calls = iter([c["id"] for c in (before[-1].get("tool_calls") or [])] if before else [])
    for one in messages:
        yield {**one, "tool_call_id": next(calls, one.get("tool_call_id", ""))} if one["role"] == "tool" else one


def _plain(message: Mapping[str, Any]) -> Row:
    out: Row = {"role": message["role"], "content": clean(message["content"])}
    if message.get("tool_calls"):
        out["tool_calls"] = [
            {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}}
            for c in message["tool_calls"]
        ]
    if message["role"] == "tool":
        out["tool_call_id"] = message.get("tool_call_id", "")
    return out


def ends(tree: Tree, leaf: int) -> list[int]:
    """The nodes of a path whose conversation nothing on the path goes on from: its last node, and where a context was
    given up or a helper was done."""
    path = tree.path(leaf)
    continued = {
        path[request["of"]] for node in path if (request := request_at(tree, node)) is not None and request["start"]
    }
    asked = request_at(tree, 0) is not None
    return [node for node in path[1:] if node not in continued] if asked else path[-1:]
