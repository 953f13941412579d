"""What docs/worlds.md says runs, and its figures are those of the JSON beside it."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from treewright.envs.registry import SCHEMES
from treewright.envs.tools.mcp_suite import ServerFile

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "worlds.md").read_text()


def blocks(language: str) -> list[Any]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("block", blocks("python"), ids=lambda b: b.splitlines()[-1][:30])
def test_python_blocks_run(block: Any) -> None:
    exec(compile(block, "docs/worlds.md", "exec"), {"__name__": "docs"})


def test_the_server_file_has_only_known_fields_and_the_text_names_all_of_them() -> None:
    block, memory = blocks("toml")
    for text in (block, memory):
        ServerFile(**tomllib.loads(text))
    assert all(f"`{name}`" in TEXT or re.search(rf"^\[?{name}\b", block, re.M) for name in ServerFile.model_fields)
    assert all(f"{scheme}:" in TEXT for scheme in SCHEMES)


def test_the_table_of_figures_is_the_json() -> None:
    figures = json.loads((DOCS / "worlds.json").read_text())["figures"]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", TEXT, re.M))
    assert rows
    for name, shown in rows.items():
        assert float(shown) == pytest.approx(figures[name]["value"], rel=0.01, abs=0.05)
