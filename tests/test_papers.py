"""docs/papers.md: every paper that the code names stands there, and every line that it shows is one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typing_lines import parsed

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "papers.md").read_text()
NUMBER = re.compile(r"(?<![\d.])(\d{2}(?:0[1-9]|1[0-2])\.\d{5})(?!\d)")
FLOORS = ("agent", "envs", "search", "training", "kernels")
SPANS = re.findall(r"`([^`\n]+)`", PAGE)


def test_every_paper_that_a_docstring_names_stands_on_the_page() -> None:
    named = {n for floor in FLOORS for path in (ROOT / floor).rglob("*.py") for n in NUMBER.findall(path.read_text())}
    assert named, "the docstrings name papers"
    assert not named - set(NUMBER.findall(PAGE))


def test_no_paper_stands_there_that_nothing_else_names() -> None:
    sources = [path for floor in FLOORS for path in (ROOT / floor).rglob("*.py")]
    elsewhere = {n for path in [*sources, *(ROOT / "docs").glob("*.md")] if path.name != "papers.md"
                 for n in NUMBER.findall(path.read_text())}  # fmt: skip
    assert not set(NUMBER.findall(PAGE)) - elsewhere


@pytest.mark.parametrize("line", [span for span in SPANS if span.startswith("treewright ")])
def test_every_line_parses(line: Any) -> None:
    parsed(shlex.split(line)[1:])


@pytest.mark.parametrize("setting", sorted({s for span in SPANS for s in re.findall(r"--set (\S+)", span)}))
def test_every_setting_is_one_and_names_a_part_that_exists(setting: Any) -> None:
    from treewright.agent.config import load_config
    from treewright.search.rules import known_rules
    from treewright.training.credit import ESTIMATORS
    from treewright.training.loss import OBJECTIVES

    load_config(settings=[setting])
    known: dict[str, Any] = {
        "search.rule": known_rules(),
        "train.estimator": {**ESTIMATORS, "NAME": 1},
        "train.loss": OBJECTIVES,
    }
    key, _, value = setting.partition("=")
    assert key not in known or value in known[key]


def test_every_estimator_in_the_table_is_registered_and_all_published_ones_are_there() -> None:
    from treewright.training.credit import ESTIMATORS, published

    table = PAGE[PAGE.index("## Credit") : PAGE.index("## Training")]
    shown = set(re.findall(r"^\|[^|]+\| `(\w+)` \|$", table, re.MULTILINE))
    assert shown <= set(ESTIMATORS) and set(published.__all__) <= shown | {"forest"}


@pytest.mark.parametrize("place", [s for s in SPANS if re.fullmatch(r"treewright(\.\w+)+", s)])
def test_every_module_and_function_that_is_named_is_there(place: Any) -> None:
    from importlib import import_module

    module, _, name = place.rpartition(".")
    assert hasattr(import_module(module), name) or import_module(place)
