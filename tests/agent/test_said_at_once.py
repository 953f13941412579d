"""Small things that a newcomer is told at once: how many tasks there are, and what a setting means."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typing_lines import main_said

from treewright.agent.config import explained


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def line(*words: str) -> tuple[Any, str]:
        code, told = main_said(words, monkeypatch, capsys)
        return code, " ".join(told.split())

    return line


DESK = """
class Desk:
    def look(self, at: str) -> str:
        return at
def reward(task, history):
    return 1.0
def walker(task, turns, tools, rng):
    return 'look {"at": "x"}'
"""
PARTS = ("--suites", "said_desk:Desk", "--tasks-file", "tasks.jsonl", "--reward", "said_desk:reward")
POLICY = ("--policy", "scripted:said_desk:walker", "--set", "search.max_tokens=32")


@pytest.mark.parametrize("given", [("--tasks", "100"), ("--set", "eval.tasks=100"), ("--config", "run.toml"), ()])
def test_more_held_out_tasks_than_there_are_is_said_where_they_were_asked_for(
    typed: Callable[..., Any], tmp_path: Path, given: tuple[str, str]
) -> None:
    tasks = [f'{{"id": "{n}", "goal": "look", "horizon": 1, "split": "test"}}\n' for n in range(3)]
    (tmp_path / "tasks.jsonl").write_text("".join(tasks))
    (tmp_path / "said_desk.py").write_text(DESK)
    (tmp_path / "run.toml").write_text("[eval]\ntasks = 100\n")
    sys.path.insert(0, str(tmp_path))
    try:
        code, told = typed("eval", *PARTS, *POLICY, *given)
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("said_desk", None)
    assert code == 0 and "100.0 %" in told
    assert ("has 3 tasks in the split 'test', not 100" in told) is bool(given)


@pytest.mark.parametrize(("word", "says"), [
    ("search.max_tokens", "search.max_tokens"), ("max_tok", "search.max_tokens"), ("same page", "worlds.same_page"),
])  # fmt: skip
def test_a_setting_is_explained_by_its_name_or_a_part_of_it(typed: Callable[..., Any], word: str, says: str) -> None:
    code, told = typed("config", "--explain", word)
    assert code == 0 and says in told and len(told) > 60


def test_a_word_that_no_setting_has_says_what_to_type(typed: Callable[..., Any]) -> None:
    code, told = typed("config", "--explain", "zzz")
    assert code == 2 and "type: treewright config --explain" in told


def test_every_setting_is_explained_one_by_one(typed: Callable[..., Any]) -> None:
    code, told = typed("config", "--explain")
    assert code == 0 and len(explained()) > 50
    for key, meaning in explained().items():
        assert len(meaning.split()) >= 2, key
        assert f"{key} {' '.join(meaning.split())}" in told, key
