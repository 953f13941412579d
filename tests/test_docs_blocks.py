"""The blocks of code on every page: lines parse with settings that exist, imports find what they name, TOML is TOML."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from not_none import not_none
from typing_lines import parsed

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "examples" / "README.md"])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = [(path.relative_to(ROOT), *found) for path in PAGES for found in BLOCK.findall(path.read_text())]
LINES = [
    (page, line)
    for page, kind, body in BLOCKS
    if kind in ("", "bash", "sh", "console")
    for line in body.replace("\\\n", " ").splitlines()
    if line.strip().startswith("treewright ") and "…" not in line.partition(" #")[0]
]
PYTHON = [(page, body) for page, kind, body in BLOCKS if kind == "python"]


def named(case: Any) -> str:
    page, text = case
    return f"{page}: {text.strip().splitlines()[0][:60]}"


def test_there_are_blocks_to_look_at() -> None:
    assert len(PAGES) > 15 and len(LINES) > 60 and len(PYTHON) > 15


@pytest.mark.parametrize("case", LINES, ids=named)
def test_every_line_parses_and_sets_what_can_be_set(case: tuple[Any, Any]) -> None:
    from treewright.agent.config import load_config

    words = shlex.split(case[1], comments=True)[1:]
    words = words[: words.index("|")] if "|" in words else words
    context = parsed(words)
    if words[0] != "plan":  # whose --set are figures of a machine
        load_config(settings=context.params.get("set_") or ())


@pytest.mark.parametrize("case", PYTHON, ids=named)
def test_every_block_of_python_compiles_and_imports_what_is_there(case: tuple[Any, Any]) -> None:
    tree = compile(case[1], str(case[0]), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("treewright"):
            module = import_module(not_none(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name) or import_module(f"{node.module}.{alias.name}"), alias.name


@pytest.mark.parametrize("case", [(page, body) for page, kind, body in BLOCKS if kind == "toml"], ids=named)
def test_every_block_of_toml_is_toml(case: Any) -> None:
    assert tomllib.loads(case[1])


def test_every_link_to_a_file_of_ours_finds_it() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target and not target.startswith("mailto:"):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_the_first_block_of_the_page_on_stores_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    body = next(body for page, body in PYTHON if page.name == "store.md")
    monkeypatch.chdir(tmp_path)
    exec(compile(body, "docs/store.md", "exec"), {"__name__": "store"})
    trees = re.findall(r"^kg-\S+ \d+ [0-9a-f]{32}$|^\S+ \d+ [0-9a-f]{32}$", capsys.readouterr().out, re.MULTILINE)
    assert len(trees) == 2


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_file_that_a_newcomer_is_sent_to_is_there(page: str) -> None:
    folders = "agent|envs|search|training|kernels|benchmarks|tests|docs|examples|scripts|pkg"
    named = re.findall(rf"`((?:{folders})/[\w./*]*)`", (ROOT / page).read_text())
    assert len(named) > 20
    for path in named:
        assert list(ROOT.glob(path.rstrip("/"))), f"{page} names {path}"


def test_every_door_that_stands_in_the_table_is_one() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    code = "".join(
        p.read_text() for floor in ("agent", "envs", "search", "training") for p in (ROOT / floor).rglob("*.py")
    )
    groups = set(re.findall(r"`(treewright\.[a-z]+)` \|", text))
    assert groups == set(re.findall(r'group="(treewright\.[a-z]+)"', code))
