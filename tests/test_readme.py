"""The README tells the truth: its environment and its Python run, its commands parse, its files exist."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from not_none import not_none

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("page, name", [("README.md", "readme_world"), ("docs/worlds.md", "readme_env")])
def test_the_world_shown_is_the_one_that_is_tested_and_fits_in_thirty_lines(page: str, name: str) -> None:
    text = (ROOT / page).read_text()
    shown = not_none(re.search(rf"<!-- {name} -->\n```python\n(.*?)```", text, re.DOTALL)).group(1).strip()
    assert shown == (ROOT / "tests" / f"{name}.py").read_text().strip()
    assert len(shown.splitlines()) <= 30


def test_the_python_block_runs(tmp_path: Path) -> None:
    code = next(body for kind, body in BLOCKS if kind == "python" and "asyncio.run" in body)
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def lines() -> Iterator[list[str]]:
    for kind, body in BLOCKS:
        if kind == "bash":
            for line in body.replace("\\\n", " ").splitlines():
                if line.strip().startswith("treewright "):
                    yield shlex.split(line, comments=True)[1:]


def test_there_are_commands_to_paste() -> None:
    assert len(list(lines())) >= 6


@pytest.mark.parametrize("words", list(lines()), ids=lambda w: " ".join(w[:3]))
def test_every_command_line_parses(words: Any) -> None:
    from treewright.agent.cli.main import app

    group: Any = typer.main.get_command(app)
    command = group.get_command(None, words[0])
    assert command is not None, f"no command {words[0]!r}"
    command.make_context(words[0], list(words[1:]))


def test_every_linked_file_exists_and_every_make_target_too() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        if "://" not in target:
            assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", TEXT, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_table_is_what_was_measured() -> None:
    figures = {k: v["value"] for k, v in json.loads((ROOT / "docs" / "demo.json").read_text())["figures"].items()}
    for suite in ("kg", "stdlib", "workbench", "market"):
        (row,) = re.findall(rf"^\| {suite} .*$", TEXT, re.MULTILINE)
        numbers = [float(n) for n in re.findall(r"[-+]?\d+(?:\.\d+)?", row)]
        names = ("tasks", "policy_before", "policy_after", "policy_gain_points", "policy_gain_low", "policy_gain_high")
        expected = [figures[f"{suite}.{name}"] for name in names]
        expected += [figures[f"{suite}.{name}_{w}"] for name in ("search", "oracle_pick") for w in ("before", "after")]
        assert numbers == pytest.approx(expected, abs=0.51), suite
    assert f"took {figures['seconds']:.0f} s" in " ".join(TEXT.split())


def test_no_placeholder_is_left() -> None:
    assert not re.search(r"\b(TABLE|ENVIRONMENT|CONTROL)\b", TEXT)


@pytest.mark.parametrize("word", ["exact", "mass", "oracle pick", "SPLIT-LOO"])
def test_words_of_its_own_are_explained_in_a_sentence_each(word: str) -> None:
    (meaning,) = re.findall(rf"^\| {word} \| (.+) \|$", TEXT, re.MULTILINE)
    assert len(meaning.split()) >= 8


@pytest.mark.parametrize("first", ["**Going back is verified.**", "**A fault is not a failure.**"])
def test_what_nobody_else_has_comes_before_the_sharing_of_prefixes(first: str) -> None:
    assert -1 < TEXT.find(first) < TEXT.find("share their prefixes") < TEXT.find("## Lines to paste")
