"""The commands of docs/gateway.md, as they stand there, at small size."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import openai
import pytest
from not_none import not_none
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.agent.gateway.record import request_of
from treewright.search.store import TreeStore

ROOT = Path(__file__).parents[2]
TREEWRIGHT = [sys.executable, "-P", "-m", "treewright"]


def block(mark: str) -> list[Any]:
    """The lines of the block that stands behind a mark. worlds.agent.output and the like are set there."""
    text = (ROOT / "docs" / "gateway.md").read_text()
    (found,) = re.findall(rf"<!-- gateway: {mark} -->\n<!-- run by .*? -->\n```bash\n(.*?)```", text, re.DOTALL)
    return [shlex.split(line) for line in found.strip().splitlines()]


CLIENTS = os.environ.get("TREEWRIGHT_CLIENTS", "")  # an interpreter that has smolagents and openai


def words_of(line: Any) -> list[Any]:
    start = {"treewright": TREEWRIGHT, "python": [sys.executable, "-P"]}[line[0]]
    at = {"agent:python ": f"agent:{sys.executable} ", "agent:smol/bin/python ": f"agent:{CLIENTS} "}
    words = line[1:]
    for short, whole in at.items():
        words = [word.replace(short, whole) for word in words]
    return [*start, *words]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def typed(line: Any) -> None:
    """A line of the page in this process, where torch is loaded once; `python …` in one of its own."""
    if line[0] == "python":
        done = subprocess.run(words_of(line), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return
    result = CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"}).invoke(app, words_of(line)[4:])
    assert result.exit_code == 0, f"{shlex.join(line)}\n{result.output}\n{result.exception!r}"


def test_an_agent_is_collected_trained_on_and_exported_by_the_lines_of_the_page(folder: Path) -> None:
    with contextlib.chdir(folder):
        for line in block("run"):
            typed(line)
    with TreeStore.open(folder / "runs" / "agents" / "trees.sqlite", read_only=True) as store:
        trees = [store.load(row.tree_id) for row in store.trees()]
    assert len(trees) == 4 and all(tree.exact for tree in trees)
    assert any(tree.outcome_of(leaf) == 1.0 for tree in trees for leaf in tree.leaves())
    assert list((folder / "runs" / "agents" / "checkpoints").glob("step-*"))  # there was something to learn from
    rows = [json.loads(line) for line in (folder / "data/agents/raw/train.jsonl").read_text().splitlines()]
    assert {row["tree_id"] for row in rows} == {tree.tree_id for tree in trees}


@pytest.mark.parametrize("name", ["graph", "smol"])
def test_other_agents_are_collected_trained_on_and_exported_by_the_lines_of_the_page(folder: Path, name: str) -> None:
    if name == "smol" and not CLIENTS:
        pytest.skip("with make test-clients")
    lines = block("graph" if name == "graph" else "smolagents")
    with contextlib.chdir(folder):
        for line in (block("run")[0], *(line for line in lines if line[0] == "treewright")):
            typed(line)
    with TreeStore.open(folder / "runs" / name / "trees.sqlite", read_only=True) as store:
        (tree,) = [store.load(row.tree_id) for row in store.trees()]
    links = {not_none(request_of(seen))["link"] for seen in tree.observation if request_of(seen) is not None}
    assert tree.exact and tree.leaves() and links >= {"spawns", "continues"}
    (row,) = [json.loads(line) for line in (folder / f"data/{name}/raw/train.jsonl").read_text().splitlines()]
    assert row["tree_id"] == tree.tree_id


def test_the_server_of_the_page_answers_with_its_key_alone_and_ends_at_a_signal(folder: Path) -> None:
    (line,) = block("served")
    words = [forked.COMMAND, *words_of(line)[4:], "--port", "0"]
    environment = {**os.environ, "TREEWRIGHT_KEY": "tw-key-of-this-test-0123"}
    with forked.Child(words, folder, environment) as process:
        try:
            url = process.stdout.readline().strip().partition("=")[2]
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", url)
            base = url.removesuffix("/v1")
            client = openai.OpenAI(base_url=f"{base}/s/one/v1", api_key="tw-key-of-this-test-0123", max_retries=0)
            said: Any = [
                {"role": "user", "content": "start ada, then mother. who is it ?"},
                {"role": "user", "content": "ready"},
            ]
            raw = client.chat.completions.with_raw_response.create(model="kg", messages=said, max_tokens=24)
            assert raw.headers["x-treewright-trainable"] == "yes" and not_none(raw.parse().usage).completion_tokens > 0
            with pytest.raises(openai.AuthenticationError):
                openai.OpenAI(base_url=url, api_key="x", max_retries=0).models.list()
        finally:
            process.send_signal(signal.SIGTERM)
            rest = process.stdout.read()
            code = process.wait(20)
    assert "tw-key" not in rest and "ada" not in rest and code in (0, 130)
    with TreeStore.open(folder / "served.sqlite", read_only=True) as store:
        tree = store.load(store.trees()[0].tree_id)
    assert len(tree) == 2 and tree.context_ids(0) and tree.ids[1]
