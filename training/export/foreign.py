"""Trajectories in the forms of others as conversations: ATIF documents, verifiers' traces, logs of Inspect.

Each becomes rows in OpenAI's message format (see `messages`), one a conversation: a helper's, and each branch of a log
or trace, is one of its own. A reward goes with the conversation that it was given for, and with no other.
"""

from __future__ import annotations

import json
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.training.export.tables import need_pyarrow

__all__ = ["conversations_in", "read_documents"]

ZSTANDARD = 93  # a method of packing in ZIP archives
NAMES_AT = 26  # in the header before each entry: the lengths of its name and of what more stands there
GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}  # correct, partly, incorrect, no answer
ATTACHED = "attachment://"
Row = dict[str, Any]


def conversations_in(row: Any) -> list[Row] | None:
    """The conversations of one document, in OpenAI's format; None for what is in none of these forms.

    Raises TreewrightError naming the field of a document that lacks what its format says it has.
    """
    reader = _reader(row)
    if reader is None:
        return None
    try:
        return list(reader(row))
    except KeyError as error:
        raise TreewrightError(f"{_NAMES[reader]} without a field {error.args[0]!r}, which it must have") from None
    except (TypeError, AttributeError, ValueError, IndexError) as error:
        raise TreewrightError(
            f"{_NAMES[reader]} that is not in its form: {error}; correct it, or leave it out"
        ) from None


def read_documents(path: Path) -> Iterator[tuple[int, Any]]:
    """(number from 1, document) of a JSON file, or of each sample of a log that Inspect wrote as an archive (.eval).

    Raises TreewrightError for a file that cannot be read.
    """
    try:
        if path.suffix == ".json":
            yield 1, json.loads(path.read_text("utf-8-sig"))
            return
        with zipfile.ZipFile(path) as archive:
            entries = {one.filename: one for one in archive.infolist()}
            head = _entry(path, archive, entries["header.json"])
            samples = sorted(name for name in entries if name.startswith("samples/") and name.endswith(".json"))
            for number, name in enumerate(samples, 1):
                yield number, {**head, "samples": [_entry(path, archive, entries[name])]}
    except (OSError, ValueError, KeyError, RecursionError, zipfile.BadZipFile, zlib.error) as error:
        raise TreewrightError(f"{path} cannot be read: {error}; save it anew, or leave it out") from None


def _entry(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Any:
    """The JSON value of an entry. Inspect packs with Zstandard, which `zipfile` does not read before Python 3.14."""
    if entry.compress_type != ZSTANDARD or sys.version_info >= (3, 14):
        return json.loads(archive.read(entry))
    need_pyarrow(f"reading {path}")
    import pyarrow as pa

    with path.open("rb") as file:
        file.seek(entry.header_offset + NAMES_AT)
        named, more = struct.unpack("<HH", file.read(4))
        file.seek(named + more, 1)
        packed = file.read(entry.compress_size)
    try:
        return json.loads(pa.decompress(packed, entry.file_size, codec="zstd", asbytes=True))
    except (pa.ArrowException, OSError) as error:
        raise TreewrightError(f"{path}: {entry.filename} is damaged: {error}; save the log anew") from None


def _reader(row: Any) -> Callable[[Any], Iterator[Row]] | None:
    if not isinstance(row, Mapping):
        return None
    if str(row.get("schema_version", "")).startswith("ATIF") and "steps" in row:
        return _atif
    if isinstance(row.get("eval"), Mapping) and "version" in row:
        return _inspect
    nodes = row.get("nodes")
    traced = isinstance(nodes, Sequence) and bool(nodes) and isinstance(nodes[0], Mapping) and "message" in nodes[0]
    return _verifiers if traced else None


# -- ATIF -----------------------------------------------------------------------------------------------------------


def _atif(row: Mapping[str, Any]) -> Iterator[Row]:
    extra = row.get("extra") or {}
    name = row.get("trajectory_id") or row.get("session_id")
    told = extra.get("task_id")
    yield {
        **_atif_talk(row), "id": name if told is None else told, "suite": extra.get("suite"),
        "split": extra.get("split"), "reward": extra.get("outcome"),
    }  # fmt: skip
    for helper in row.get("subagent_trajectories") or ():
        yield {**_atif_talk(helper), "id": f"{name}/{helper.get('trajectory_id', '')}"}


def _atif_talk(row: Mapping[str, Any]) -> Row:
    agent = row.get("agent") or {}
    messages: list[Row] = []
    for step in row["steps"]:
        role = {"agent": "assistant", "system": "system"}.get(step["source"], "user")
        message: Row = {"role": role, "content": step.get("message") or ""}
        if step.get("reasoning_content"):
            message["reasoning_content"] = step["reasoning_content"]
        calls = step.get("tool_calls") or ()
        if calls:
            message["tool_calls"] = [_call(c["tool_call_id"], c["function_name"], c.get("arguments")) for c in calls]
            message["calls_in_content"] = (step.get("extra") or {}).get("calls_in_message") is True
        messages.append(message)
        messages += _results(step, {call["tool_call_id"] for call in calls})
    return {"messages": messages, "tools": agent.get("tool_definitions"), "model": agent.get("model_name")}


def _results(step: Mapping[str, Any], calls: set[str]) -> Iterator[Row]:
    for result in (step.get("observation") or {}).get("results") or ():
        content = result.get("content")
        if content is None:
            continue  # it refers to a helper, whose conversation stands for itself
        if result.get("source_call_id") in calls:
            yield {"role": "tool", "tool_call_id": result["source_call_id"], "content": content}
        else:
            yield {"role": "user", "content": content}


def _call(name: str, function: str, arguments: Any) -> Row:
    given = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    return {"id": name, "type": "function", "function": {"name": function, "arguments": given}}


# -- verifiers ------------------------------------------------------------------------------------------------------


def _verifiers(row: Mapping[str, Any]) -> Iterator[Row]:
    """A conversation for each leaf of the graph; the reward is that of the one that ends last."""
    nodes = row["nodes"]
    above = {node.get("parent") for node in nodes}
    leaves = [i for i in range(len(nodes)) if i not in above]
    data = (row.get("task") or {}).get("data") or {}
    name = data.get("name") or data.get("idx", row.get("id"))
    info = (row.get("info") or {}).get("treewright") or {}
    for leaf in leaves:
        path, at = list[int](), leaf
        while at is not None:
            if at in path:
                raise TreewrightError(f"nodes[{at}].parent: the graph goes round; a parent must be an earlier node")
            path.append(at)
            at = nodes[at].get("parent")
        path.reverse()
        messages = [_verifiers_message(nodes[i]["message"]) for i in path]
        if not any(message["role"] == "assistant" for message in messages):
            continue
        last = leaf == leaves[-1]
        told = next((nodes[i]["tools"] for i in path if nodes[i].get("tools")), None)
        yield {
            "messages": messages, "tools": [_openai_tool(tool) for tool in told] if told else None,
            "id": name if last else f"{name}/{leaf}", "suite": info.get("suite"), "split": info.get("split"),
            "model": info.get("policy_version"), "reward": _verifiers_reward(row) if last else None,
        }  # fmt: skip


def _verifiers_message(message: Mapping[str, Any]) -> Row:
    out = {**message, "content": message.get("content") or ""}
    if message.get("tool_calls"):
        out["tool_calls"] = [_call(c["id"], c["name"], c.get("arguments")) for c in message["tool_calls"]]
    return out


def _openai_tool(tool: Mapping[str, Any]) -> Row:
    if "function" in tool:
        return dict(tool)
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def _verifiers_reward(row: Mapping[str, Any]) -> float | None:
    rewards = row.get("rewards") or {}
    known = [float(one["score"]) * float(one.get("weight", 1.0)) for one in rewards.values()]
    return sum(known) if known else None


# -- Inspect --------------------------------------------------------------------------------------------------------


def _inspect(row: Mapping[str, Any]) -> Iterator[Row]:
    """The conversation of each sample, and of each branch: the last call of a model there holds what went before."""
    spec = row["eval"]
    for stored in row.get("samples") or ():
        sample = _attached(stored, stored.get("attachments") or {})
        name = f"{sample['id']}" + (f"/{sample['epoch']}" if sample.get("epoch", 1) != 1 else "")
        common = {"suite": spec.get("task"), "model": spec.get("model")}
        calls = (event for event in sample.get("events") or () if event.get("event") == "model")
        tools = next((call["tools"] for call in calls if call.get("tools")), ())
        told = [_inspect_tool(tool) for tool in tools] or None
        if any(message.get("role") == "assistant" for message in sample.get("messages") or ()):
            messages = [_inspect_message(message) for message in sample["messages"]]
            reward = _inspect_score(sample.get("scores"))
            yield {"messages": messages, "tools": told, "id": name, "reward": reward, **common}
        for span, (asked, score) in _branches(sample).items():
            messages = [_inspect_message(message) for message in asked]
            yield {"messages": messages, "tools": told, "id": f"{name}/{span}", "reward": score, **common}


def _attached(value: Any, texts: Mapping[str, str]) -> Any:
    """The value with the long texts that a sample keeps beside its messages and events."""
    if not texts:
        return value
    if isinstance(value, str):
        return texts.get(value.removeprefix(ATTACHED), value) if value.startswith(ATTACHED) else value
    if isinstance(value, Mapping):
        return {key: one if key == "attachments" else _attached(one, texts) for key, one in value.items()}
    return [_attached(one, texts) for one in value] if isinstance(value, list) else value


def _branches(sample: Mapping[str, Any]) -> dict[str, tuple[list[Row], float | None]]:
    """By branch: the conversation at its end, and its score where it has one."""
    pool = (sample.get("events_data") or {}).get("messages") or ()
    spans, talks = set[str](), dict[str, tuple[list[Row], float | None]]()
    for event in sample.get("events") or ():
        span = event.get("span_id") or ""
        if event.get("event") == "span_begin" and event.get("type") == "branch":
            spans.add(event["id"])
        elif span in spans and event.get("event") == "model" and event["output"].get("choices"):
            asked = list(event.get("input") or ())
            for first, after in event.get("input_refs") or ():
                asked += pool[first:after]
            talks[span] = [*asked, event["output"]["choices"][0]["message"]], None
        elif span in talks and event.get("event") == "score":
            talks[span] = talks[span][0], _inspect_score({"": event["score"]})
    return talks


def _inspect_message(message: Mapping[str, Any]) -> Row:
    content = message.get("content") or ""
    thought = None
    if isinstance(content, list):
        thought = "".join(str(part.get("reasoning", "")) for part in content if part.get("type") == "reasoning") or None
        content = [part for part in content if part.get("type") != "reasoning"]
    out: Row = {"role": message["role"], "content": content}
    if thought:
        out["reasoning_content"] = thought
    if message.get("tool_calls"):
        out["tool_calls"] = [_call(c["id"], c["function"], c.get("arguments")) for c in message["tool_calls"]]
    if message["role"] == "tool":
        out["tool_call_id"] = message.get("tool_call_id")
    return out


def _inspect_tool(tool: Mapping[str, Any]) -> Row:
    kept = {key: tool[key] for key in ("name", "description", "parameters") if key in tool}
    return {"type": "function", "function": kept}


def _inspect_score(scores: Mapping[str, Any] | None) -> float | None:
    """The only score, as a number."""
    values = [one.get("value") for one in (scores or {}).values()]
    if len(values) != 1:
        return None
    value = GRADES.get(values[0]) if isinstance(values[0], str) else values[0]
    return float(value) if isinstance(value, bool | int | float) else None


_NAMES: dict[Callable[[Any], Iterator[Row]], str] = {
    _atif: "an ATIF document", _verifiers: "a trace of verifiers", _inspect: "a log of Inspect",
}  # fmt: skip
