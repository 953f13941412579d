"""Datasets in and out, from the command line: what is odd is said by place, what is empty says why."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
from export_store import fill
from not_none import not_none

from treewright.search.store import TreeStore

HELPERS = str(Path(__file__).parents[1] / "helpers")
ASKED = {"role": "user", "content": "book a table for two"}
TALK = {
    "id": "t1",
    "success": True,
    "messages": [
        ASKED,
        {"role": "assistant", "content": [
            {"type": "text", "text": "I book it."},
            {"type": "tool_use", "id": "u1", "name": "book", "input": {"people": 2}},
        ]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "u1", "content": "table 7"}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "u2", "name": "pay", "input": {"coins": 3}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "u2", "content": "paid"}]},
        {"role": "assistant", "content": "done"},
    ],
}  # fmt: skip


def call(*words: Any, cwd: Path, code: int = 0) -> str:
    path = os.pathsep.join([*os.environ.get("PYTHONPATH", "").split(os.pathsep), HELPERS])
    here = {**os.environ, "PYTHONPATH": path, "COLUMNS": "120", "NO_COLOR": "1"}
    done = forked.treewright(words, cwd, here)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_imported_calls_are_shown_and_odd_rows_are_left_out_by_place(tmp_path: Path) -> None:
    odd = {"messages": [ASKED, {"role": "assistant", "content": [{"type": "hologram"}]}]}
    lines = ["\ufeff" + json.dumps(TALK), json.dumps(odd), "{half", json.dumps({**TALK, "id": "t2", "suite": ""})]
    (tmp_path / "talks.jsonl").write_text("\n".join(lines), encoding="utf-8")
    out = call("import", "talks.jsonl", "--name", "talks", cwd=tmp_path)
    assert "2 trees with 8 nodes added" in out and "2 rows left out" in out
    assert "talks.jsonl, line 2: messages[1].content[0].type: 'hologram'" in out
    assert "talks.jsonl, line 3: not valid JSON" in out and "2 conversations list no tools" in out
    tree = not_none(re.search(r"[0-9a-f]{8}", call("show", "--name", "talks", cwd=tmp_path)))[0]
    shown = call("show", tree, "--name", "talks", cwd=tmp_path)
    assert "book 2" in shown and "pay 3" in shown and "nothing" not in shown
    assert "line 2" in call("import", "talks.jsonl", "--name", "other", "--strict", cwd=tmp_path, code=2)
    (tmp_path / "odd.jsonl").write_text(json.dumps(odd))
    assert "hologram" in call("import", "odd.jsonl", "--name", "third", cwd=tmp_path, code=2)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("stored") / "trees.sqlite"
    with TreeStore.open(path) as store:
        asyncio.run(fill(store))
    return str(path)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--formats", "sft", "--min-outcome", "50"], "sft: trees without a path that returns 50 or more (6)"),
        (["--formats", "dpo", "--min-gap", "50"], "dpo: siblings whose values are closer than the minimum gap"),
        (["--formats", "prefix", "--paths", "chosen", "--min-outcome", "50"], "prefix: trees whose chosen path does"),
    ],
)
def test_an_export_without_rows_says_why_and_writes_nothing(
    stored: str, tmp_path: Path, options: list[str], why: str
) -> None:
    out = call("export", "d", "--store", stored, *options, cwd=tmp_path, code=2)
    assert "6 trees pass the filter and give no row, so nothing was written" in out and why in out
    assert not (tmp_path / "d").exists()


def test_an_export_says_why_one_format_has_no_row_and_how_long_rows_are(stored: str, tmp_path: Path) -> None:
    out = call("export", "d", "--store", stored, "--formats", "sft,dpo,raw", "--min-gap", "50", cwd=tmp_path)
    assert re.search(r"dpo +0 rows, \d+ left out: siblings whose values are closer", out)
    assert re.search(r"the longest row has \d+ tokens; TRL cuts rows at max_length", out)


def test_a_store_of_postgresql_is_exported_and_imported_by_its_url(
    stored: str, new_database: Callable[[], str], tmp_path: Path
) -> None:
    url, other = new_database(), new_database()
    call("store", "merge", url, stored, cwd=tmp_path)
    assert "6 trees" in call("export", "d", "--store", url, "--formats", "raw", "--file-type", "jsonl", cwd=tmp_path)
    assert "6 trees" in call("import", "d", "--store", other, cwd=tmp_path)
    with TreeStore.open(stored, read_only=True) as one, TreeStore.open(other, read_only=True) as two:
        digests = [{store.load(row.tree_id).digest() for row in store.trees()} for store in (one, two)]
        assert digests[0] == digests[1]


def test_a_run_is_not_lost_to_one_odd_task(tmp_path: Path) -> None:
    tasks = [
        {"id": "one", "goal": "reach \ud83d the corner", "data": {"size": 2}, "split": ""},
        {"id": "two", "gaol": "reach it"},
        {"id": "three", "goal": "reach\u2028it", "horizon": None},
    ]
    (tmp_path / "tasks.jsonl").write_text("\ufeff" + "\n".join(map(json.dumps, tasks)), encoding="utf-8")
    (tmp_path / "own.py").write_text("def reward(task, history):\n    return 0.0\n")
    values = ("worlds.tasks_file=tasks.jsonl", 'worlds.suites=["maze"]', "worlds.reward=own:reward")
    line = ["--policy", "scripted:mazewalk:walker", *(w for v in values for w in ("--set", v))]
    out = call("collect", "--name", "o", "--tasks", "3", *line, cwd=tmp_path)
    assert "2 tasks read, 1 lines left out: tasks.jsonl, line 2: no field named 'gaol'; did you mean 'goal'?" in out
    listed = call("show", "--name", "o", cwd=tmp_path)
    assert listed.count("done") >= 2
