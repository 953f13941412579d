"""Paths as ATIF documents, the Agent Trajectory Interchange Format (RFC 0001 of the Harbor project), version 1.4.

A document is linear, so each finished path of a tree becomes one; ids, values and weights that place it in its tree
stand in `extra`. Only fields of version 1.4 are used, which later versions still allow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from treewright.search.segments import parts_of
from treewright.training.export.view import Row, View, clean, plain_json

__all__ = ["ATIF_VERSION", "atif_documents", "step_of"]

ATIF_VERSION = "ATIF-v1.4"


def atif_documents(view: View, agent_version: str) -> Iterator[tuple[str, Row]]:
    """(file name, document) for each finished path of the tree."""
    for leaf in view.leaves():
        yield f"{view.tree.tree_id}-{leaf}.json", _document(view, leaf, agent_version)


def _document(view: View, leaf: int, agent_version: str) -> Row:
    tree = view.tree
    head = view.messages(0)
    sources = {"system": "system", "user": "user", "assistant": "agent"}
    steps: list[Row] = [{"source": sources[m["role"]], "message": m["content"]} for m in head]
    steps += [step_of(view, node) for node in tree.path(leaf)[1:] if not tree.in_turn(node)]
    totals = [s["metrics"] for s in steps if "metrics" in s]
    extra = _set(
        leaf=leaf,
        goal=clean(tree.task.goal),
        outcome=tree.outcome_of(leaf),
        chosen=leaf == tree.chosen,
        reasons=[clean(r) for r in tree.reasons],
        **{name: value for name, value in view.common(leaf).items() if name != "node"},
    )
    out: Row = {
        "schema_version": ATIF_VERSION,
        "session_id": f"{tree.tree_id}-{leaf}",
        "agent": {
            "name": "treewright",
            "version": agent_version,
            "model_name": clean(tree.header.policy_version) or "unknown",
        },
        "steps": [{"step_id": i, **step} for i, step in enumerate(steps, 1)],
        "final_metrics": {"total_steps": len(steps)},
        "extra": extra,
    }
    if totals:
        out["final_metrics"] |= {
            "total_prompt_tokens": sum(m["prompt_tokens"] for m in totals),
            "total_completion_tokens": sum(m["completion_tokens"] for m in totals),
        }
    return out


def step_of(view: View, node: int) -> Row:
    """One turn as a step of the agent, with its tokens and its place in the tree.

    `message` is the whole text, token for token what was sampled, so it spells the calls that `tool_calls` lists too:
    `calls_in_message` in `extra` tells a reader, who else writes them twice.
    """
    tree = view.tree
    action = tree.action[node]
    calls = [
        {"tool_call_id": f"call-{node}-{i}", "function_name": clean(c.name), "arguments": plain_json(c.arguments)}
        for i, c in enumerate(action.calls if action is not None else ())
    ]
    # The answer to parallel calls is one text, which belongs to none of them alone.
    result = {"source_call_id": calls[0]["tool_call_id"]} if len(calls) == 1 else {}
    out: Row = {"source": "agent", "message": clean(tree.text[node])}
    if calls:
        out["tool_calls"] = calls
    out["observation"] = {"results": [{**result, "content": view.seen(node)}]}
    parts = parts_of(tree, node)
    ids, logprobs = [i for p in parts for i in tree.ids[p]], [x for p in parts for x in tree.logprobs[p]]
    if ids:
        prompt = tree.context_ids(tree.parent[parts[0]])
        out["metrics"] = _set(
            prompt_tokens=len(prompt),
            completion_tokens=len(ids),
            prompt_token_ids=list(prompt),
            completion_token_ids=ids,
            logprobs=logprobs or None,
        )
    seen = tree.observation[node]
    out["extra"] = _set(
        node=node,
        parent=tree.parent[node],
        calls_in_message=True if calls else None,
        status=tree.status[node].value,
        reward=tree.reward(node),
        value=float(view.q[node]),
        weight=tree.mass[node],
        share=tree.share[node],
        mult=tree.mult[node],
        score=tree.score[node],
        effect=tree.effect[node].value,
        error=tree.error[node] and clean(tree.error[node] or ""),
        fingerprint=clean(seen.fingerprint) if seen else None,
        origin=tree.origin[node].value,
        on_policy=view.on_policy(node),
        policy_version=view.common(node)["policy_version"],
    )
    return out


def _set(**given: Any) -> Row:
    """What is known: no None, no NaN."""
    return {k: v for k, v in given.items() if v is not None and not (isinstance(v, float) and not math.isfinite(v))}
