"""The commands of docs/gateway.md, as they stand there, at small size."""

from __future__ import annotations

import contextlib
import json
import math
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
from transformers import AutoTokenizer
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.agent.gateway.record import request_of
from treewright.agent.policies.policy import SEEDLING
from treewright.agent.runs.recipes import encoder_of, spoken_by
from treewright.search.store import TreeStore
from treewright.search.tree import Tree
from treewright.training.recipes.imitate import path_rows

ROOT = Path(__file__).parents[2]
TREEWRIGHT = [sys.executable, "-P", "-m", "treewright"]


def block(mark: str) -> list[Any]:
    """The lines of the block that stands behind a mark. worlds.agent.output and the like are set there."""
    text = (ROOT / "docs" / "gateway.md").read_text()
    (found,) = re.findall(rf"<!-- gateway: {mark} -->\n<!-- run by .*? -->\n```bash\n(.*?)```", text, re.DOTALL)
    return [shlex.split(line) for line in found.strip().splitlines()]


def words_of(line: Any) -> list[Any]:
    start = {"treewright": TREEWRIGHT, "python": [sys.executable, "-P"]}[line[0]]
    return [*start, *(word.replace("agent:python ", f"agent:{sys.executable} ") for word in line[1:])]


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


def links_of(tree: Tree) -> set[str]:
    return {not_none(request_of(seen))["link"] for seen in tree.observation if request_of(seen) is not None}


def test_a_graph_is_collected_trained_on_and_exported_by_the_lines_of_the_page(folder: Path) -> None:
    with contextlib.chdir(folder):
        for line in (block("run")[0], *block("graph")):
            typed(line)
    with TreeStore.open(folder / "runs" / "graph" / "trees.sqlite", read_only=True) as store:
        (tree,) = [store.load(row.tree_id) for row in store.trees()]
    assert tree.exact and tree.leaves() and links_of(tree) >= {"spawns", "continues"}
    (row,) = [json.loads(line) for line in (folder / "data/graph/raw/train.jsonl").read_text().splitlines()]
    assert row["tree_id"] == tree.tree_id


def test_the_packaged_model_learns_a_public_agent_by_the_lines_of_the_page(folder: Path) -> None:
    with contextlib.chdir(folder):
        for line in block("smolagents"):
            typed(line)
    with TreeStore.open(folder / "runs" / "smol" / "trees.sqlite", read_only=True) as store:
        taught, own = [store.load(row.tree_id) for row in store.trees()]
    assert [taught.outcome_of(leaf) for leaf in taught.leaves()] == [1.0]
    assert taught.exact and own.exact and links_of(taught) >= {"spawns", "rewrites"}
    tokenizer = AutoTokenizer.from_pretrained(SEEDLING)
    ((first, *_),) = path_rows([taught], encode=encoder_of(tokenizer), spoken=spoken_by(tokenizer))
    prompt = tokenizer.decode(first.context).replace(taught.task.goal, own.task.goal)
    assert prompt == tokenizer.decode(own.context_ids(0))  # imitated as it is asked
    assert tokenizer.decode(first.response).removesuffix("<|end|>") == taught.text[1]
    updates = [json.loads(line) for line in (folder / "runs/smol/metrics.jsonl").read_text().splitlines()]
    assert updates[0]["recipe"] == "sft" and updates[0]["paths"] == 1
    assert 0 < updates[0]["loss"] < updates[0]["first_loss"] < math.inf
    assert (folder / "runs/smol/checkpoints/step-000002").is_dir()
    rows = [json.loads(line) for line in (folder / "data/smol/raw/train.jsonl").read_text().splitlines()]
    assert {row["tree_id"] for row in rows} == {taught.tree_id, own.tree_id}


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
