"""What nobody rated is neither right nor wrong, in stores, lists, reports and exports."""

from __future__ import annotations

import asyncio
import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from treewright.agent.cli.store import store_app
from treewright.agent.runs.anew import lost_in
from treewright.agent.view.charts_report import write_report
from treewright.search.store import TreeStore
from treewright.search.store.upkeep import stats
from treewright.training.export import ExportOptions, TreeFilter, export_dataset, grown_trees, import_trees
from treewright.training.export.written import problems

TALK = [
    {"role": "user", "content": "Find cats."},
    {"role": "assistant", "content": 'search {"q": "cats"}'},
    {"role": "user", "content": "three cats"},
    {"role": "assistant", "content": "There are three."},
    {"role": "user", "content": "Thanks."},
    {"role": "assistant", "content": 'answer {"text": "bye"}'},
]


def rated(name: str, **told: Any) -> dict[str, Any]:
    return {"id": name, "messages": TALK, **told}


@pytest.fixture
def store_of_some(tmp_path: Path) -> Path:
    """A right line, a wrong one, and two whose reward nobody knows."""
    path = tmp_path / "some.sqlite"
    rows = (rated("right", reward=1), rated("wrong", reward=0), rated("bare"), rated("nan", reward=math.nan))
    talks = tmp_path / "talks.jsonl"
    talks.write_text("\n".join(map(json.dumps, rows)))
    with TreeStore.open(path) as store:
        asyncio.run(import_trees(talks, store))
    return path


def test_a_line_without_a_reward_is_neither_right_nor_wrong(store_of_some: Path) -> None:
    with TreeStore.open(store_of_some, read_only=True) as store:
        rows = {row.task_id: row for row in store.trees()}
        found = {name: (row.outcome, row.success) for name, row in rows.items()}
        assert found == {"right": (1.0, True), "wrong": (0.0, False), "bare": (None, None), "nan": (None, None)}
        assert math.isnan(store.load(rows["bare"].tree_id).outcome_of(3)) and not lost_in(store, "talks")
    counts = stats(store_of_some)
    assert counts.groups == {("talks", "imported", "done"): (4, 1)}
    assert counts.unknown == {("talks", "imported", "done"): 2}


def test_exports_leave_what_nobody_rated_out_of_right_and_wrong(store_of_some: Path, tmp_path: Path) -> None:
    def exported(name: str, where: TreeFilter | None = None, **options: Any) -> tuple[Any, list[Any]]:
        with TreeStore.open(store_of_some, read_only=True) as store:
            given = ExportOptions(file_type="jsonl", **options)
            report = export_dataset(store, tmp_path / name, given, where or TreeFilter())
        lines = (tmp_path / name / options["formats"][0] / "train.jsonl").read_text().splitlines()
        return report, [json.loads(line) for line in lines]

    report, rows = exported("raw", formats=("raw",))
    assert {row["task_id"]: (row["outcome"], row["success"]) for row in rows} == {
        "right": (1.0, True), "wrong": (0.0, False), "bare": (None, None), "nan": (None, None),
    }  # fmt: skip
    assert not any(problems(row) for row in rows)
    assert (report.solved, report.unknown) == (1, 2) and "of 2 that is not known" in (
        tmp_path / "raw" / "README.md"
    ).read_text()
    assert {row["task_id"] for row in exported("bad", TreeFilter(success=False), formats=("raw",))[1]} == {"wrong"}
    report, rows = exported("sft", formats=("sft",), paths="all", min_outcome=-math.inf)
    assert {(row["task_id"], row["outcome"]) for row in rows} == {("right", 1.0), ("wrong", 0.0)}
    assert report.skipped["sft"]["paths whose reward is not known"] == 2
    for form in ("atif18", "verifiers"):
        with TreeStore.open(store_of_some, read_only=True) as store:
            export_dataset(store, tmp_path / form, ExportOptions(file_type="jsonl", formats=(form,)))
        back = [grown.tree for grown in grown_trees(tmp_path / form / form / "train.jsonl")]
        told = [tree.reward(len(tree) - 1) for tree in back]  # a trace may have branches, which have none of their own
        assert sorted(one for one in told if not math.isnan(one)) == [0.0, 1.0]


def test_a_tree_that_an_older_store_called_wrong_is_not_exported_as_wrong(store_of_some: Path, tmp_path: Path) -> None:
    with sqlite3.connect(store_of_some) as db:
        db.execute("update trees set outcome = 0.0, success = 0 where success is null")
    with TreeStore.open(store_of_some) as store:
        options = ExportOptions(file_type="jsonl", formats=("raw",))
        report = export_dataset(store, tmp_path / "old", options, TreeFilter(success=False))
    assert report.total("raw") == 1


def test_the_report_and_the_list_tell_how_many_are_not_known(store_of_some: Path, tmp_path: Path) -> None:
    with TreeStore.open(store_of_some, read_only=True) as store:
        page = write_report(store, tmp_path / "report").read_text()
    assert "success is that of 2, of 2 it is not known" in page
    shown = CliRunner().invoke(store_app, ["stats", str(store_of_some)])
    assert "1, 2 unknown" in " ".join(shown.output.split())
