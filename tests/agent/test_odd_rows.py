"""Rows and files that other people wrote, from the command line: the odd part is left out by place, or refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typing_lines import main_said

USER, ANSWER = {"role": "user", "content": "look"}, {"role": "assistant", "content": "done"}
FOUND = {"role": "tool", "tool_call_id": "1", "content": "found"}
GOOD = {"messages": [USER, ANSWER], "reward": 1.0}


def calling(arguments: str | dict[str, Any], name: str = "search") -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"messages": [USER, said, FOUND, ANSWER], "reward": 1.0}


@pytest.fixture
def typed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")

    def line(*words: str) -> tuple[Any, str]:
        code, told = main_said(words, monkeypatch, capsys)
        told += caplog.text
        caplog.clear()
        return code, " ".join(told.split())

    return line


DEEP = '{"a":' * 5000 + "1" + "}" * 5000
ODD = {
    "a number that JSON has not": (calling('{"q": NaN}'), "arguments: a number that JSON has not"),
    "an infinite number": (calling('{"q": [1e400]}'), "arguments: a number that JSON has not"),
    "a number in an object": (calling({"q": float("inf")}), "arguments: a number that JSON has not"),
    "arguments nested too deeply": (calling(DEEP), "arguments: not JSON: it is nested deeper than"),
    "a number of 5000 digits": (calling('{"q": ' + "9" * 5000 + "}"), "arguments: not JSON: Exceeds the limit"),
    "another format": ({"conversations": [{"from": "human", "value": "hi"}]}, "its fields are conversations"),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_row_of_an_import_is_left_out_by_place_and_the_others_come_in(
    typed: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    row, why = ODD[kind]
    (tmp_path / "talks.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(GOOD)}\n")
    code, told = typed("import", "talks.jsonl", "--name", "t")
    assert code == 0 and "1 trees with 2 nodes" in told and "1 rows left out" in told
    assert "talks.jsonl, line 1: " in told and why in told
    code, told = typed("export", "data", "--name", "t", "--formats", "atif,openai_sft", "--file-type", "jsonl")
    assert code == 0, told


@pytest.mark.parametrize("arguments", ["{}", '{"q": 123456789012345678901234567890}'])
def test_what_parquet_cannot_hold_is_one_sentence_and_goes_as_json_lines(
    typed: Callable[..., Any], tmp_path: Path, arguments: str
) -> None:
    (tmp_path / "talks.jsonl").write_text(f"{json.dumps(calling(arguments))}\n")
    assert typed("import", "talks.jsonl", "--name", "t")[0] == 0
    code, told = typed("export", "data", "--name", "t", "--formats", "atif18")
    assert code == 2 and "atif18: the rows do not fit one table" in told and "--file-type jsonl" in told
    code, told = typed("export", "data2", "--name", "t", "--formats", "atif18", "--file-type", "jsonl")
    (row,) = [json.loads(line) for line in (tmp_path / "data2/atif18/train.jsonl").read_text().splitlines()]
    assert code == 0 and json.loads(arguments) in [
        call["arguments"] for step in row["steps"] for call in step.get("tool_calls") or []
    ]


@pytest.mark.parametrize(("field", "value"), [("seed", 2**63), ("seed", -(2**63) - 1), ("horizon", 10**30)])
def test_a_number_of_a_task_that_no_store_holds_is_left_out_by_line(
    typed: Callable[..., Any], tmp_path: Path, field: str, value: int
) -> None:
    odd = f'{{"id": "a", "goal": "x", "{field}": {value}}}'
    (tmp_path / "tasks.jsonl").write_text(odd + '\n{"id": "b", "goal": "x"}\n')
    (tmp_path / "odd_desk.py").write_text(
        "class Desk:\n    def look(self, at: str) -> str:\n        return at\n"
        "def reward(task, history):\n    return 1.0\n"
        'def walker(task, turns, tools, rng):\n    return \'look {"at": "x"}\'\n'
    )
    sys.path.insert(0, str(tmp_path))
    try:
        words = ("--suites", "odd_desk:Desk", "--reward", "odd_desk:reward", "--policy", "scripted:odd_desk:walker")
        code, told = typed("collect", "--tasks-file", "tasks.jsonl", *words, "--set", "search.expansions=1")
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("odd_desk", None)
    assert code == 0 and f"tasks.jsonl, line 1: field '{field}' must be an integer of at most 64 bits" in told
    assert typed("export", "data", "--name", "run", "--formats", "raw,sft")[0] == 0
