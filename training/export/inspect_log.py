"""Trees as logs of Inspect (the evaluation framework of the UK AI Security Institute), branches included.

One log for each split and suite, version 2 of the format as JSON: `inspect view` shows it, `read_eval_log` reads it. A
tree is a sample: its conversation is the path that was chosen, every other executed node stands in a branch. A branch
begins at an anchor, `node-7` for what node 7 led to, and may have branches of its own; the timeline of a sample nests
them as the tree does. Times of events are in order and no more: a tree keeps when it began and ended, not its nodes.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from treewright import __version__
from treewright.search.segments import parts_of
from treewright.search.store import TreeRow
from treewright.search.tree import Tree
from treewright.search.types import NodeStatus
from treewright.training.export.requests import answer_of, conversation_at
from treewright.training.export.view import Row, View, clean, plain_json

__all__ = ["InspectLog"]

FORMAT = 2
MAIN = "main"
ENDED = frozenset({NodeStatus.TERMINAL, NodeStatus.TRUNCATED, NodeStatus.COMMITTED})


class InspectLog:
    """One log file, written tree by tree: the samples first that are read one at a time, the results at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._outcomes: list[float] = []
        self._epochs: Counter[str] = Counter()
        self._usage: Counter[str] = Counter()
        self._model, self._file = "", path.open("w", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self._close()
        finally:
            self._file.close()

    def write(self, view: View, row: TreeRow) -> bool:
        """Adds a tree; False if it has no finished path to show."""
        shown = _shown(view)
        if shown is None:
            view.skip("trees without a finished path")
            return False
        task = clean(row.task_id)
        self._epochs[task] += 1
        sample = _Sample(view, shown, _time(row.created)).written(task, self._epochs[task])
        if not self._model:
            self._model = clean(row.policy_version) or "unknown"
            self._file.write(
                f'{{"version": {FORMAT}, "status": "success", "eval": {_json(self._spec(row))}, "samples": ['
            )
        else:
            self._file.write(",\n")
        self._file.write(_json(sample))
        if sample["scores"]:
            self._outcomes.append(sample["scores"]["outcome"]["value"])
        for usage in sample["model_usage"].values():
            self._usage.update(usage)
        return True

    def _spec(self, row: TreeRow) -> Row:
        task = clean(row.suite)
        return {
            "created": _time(row.created).isoformat(), "task": task, "task_id": f"{row.tree_id}-{task}",
            "eval_id": row.tree_id, "run_id": clean(row.run), "model": self._model,
            "dataset": {"name": f"{task} {clean(row.split)}"}, "config": {}, "packages": {"treewright": __version__},
        }  # fmt: skip

    def _close(self) -> None:
        """What is known once all samples are."""
        if not self._model:
            return
        mean = sum(self._outcomes) / len(self._outcomes) if self._outcomes else None
        metrics = {"mean": {"name": "mean", "value": mean}} if mean is not None else {}
        results = {
            "total_samples": sum(self._epochs.values()), "completed_samples": sum(self._epochs.values()),
            "scores": [{"name": "outcome", "scorer": "outcome", "metrics": metrics}],
        }  # fmt: skip
        stats = {"model_usage": {self._model: dict(self._usage)}} if self._usage else {}
        self._file.write(f'], "results": {_json(results)}, "stats": {_json(stats)}}}\n')


def _shown(view: View) -> int | None:
    """The leaf whose path is the sample's conversation: the chosen one, else the best finished."""
    leaves = list(view.leaves())
    if view.tree.chosen in leaves:
        return view.tree.chosen
    ends = {leaf: _known(view.tree.outcome_of(leaf)) for leaf in leaves}
    return max(leaves, key=lambda leaf: (-math.inf if (end := ends[leaf]) is None else end, -leaf), default=None)


def _known(value: float) -> float | None:
    return value if value == value and abs(value) != float("inf") else None


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


@dataclass(slots=True)
class _Sample:
    """One tree on its way into a log.

    begun   time of its first event;  events   all of them, in order
    pool    messages of all prompts, each once;  at   message as JSON → its place in the pool
    """

    view: View
    leaf: int
    begun: datetime
    events: list[Row] = field(default_factory=list)
    pool: list[Row] = field(default_factory=list)
    at: dict[str, int] = field(default_factory=dict)
    usage: Counter[str] = field(default_factory=Counter)

    def written(self, task: str, epoch: int) -> Row:
        tree = self.view.tree
        children, path = _turns(self.view), _turn_path(tree, self.leaf)
        main = self._span(MAIN, "agent", MAIN, None, path, children)
        outcome = _known(tree.outcome_of(self.leaf))
        messages, _ = self._prompt(_before(tree, self.leaf))
        last = self._answer(self.leaf)
        return {
            "id": task, "epoch": epoch, "uuid": tree.tree_id, "input": self.view.first(), "target": "",
            "messages": [*messages, last], "output": self._output(self.leaf, last),
            "scores": {} if outcome is None else {"outcome": {"value": outcome, "answer": last["content"]}},
            "metadata": {
                "tree_id": tree.tree_id, "exact": tree.exact, "reasons": [clean(one) for one in tree.reasons],
                "nodes": len(tree), "stopped_by": tree.stopped_by, "goal": clean(tree.task.goal),
            },
            "events": self.events, "events_data": {"messages": self.pool, "calls": []},
            "timelines": [{"name": "Tree", "description": "Every executed node; branches nest as in the tree.",
                           "root": main}],
            "model_usage": {self._model(self.leaf): dict(self.usage)} if self.usage else {},
        }  # fmt: skip

    # -- spans ----------------------------------------------------------------------------------------------------

    def _span(
        self, name: str, kind: str, over: str, anchor: int | None, path: list[int], children: dict[int, list[int]]
    ) -> Row:
        """The span of a path, and of what branches off it, deepest calls last.

        over  the span that it stands in;  anchor  the node after which it begins; None for the path that is shown
        """
        # Each entry is a path to write and the span that its own goes into; trees may be deeper than Python's stack.
        top: Row = {}
        waiting = [(name, kind, over, anchor, path, top)]
        while waiting:
            name, kind, over, anchor, path, place = waiting.pop()
            place |= {"type": "span", "id": name, "name": name, "span_type": kind, "content": [], "branches": []}
            self._event("span_begin", name, id=name, parent_id=None if anchor is None else over, type=kind, name=name)
            if anchor is not None:
                place["branched_from"] = f"node-{anchor}"
                place["content"].append(self._event("branch", name, from_anchor=f"node-{anchor}"))
            else:
                place["content"].append(self._event("anchor", name, anchor_id="node-0"))
            for node in path:
                place["content"] += self._turn(node, name, anchor is None)
            self._event("span_end", name, id=name)
            for above in path if anchor is not None else (0, *path):
                for child in children.get(above, ()):
                    if child not in path:
                        inner: Row = {}
                        place["branches"].append(inner)
                        waiting.append((f"branch-{child}", "branch", name, above, _down(child, children), inner))
        return top

    def _turn(self, node: int, span: str, main: bool) -> Iterator[Row]:
        """A turn: what the model was asked and said, what its calls led to, and the place to come back to."""
        tree = self.view.tree
        messages, tools = self._prompt(_before(tree, node))
        answer = self._answer(node)
        output = self._output(node, answer)
        self.usage.update(output.get("usage", {}))
        yield self._event(
            "model", span, model=self._model(node), input=[], input_refs=self._refs(messages), tools=tools,
            tool_choice="auto", config={}, output=output, metadata=self._about(node),
        )  # fmt: skip
        for call in answer.get("tool_calls", ()):
            yield self._event(
                "tool", span, id=call["id"], function=call["function"], arguments=call["arguments"],
                result=self.view.seen(node) if len(answer["tool_calls"]) == 1 else "",
            )  # fmt: skip
        outcome = _known(tree.outcome_of(node)) if tree.status[node] in ENDED else None
        if outcome is not None:
            final = main and node == self.leaf
            yield self._event("score", span, score={"value": outcome}, scorer="outcome", intermediate=not final)
        yield self._event("anchor", span, anchor_id=f"node-{node}")

    def _event(self, kind: str, span: str, **fields: Any) -> Row:
        """Notes an event, and gives its place in a timeline."""
        number = len(self.events)
        uuid = f"{self.view.tree.tree_id}-{number}"
        when = (self.begun + timedelta(microseconds=number)).isoformat()
        self.events.append({
            "event": kind, "uuid": uuid, "span_id": span, "timestamp": when, "working_start": number * 1e-6, **fields,
        })  # fmt: skip
        return {"type": "event", "event": uuid}

    # -- what was said --------------------------------------------------------------------------------------------

    def _model(self, node: int) -> str:
        return str(self.view.common(node)["policy_version"]) or "unknown"

    def _prompt(self, above: int) -> tuple[list[Row], list[Row]]:
        messages, tools = conversation_at(self.view, above)
        told = [_tool(one["function"]) for one in tools]
        return [_message(one) for one in messages], told

    def _answer(self, node: int) -> Row:
        tree = self.view.tree
        asked = bool(conversation_at(self.view, _before(tree, node))[1])
        if asked or tree.action[node] is None:
            return _message(answer_of(tree.action[node], tree.text[node]))
        said = _message({"role": "assistant", **self.view.said(node)})
        action = tree.action[node]
        calls = [
            {
                "id": f"call_{node}_{i}", "function": clean(call.name), "arguments": plain_json(dict(call.arguments)),
                "type": "function",
            }
            for i, call in enumerate(action.calls if action is not None else ())
        ]  # fmt: skip
        return {**said, "tool_calls": calls} if calls else said

    def _output(self, node: int, answer: Row) -> Row:
        stop = "tool_calls" if answer.get("tool_calls") else "stop"
        choice = {"message": {**answer, "source": "generate"}, "stop_reason": stop}
        out: Row = {"model": self._model(node), "completion": answer["content"], "choices": [choice]}
        read, ids, _ = self._drawn(node)
        if ids:
            out["usage"] = {"input_tokens": read, "output_tokens": len(ids), "total_tokens": read + len(ids)}
        return out

    def _drawn(self, node: int) -> tuple[int, list[int], list[float]]:
        """Tokens of the prompt, and the ids and log-probs of all parts of the response."""
        tree = self.view.tree
        parts = parts_of(tree, node)
        ids = [one for part in parts for one in tree.ids[part]]
        read = len(tree.context_ids(tree.parent[parts[0]])) if ids else 0
        return read, ids, [one for part in parts for one in tree.logprobs[part]]

    def _refs(self, messages: list[Row]) -> list[list[int]]:
        """Ranges [first, after the last] of the pool, which hold these messages in order."""
        refs: list[list[int]] = []
        for message in messages:
            key = json.dumps(message, sort_keys=True)
            place = self.at.setdefault(key, len(self.pool))
            if place == len(self.pool):
                self.pool.append(message)
            if refs and refs[-1][1] == place:
                refs[-1][1] += 1
            else:
                refs.append([place, place + 1])
        return refs

    def _about(self, node: int) -> Row:
        """The node's place and value in the tree, with the tokens that were drawn."""
        tree, value = self.view.tree, _known(float(self.view.q[node]))
        about: Row = {
            "node": node, "parent": tree.parent[node], "status": tree.status[node].value, "mult": tree.mult[node],
            "share": tree.share[node], "credit": float(self.view.coef[node]), "on_policy": self.view.on_policy(node),
        }  # fmt: skip
        if value is not None:
            about["value"] = value
        _, ids, logprobs = self._drawn(node)
        return {**about, "token_ids": ids, "logprobs": logprobs} if ids else about


def _before(tree: Tree, node: int) -> int:
    """The node at whose prompt a turn was begun: parts of a response have none of their own."""
    above = tree.parent[node]
    while above > 0 and tree.in_turn(above):
        above = tree.parent[above]
    return above


def _turn_path(tree: Tree, leaf: int) -> list[int]:
    return [node for node in tree.path(leaf)[1:] if not tree.in_turn(node)]


def _turns(view: View) -> dict[int, list[int]]:
    """Turns that were executed and can be read, by the node at whose prompt they were drawn."""
    tree, found = view.tree, dict[int, list[int]]()
    reached = {0}
    for node in range(1, len(tree)):
        if tree.in_turn(node) or not view.executed(node):
            continue
        above = _before(tree, node)
        if above in reached and view.readable(node):
            reached.add(node)
            found.setdefault(above, []).append(node)
    return found


def _down(node: int, children: dict[int, list[int]]) -> list[int]:
    """The path from a node to a leaf, by first children."""
    path = [node]
    while children.get(path[-1]):
        path.append(children[path[-1]][0])
    return path


def _message(message: Row) -> Row:
    out: Row = {"role": message["role"], "content": message["content"]}
    if message.get("tool_calls"):
        out["tool_calls"] = [
            {"id": c["id"], "function": c["function"]["name"], "arguments": _arguments(c["function"]["arguments"]),
             "type": "function"}
            for c in message["tool_calls"]
        ]  # fmt: skip
    if message["role"] == "tool":
        out["tool_call_id"] = message["tool_call_id"]
    return out


def _arguments(text: str) -> Row:
    """Calls of an agent carry their arguments as JSON, which a model may have spoilt."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = None
    return found if isinstance(found, dict) else {"text": text}


def _tool(function: Row) -> Row:
    """A tool as it is told to a model; of its schema, the part that Inspect has a form for."""
    schema = function.get("parameters") or {}
    return {
        "name": function["name"], "description": function.get("description", ""),
        "parameters": {
            "type": "object", "properties": schema.get("properties", {}), "required": list(schema.get("required", ()))
        },
    }  # fmt: skip
