"""Bugs planted on purpose: the sources still hold their lines, and tests notice. `make planted` plants them all."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent / "planted"
ROOT = Path(__file__).parents[2]
QUICK = ("repeats_the_irreversible", "baseline_with_itself")


def _loaded(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


BUGS = {bug.name: bug for bug in _loaded("bugs").BUGS}


@pytest.mark.parametrize("name", BUGS)
def test_every_bug_can_still_be_planted_and_its_tests_exist(name: str) -> None:
    bug = BUGS[name]
    assert (ROOT / bug.file).read_text("utf-8").count(bug.right) == 1, f"{bug.file} has changed: mend the bug"
    assert bug.wrong != bug.right and all((ROOT / tests).is_file() for tests in bug.tests)


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_bug_is_noticed(name: str) -> None:
    assert _loaded("run").caught(BUGS[name])


def test_all_were_noticed_when_the_committed_figures_were_made() -> None:
    made = json.loads((ROOT / "docs" / "planted.json").read_text())
    assert {row["bug"] for row in made["bugs"]} == set(BUGS), "make planted"
    assert all(row["caught_by"] for row in made["bugs"]) and len(BUGS) >= 20
    assert made["figures"]["planted_bugs_caught"]["value"] == len(BUGS)
