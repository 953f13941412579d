"""A node's fields are declared once, in the records that carry them; every other place follows."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from treewright.search.fields import stored
from treewright.search.schema import COLUMNS, DRAWN, EXECUTED, SPENT, STANDING, Columns, fields_of
from treewright.search.store.models import SCHEMA_VERSION, nodes
from treewright.search.types import Completion, Draft, Outcome, Spent

HELPER = Path(__file__).parents[1] / "helpers" / "new_fields.py"


def test_a_field_added_to_a_record_is_stored_read_exported_and_in_the_arrays(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-P", HELPER, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "grown": [2, 2],
        "read": [0.25, 2, "0"],
        "tree": [0.25, 2, "0"],
        "stored": [0.25, 2],
        "estimators": [0.25, 2],
        "exported": [0.25, 2, "0"],
        "imported": [0.25, 2, "0"],
        "popped": [0.5, 0.5, 0.5],
        "equal": True,
    }


def test_every_field_of_every_record_is_in_the_schema_and_has_a_column() -> None:
    places = {"after", "completion", "outcome"}
    assert {f.name for f in (*fields(Draft), *fields(Completion))} - places <= {f.name for f in DRAWN}
    assert {f.name for f in fields(Outcome)} == {f.name for f in EXECUTED}
    assert {f.name for f in fields(Spent)} == {f.name for f in SPENT}
    columns = [f.column for f in (*DRAWN, *EXECUTED)]
    assert len(set(columns)) == len(columns) and set(columns) <= set(nodes.columns.keys())
    assert all(f.since <= SCHEMA_VERSION for f in (*DRAWN, *EXECUTED, *STANDING, *SPENT))


def test_the_names_that_type_checkers_see_are_those_of_the_schema() -> None:
    named = get_type_hints(Columns)
    of = {f.tree: f for f in (*EXECUTED, *DRAWN, *STANDING)}
    assert set(named) - {"children"} <= set(COLUMNS) == set(of)
    for name, hint in named.items():
        if name not in ("children", "observation"):
            item: Any = of[name].type | None if of[name].optional else of[name].type
            assert hint == list[item], name


def test_a_field_of_a_type_that_nothing_can_keep_is_refused_by_name() -> None:
    from dataclasses import dataclass

    @dataclass
    class Odd:
        where: dict[str, int] = stored(default=None)

    Odd.__annotations__["where"] = dict[str, int]
    with pytest.raises(TypeError, match=r"Odd\.where: a node keeps no dict\[str, int\]"):
        fields_of(Odd)
