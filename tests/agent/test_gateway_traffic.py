"""Requests that the OpenAI Agents SDK sent, sent again without it: each answer and event is one of OpenAI's own types.

The file is made by test_gateway_agents_sdk.py (make test-clients), which also finds that it is out of date.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from served import KEY, helper, served

from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.envs.types import Task

SENT = [json.loads(line) for line in (Path(__file__).parent / "traffic.jsonl").read_text().splitlines()]
TYPES: dict[tuple[str, bool], TypeAdapter[Any]] = {
    ("chat/completions", False): TypeAdapter(ChatCompletion),
    ("chat/completions", True): TypeAdapter(ChatCompletionChunk),
    ("responses", False): TypeAdapter(Response),
    ("responses", True): TypeAdapter(ResponseStreamEvent),
}


def says(task: Task, turns: Any, tools: Any, rng: Random) -> str:
    """As in the test that made the file: hands over where it may, gives a number where one is asked for."""
    if any(one.name == "transfer_to_sage" for one in tools):
        return "transfer_to_sage {}"
    return '{"age": 3}' if "how old" in task.goal else helper(task, turns, tools, rng)


@pytest.mark.parametrize("number", range(len(SENT)))
async def test_requests_of_the_agents_sdk_are_answered_in_openais_types(number: int) -> None:
    path, body = SENT[number]["path"], SENT[number]["body"]
    streams = bool(body.get("stream"))
    kind = TYPES[path, streams]
    async with served(ScriptedPolicy(says)) as at, httpx.AsyncClient(headers={"x-api-key": KEY}) as web:
        got = await web.post(f"{at}/v1/{path}", json=body)
        assert got.status_code == 200, got.text
    if not streams:
        done = kind.validate_python(got.json())
        assert done.choices if path == "chat/completions" else done.output and done.status == "completed"
        return
    lines = [line[6:] for line in got.text.splitlines() if line.startswith("data: ") and line != "data: [DONE]"]
    events = [kind.validate_python(json.loads(line)) for line in lines]
    if path == "responses":
        assert [e.sequence_number for e in events] == list(range(len(events)))
        assert events[-1].type == "response.completed" and events[-1].response.output
    else:
        assert any(choice.finish_reason for event in events for choice in event.choices)


def test_both_apis_and_both_ways_are_among_them() -> None:
    kinds = {(one["path"], bool(one["body"].get("stream"))) for one in SENT}
    assert kinds == set(TYPES) and any(one["body"].get("tools") for one in SENT)
