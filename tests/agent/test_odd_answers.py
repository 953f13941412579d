"""What models and their servers say that nobody meant, as fuzzing found it: read, or refused in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from treewright.agent.policies.actions import repair_action
from treewright.agent.policies.answers import Malformed, read, refusal
from treewright.agent.policies.worked import load_worked
from treewright.agent.runs.ping import read_lines
from treewright.envs.errors import TreewrightError
from treewright.envs.tools.wire import Wire
from treewright.envs.types import ToolSpec
from treewright.search.rules.plan_memory import PlanMemory
from treewright.search.store.query import parse_where

HUGE = "1" + "0" * 400
DEEP = '{"a":' * 900 + "1" + "}" * 900
TOOLS = (ToolSpec("look", "Looks.", {"type": "object", "properties": {"x": {}}}),)


@pytest.mark.parametrize("text", ["look {{", "x {look}", "look {'x': {1, 2}}", "look {'x': b'a'}", "look {'x': 1e999}"])
def test_what_python_reads_and_json_cannot_spell_is_no_repaired_action(text: str) -> None:
    assert repair_action(text, TOOLS) == text


@pytest.mark.parametrize("loc", ["3", "1e999", "null", '"messages"', "{}"])
def test_a_refusal_with_an_odd_place_keeps_its_words(loc: str) -> None:
    assert refusal(422, b'{"detail": [{"loc": %b, "msg": "must be user"}]}' % loc.encode()).reason == "must be user"


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices": [{"text": "x", "token_ids": [%b]}]}' % HUGE.encode(),
        b'{"choices": [{"text": "x", "token_ids": [-1]}]}',
        DEEP.encode(),
        b'{"choices": %b}' % DEEP.encode(),
        b"[" * 5000,
    ],
)
def test_an_answer_that_cannot_be_held_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        read(body)


def test_counts_and_log_probs_that_no_float_holds_are_unknown() -> None:
    body: dict[str, Any] = {"choices": [{"text": "x", "logprobs": {"token_logprobs": [-0.5, 10**400]}}]}
    reply = read(json.dumps({**body, "usage": {"completion_tokens": 10**400, "prompt_tokens": 3.2}}).encode())
    assert reply.usage is not None and (reply.usage.completion_tokens, reply.usage.prompt_tokens) == (None, 4)
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None and str(logprobs.token_logprobs) == "[-0.5, nan]"


def test_one_tool_that_is_nested_too_deeply_does_not_lose_the_others_nor_an_answer_its_call() -> None:
    deep: Any = []
    for _ in range(900):
        deep = [deep]
    wire = Wire("server")
    listed = wire._tools({"tools": [{"name": "deep", "inputSchema": {"x": deep}}, {"name": "look"}]}, True)
    assert [tool["name"] for tool in listed["tools"]][-1] == "look"
    from mcp_types import JSONRPCRequest

    asked = JSONRPCRequest(jsonrpc="2.0", id=1, method="tools/call", params={"name": "look"})
    answer = wire._result(asked, {"content": [{"type": "text", "text": deep}]})
    assert answer["isError"] and "look was called and answered" in answer["content"][-1]["text"]


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b'{"prompt": "\xff"}', b'{"prompt": ' + DEEP.encode(), b"{}"])
def test_files_of_requests_that_cannot_be_read_are_told(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(text)
    with pytest.raises(TreewrightError, match=r"write one request a line|write \{\"prompt\""):
        read_lines(tmp_path / "x")


@pytest.mark.parametrize("text", [b"\xff", b'{"suite": ' + DEEP.encode() + b"}", b"3", b'{"suite": "a"}'])
def test_memories_of_plans_and_worked_examples_that_are_none_are_told(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(text)
    with pytest.raises(TreewrightError, match=r"line 1 is not a plan: .*treewright plans"):
        PlanMemory.load(tmp_path / "x")
    with pytest.raises(TreewrightError, match=r"no worked examples in .*treewright model examples"):
        load_worked(tmp_path / "x")


def test_a_filter_that_is_nested_too_deeply_is_a_text() -> None:
    assert parse_where([f"goal={DEEP}"]) == {"goal =": DEEP}
