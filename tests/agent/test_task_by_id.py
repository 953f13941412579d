"""`treewright run SUITE/ID`: own ids are found as they are, be they numbers or with slashes in them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from treewright.agent.cli.main import app

WORLD = """
class Box:
    effects = {"look": "read"}
    def look(self) -> str:
        return "something"

def reward(task, history):
    return 1.0

def mover(task, turns, tools, rng):
    return 'done {"answer": "x"}'
"""
IDS = ("2", "1", "0", "a/b", "a/b/1", "plain")
OWN = ("--tasks-file", "tasks.jsonl", "--reward", "id_world:reward")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "id_world.py").write_text(WORLD)
    rows = [{"id": name, "goal": f"goal of <{name}>", "horizon": 2} for name in IDS]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = [{"id": f"q/{i}", "question": f"question <q/{i}>", "answers": ["blue"]} for i in (1, 2)]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    (tmp_path / "corpus.jsonl").write_text('{"id": "a", "text": "the sky is blue"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "id_world", raising=False)


def said(task: str, *words: str) -> str:
    told = CliRunner().invoke(app, ["run", task, "--policy", "scripted:id_world:mover", "--expansions", "1", *words])
    return told.output + str(told.exception or "")


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("suite", ["id_world:Box", "own"])
def test_an_own_id_is_found_as_it_is(suite: str, name: str) -> None:
    more = ("--set", 'worlds.suites=["id_world:Box"]') if suite == "own" else ()
    assert f"goal of <{name}>" in said(f"{suite}/{name}", *OWN, *more)


@pytest.mark.parametrize("name", IDS)
def test_an_own_id_is_found_behind_a_command_too(name: str) -> None:
    given = ("--tasks-file", "tasks.jsonl", "--set", "worlds.agent.sandboxed=true")
    assert f"goal of <{name}>" in said(f"agent:{sys.executable} -c pass {{goal}}/{name}", *given)


def test_a_number_that_is_no_id_is_an_index() -> None:
    assert "goal of <a/b>" in said("id_world:Box/3", *OWN)
    assert "goal of <1>" in said("id_world:Box/1", *OWN, "--split", "train")


def test_a_number_counts_questions_since_those_without_an_id_have_that_of_their_line() -> None:
    rows = [{"question": f"question <{i}>", "answers": ["blue"], "split": "test"} for i in (1, 2)]
    Path("asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = ("--corpus", "corpus.jsonl", "--questions", "asked.jsonl")
    assert "question <2>" in said("own/1", *given) and "question <1>" in said("own/own-1", *given)


@pytest.mark.parametrize("name", ["q/2", "own-q/2", "1"])
def test_an_own_question_is_found_by_the_id_of_its_file(name: str) -> None:
    assert "question <q/2>" in said(f"own/{name}", "--corpus", "corpus.jsonl", "--questions", "asked.jsonl")
