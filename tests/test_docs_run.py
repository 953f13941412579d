"""Blocks of the pages run: Python in one namespace per page, command lines at toy size; others say why not.

A comment directly above a block marks it: `<!-- not run: REASON -->`, or `<!-- not run (WORDS): REASON -->` for lines.
`<!-- run by TEST -->` names the test that runs a block with what it needs around it; `<!-- run with NAME -->` names a
function of helpers/docs_given.py that gives it a small model, world or tree.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
import shlex
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docs_given
import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "examples" / "README.md"])
BLOCK = re.compile(r"((?:^<!-- .*? -->\n)*)^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
MARK = re.compile(r"<!-- not run(?: \((.*?)\))?: (.+?) -->")
RUN_BY = re.compile(r"<!-- run by (\S+) -->")
RUN_WITH = re.compile(r"<!-- run with (\w+) -->")


@dataclass(frozen=True)
class Block:
    page: str
    kind: str
    body: str
    marks: tuple[tuple[str, str], ...]  # (words that select lines, "" for all; reason)
    run_by: str = ""  # the test that runs it
    run_with: str = ""  # what gives it the names that it takes for granted

    @property
    def left_out(self) -> bool:
        return not all(words for words, _ in self.marks)

    @property
    def runs(self) -> bool:
        """Whether it is to run here."""
        return not self.left_out and not self.run_by and not self.run_with

    def lines(self) -> list[str]:
        """Command lines that are to run."""
        found = [line.strip() for line in self.body.replace("\\\n", " ").splitlines()]
        found = [line for line in found if line.startswith("treewright ")]
        return [line for line in found if not any(words in line for words, _ in self.marks)]


def blocks_of(page: str, text: str) -> list[Block]:
    return [
        Block(
            page,
            kind,
            body,
            tuple(MARK.findall(above)),
            "".join(RUN_BY.findall(above)),
            "".join(RUN_WITH.findall(above)),
        )
        for above, kind, body in BLOCK.findall(text)
    ]


BLOCKS = [block for path in PAGES for block in blocks_of(str(path.relative_to(ROOT)), path.read_text())]
WITH_PYTHON = sorted({b.page for b in BLOCKS if b.kind == "python" and b.runs})


def test_a_mark_stands_for_a_block_or_for_some_of_its_lines() -> None:
    whole, part = blocks_of(
        "p", "<!-- not run: a GPU -->\n```bash\ntreewright run a\n```\n\n"
             "<!-- not run (b): a server -->\n```bash\ntreewright run a\ntreewright run b\n```\n"
    )  # fmt: skip
    assert not whole.runs and part.runs and part.lines() == ["treewright run a"]


def test_few_blocks_are_not_run_and_each_has_a_reason() -> None:
    code = [b for b in BLOCKS if b.kind in ("python", "bash", "sh", "toml", "json")]
    left = [b for b in code if b.left_out]
    assert all(len(why.split()) >= 3 for b in BLOCKS for _, why in b.marks)
    assert len(left) <= 0.4 * len(code), [(b.page, b.body[:40]) for b in left]


def test_a_test_that_runs_a_block_reads_its_page() -> None:
    named = [b for b in BLOCKS if b.run_by]
    assert named and all(Path(b.page).name in (ROOT / b.run_by).read_text() for b in named)


def test_command_lines_stand_in_blocks_of_a_kind_that_is_looked_at() -> None:
    for block in BLOCKS:
        if block.kind not in ("bash", "sh", "python", "toml", "json"):
            assert not any(re.match(r"(treewright|import|from) ", line) for line in block.body.splitlines()), block.page


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_on_a_page_runs_from_its_first_block_to_its_last(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treewright.search.rules import RULES
    from treewright.training.credit import ESTIMATORS

    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "docs"}
    known = dict(RULES), dict(ESTIMATORS)
    try:
        for block in BLOCKS:
            if block.page == page and block.kind == "python" and block.runs:
                code = compile(block.body, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                ended = eval(code, names)
                if inspect.iscoroutine(ended):
                    asyncio.run(ended)
    finally:
        table: Any
        for table, before in zip((RULES, ESTIMATORS), known, strict=True):
            table.clear()
            table.update(before)


WITH_GIVEN = [b for b in BLOCKS if b.run_with]


@pytest.mark.parametrize("block", WITH_GIVEN, ids=lambda b: f"{b.page} with {b.run_with}")
def test_python_that_takes_something_of_yours_for_granted_runs_with_a_small_one(block: Block) -> None:
    names: dict[str, Any] = {"__name__": "docs", **getattr(docs_given, block.run_with)()}
    code = compile(block.body, block.page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    ended = eval(code, names)
    if inspect.iscoroutine(ended):
        asyncio.run(ended)


def toy(line: str) -> list[str]:
    """The words of a line, with what makes it small."""
    words = shlex.split(line, comments=True)[1:]
    small = {
        "collect": ["--set", "search.expansions=2", "--set", "search.max_tokens=48", "--tasks", "2"],
        "run": ["--set", "search.expansions=2", "--set", "search.max_tokens=48"],
    }
    if words[0] == "collect" and "--tasks" in words:
        words[words.index("--tasks") + 1] = "2"
    more = small.get(words[0], [])
    if "--tasks" in words and "--tasks" in more:
        more = more[:-2]
    return [*words, *more]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the pages are followed one after another; runs/first holds trees from the start."""
    folder = tmp_path_factory.mktemp("docs")
    passages = [
        {"id": name, "title": name, "text": f"{name} lives in {town}."}
        for name, town in [("ada", "bonn"), ("ben", "ulm")]
    ]
    (folder / "passages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in passages))
    question = {"id": "one", "question": "where does ada live?", "answer": "bonn"}
    (folder / "questions.jsonl").write_text(json.dumps(question) + "\n")
    (folder / "q.jsonl").write_text(json.dumps(question) + "\n")
    steps = [
        {"target": "soup"}, {"goal": "soup", "needs": ["mix", "water"], "cost": 1, "name": "cook"},
        {"goal": "mix", "cost": 2, "name": "buy"}, {"goal": "water", "cost": 0, "name": "tap"},
    ]  # fmt: skip
    (folder / "recipes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    for name in ("own_judge.py", "own_rule.py"):
        shutil.copy(ROOT / "examples" / name, folder)
    shutil.copy(ROOT / "tests" / "readme_world.py", folder / "mymodule.py")
    (tasks,) = [b.body for b in BLOCKS if b.page == "README.md" and b.kind == "json" and '"letters"' in b.body]
    (folder / "tasks.jsonl").write_text(tasks)
    return folder


SHELL = [(i, b) for i, b in enumerate(BLOCKS) if b.kind in ("bash", "sh") and b.runs and b.lines()]


@pytest.mark.parametrize("block", [b for _, b in SHELL], ids=lambda b: f"{b.page}: {b.lines()[0][:50]}")
def test_command_lines_run(block: Block, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from treewright.agent.cli.main import app

    monkeypatch.chdir(place)
    if not (place / "runs" / "first").exists():
        assert CliRunner().invoke(app, toy("treewright collect --name first --suites kg")).exit_code == 0
    for line in block.lines():
        done = CliRunner().invoke(app, toy(line))
        assert done.exit_code == 0, f"{line}\n{done.output[-2000:]}"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind == "json"], ids=lambda b: b.page)
def test_json_on_a_page_is_json(block: Block) -> None:
    try:
        json.loads(block.body)
    except json.JSONDecodeError:
        assert all(json.loads(line) for line in block.body.splitlines())


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind == "toml"], ids=lambda b: b.page)
def test_toml_on_a_page_is_read_by_what_it_is_for(block: Block) -> None:
    from treewright.agent.config import Config
    from treewright.envs.tools.mcp_suite import ServerFile
    from treewright.envs.web.own_site import SiteFile
    from treewright.envs.web.verified import VerifiedFile

    data = tomllib.loads(block.body)
    if "project" in data:
        assert block.page == "CONTRIBUTING.md"
    elif "url" in data:
        SiteFile(**data)
    elif "sites" in data:
        VerifiedFile(**data)
    elif "command" in data:
        ServerFile(**data)
    else:
        Config.model_validate(data)
