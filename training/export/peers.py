"""Trees in the forms of others, as JSON lines: OpenAI's fine-tuning and preference files, verifiers' traces.

treewright export data/mine --name mine --formats openai_sft,openai_preference,verifiers --file-type jsonl
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from treewright.search.tree import Tree
from treewright.training.export.atif18 import atif18
from treewright.training.export.requests import answer_of, conversation_at, ends, request_at
from treewright.training.export.rows import couples_of
from treewright.training.export.view import Row, View, clean, known

__all__ = ["PEERS", "openai_preference", "openai_sft", "verifiers_trace"]


def openai_sft(view: View, paths: str = "best", min_outcome: float = 1.0 - 1e-6) -> Iterator[Row]:
    """OpenAI's fine-tuning format: a conversation of a good path with its tools; each answer in it is a target."""
    for leaf in view.best(paths, min_outcome):
        for node in ends(view.tree, leaf):
            messages, tools = conversation_at(view, view.tree.parent[node])
            row: Row = {"messages": [*messages, answer_of(view.tree.action[node], view.tree.text[node])]}
            if not tools:
                row["messages"][-1] = {"role": "assistant", "content": clean(view.tree.text[node])}
            yield {**row, **({"tools": tools, "parallel_tool_calls": True} if tools else {})}


def openai_preference(view: View, min_gap: float = 0.1, pairs: str = "extremes") -> Iterator[Row]:
    """OpenAI's preference format: two answers to one conversation, the better one preferred."""
    tree = view.tree

    def said(node: int) -> Row:
        request = request_at(tree, tree.parent[node])
        if request is not None and json.loads(request["tools"]):
            return answer_of(tree.action[node], tree.text[node])
        return {"role": "assistant", "content": clean(tree.text[node])}

    for branch, good, bad, _ in couples_of(view, said, min_gap, pairs):
        messages, tools = conversation_at(view, branch)
        asked = {"messages": messages, "tools": tools, "parallel_tool_calls": True} if tools else {"messages": messages}
        yield {"input": asked, "preferred_output": [said(good)], "non_preferred_output": [said(bad)]}


# -- verifiers ------------------------------------------------------------------------------------------------------


def verifiers_trace(view: View) -> Iterator[Row]:
    """verifiers' Trace (version 1 of the package's 0.4): one for each finished path, with our credit in `advantages`.

    Nodes hold the tokens that they add, as the policy received and sampled them. A prompt that does not begin with an
    earlier prompt and its answer begins a branch of its own, as verifiers keeps it. Paths share nodes: a node's
    SPLIT-LOO coefficient stands in the first trace that holds it, and 0 in the others, so that the traces of a tree
    together give the tree's gradient once.
    """
    given: set[int] = set()
    for leaf in view.leaves():
        yield _trace(view, leaf, given)


def _trace(view: View, leaf: int, given: set[int]) -> Row:
    tree = view.tree
    graph = _Graph(view, given)
    for node in tree.path(leaf)[1:]:
        graph.add(node)
    outcome = known(tree.outcome_of(leaf))
    return {
        "version": 1,
        "id": _id(tree, leaf),
        "task": {
            "type": "Task",
            "data": {"idx": _number(tree.task.id), "name": clean(tree.task.id), "prompt": clean(tree.task.goal)},
        },
        "nodes": graph.nodes,
        "rewards": {} if outcome is None else {"outcome": {"score": outcome, "weight": 1.0}},
        "info": {
            "treewright": {
                **view.common(leaf), "leaf": leaf, "weight": tree.mass[leaf], "chosen": leaf == tree.chosen,
                "reasons": [clean(reason) for reason in tree.reasons],
            }
        },
        "is_completed": True,
        "ok": True,
        "stop_condition": tree.status[leaf].value,
    }  # fmt: skip


class _Graph:
    """Messages of a path with the tokens that each adds."""

    def __init__(self, view: View, given: set[int]) -> None:
        self.view, self.given, self.nodes = view, given, list[Row]()
        self.held: list[tuple[tuple[int, ...], int]] = []  # prompt and answer, and the graph's node that ends there

    def add(self, node: int) -> None:
        tree = self.view.tree
        prompt, said = tree.context_ids(tree.parent[node]), tree.ids[node]
        messages, tools = conversation_at(self.view, tree.parent[node])
        before, at = next(((ids, i) for ids, i in reversed(self.held) if ids and prompt[: len(ids)] == ids), ((), None))
        fresh = messages if at is None else messages[self._length(at) :]
        delta = prompt[len(before) :]
        parent = at
        for i, message in enumerate(fresh):
            # The tokens between two answers are one stretch: they stand with the first message of it.
            ids = list(delta) if i == 0 else []
            parent = self._push(parent, message, ids, [False] * len(ids), tools)
        lead = list(delta) if not fresh else []
        answer = answer_of(tree.action[node], tree.text[node]) if tools else {"content": clean(tree.text[node])}
        credit = 0.0 if node in self.given else float(self.view.coef[node])
        self.given.add(node)
        self.nodes.append({
            "parent": parent, "message": _message({"role": "assistant", **answer}), "sampled": True,
            "token_ids": [*lead, *said], "mask": [False] * len(lead) + [True] * len(said),
            "logprobs": list(tree.logprobs[node]),
            "advantages": [credit] * len(said),
        })  # fmt: skip
        self.held.append((prompt + said if prompt else (), len(self.nodes) - 1))

    def _push(self, parent: int | None, message: Row, ids: list[int], mask: list[bool], tools: list[Row]) -> int:
        row: Row = {"parent": parent, "message": _message(message), "token_ids": ids, "mask": mask}
        if parent is None and tools:
            row["tools"] = [{"type": "function", **one["function"]} for one in tools]
        self.nodes.append(row)
        return len(self.nodes) - 1

    def _length(self, at: int | None) -> int:
        """Messages from the branch's first one to this."""
        count = 0
        while at is not None:
            count, at = count + 1, self.nodes[at]["parent"]
        return count


def _message(message: Row) -> Row:
    out: Row = {"role": message["role"], "content": message["content"]}
    if message.get("tool_calls"):
        out["tool_calls"] = [
            {"id": c["id"], "name": c["function"]["name"], "arguments": c["function"]["arguments"]}
            for c in message["tool_calls"]
        ]
    if message["role"] == "tool":
        out["tool_call_id"] = message["tool_call_id"]
    return out


def _id(tree: Tree, leaf: int) -> str:
    return f"{tree.tree_id}-{leaf}"


def _number(name: str) -> int:
    digits = "".join(c for c in name if c.isdigit())
    return int(digits[:9]) if digits else 0


PEERS: dict[str, Any] = {
    "atif18": atif18, "openai_sft": openai_sft, "openai_preference": openai_preference, "verifiers": verifiers_trace,
}  # fmt: skip
