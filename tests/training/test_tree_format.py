"""The tree file as docs/tree-format.md gives it: the schema, the invariants, the validator."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.agent.policies.scripted import scripted_choice
from treewright.envs.maze import SUITE
from treewright.search import Budget, Settings, search
from treewright.search.store import TreeStore
from treewright.training.export import ExportOptions, export_dataset
from treewright.training.export.written import problems, tree_schema

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trees")
    asyncio.run(exported(folder))
    return folder / "data" / "raw" / "train.jsonl"


async def exported(folder: Path) -> None:
    policy = scripted_choice([('move {"to": "north"}', 0.5), ('move {"to": "east"}', 0.3), ("what?", 0.2)])
    with TreeStore.open(folder / "t.sqlite") as store:
        for task in SUITE.tasks("train", 2):
            await search(task, SUITE, policy, budget=Budget(expansions=6), settings=Settings(close=True), store=store)
        export_dataset(store, folder / "data", ExportOptions(formats=("raw",), file_type="jsonl"))


@pytest.fixture
def row(path: Path) -> Any:
    return json.loads(path.read_text().splitlines()[0])


def test_the_committed_schema_is_that_of_the_columns() -> None:
    committed = json.loads((ROOT / "docs" / "tree-format.schema.json").read_text())
    assert committed == json.loads(json.dumps(tree_schema()))
    Draft202012Validator.check_schema(committed)


def test_an_exported_file_passes_the_format_check(path: Path, row: Any) -> None:
    assert problems(row) == []
    done = CliRunner().invoke(app, ["validate", str(path)])
    assert done.exit_code == 0 and "2 trees with" in done.output and "all good" in done.output


def changes() -> list[Any]:
    def at(*keys: str | int, value: int | list[Any] | str) -> Callable[[Any], Any]:
        def change(row: Any) -> None:
            for key in keys[:-1]:
                row = row[key]
            row[keys[-1]] = value

        return change

    return [
        (at("schema", value=99), "newer"),
        (at("nodes", value=[]), "nodes"),
        (at("tree_id", value="x"), "tree_id"),
        (at("nodes", 1, "status", value="fine"), "nodes[1].status"),
        (at("nodes", 1, "parent", value=1), "nodes[1].parent"),
        (at("nodes", 2, "born", value=7), "nodes[2].born"),
        (at("nodes", 1, "logprobs", value=[-0.5]), "nodes[1].logprobs"),
        (at("nodes", 1, "mult", value=0), "mult must"),
        (at("expansions", 0, "drafts", value=1), "where the expansions give"),
        (at("expansions", 0, "node", value=50), "expansions[0].node"),
        (at("chosen", value=10_000), "chosen"),
        (at("exact", value="yes"), "exact"),
        (at("nodes", 1, "text", value="another text"), "digest"),
        (lambda row: row.pop("goal"), "goal"),
    ]


@pytest.mark.parametrize(("change", "words"), changes())
def test_what_is_wrong_is_told_with_its_place(row: Any, change: Any, words: Any) -> None:
    wrong = copy.deepcopy(row)
    change(wrong)
    found = problems(wrong)
    assert found and words in " ".join(found)


def test_the_command_names_file_and_line_and_ends_with_1(path: Path, tmp_path: Path, row: Any) -> None:
    row["nodes"][1]["parent"] = 5
    bad = tmp_path / "bad.jsonl"
    bad.write_text(path.read_text() + json.dumps(row) + "\n{\n")
    done = CliRunner().invoke(app, ["validate", str(bad)])
    assert done.exit_code == 1 and "line 3: nodes[1].parent" in done.output and "line 4: not valid JSON" in done.output
