"""What a user's own rule, evaluator, estimator, loss or proposer raises is one sentence with file and line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typing_lines import next_line, typed

import treewright
from treewright.envs import BaseEnvironment, EnvFault, Task, ToolSpec
from treewright.envs.types import Observation
from treewright.search import Settings
from treewright.search.engine import Settings as SettingsOfTheEngine
from treewright.search.types import Completion, Context

PARTS = """
from dataclasses import replace
import torch
from treewright.search.rules import best_first

def no_credit(arrays):
    return {}["coef"]

def short_credit(arrays):
    from treewright.training.credit import estimate
    credit = estimate("split_loo", arrays)
    return replace(credit, coef=credit.coef[:-1])

def no_loss(delta, logp, coef, low, high, options):
    return delta @ torch.ones(3, 3), None

def half_a_loss(delta, logp, coef, low, high, options):
    return delta.exp() * coef

def one_number(delta, logp, coef, low, high, options):
    return (delta.exp() * coef).sum(), torch.zeros_like(coef)

def divides():
    return replace(best_first(draws=2), priority=lambda node: 1 / 0)

def words():
    return replace(best_first(draws=2), draws=lambda node: "two")

def chooses():
    return replace(best_first(draws=2), choose=lambda tree: [][0])

class Broken:
    async def evaluate(self, task, candidates):
        return [candidate.nothing for candidate in candidates]

class Numbers:
    async def evaluate(self, task, candidates):
        return [0.5 for _ in candidates]

class Waits:
    def evaluate(self, task, candidates):
        return []

def mute(policy):
    class Mute:
        version, template = policy.version, policy.template
        def context(self, *given):
            return policy.context(*given)
        async def draw(self, *given):
            raise RuntimeError("no words")
        async def close(self):
            await policy.close()
    return Mute()

def walker(task, turns, tools, rng, first):
    return 'go {"to": "1,0"}'

def even(task, history):
    return float(len(history) % 2)
"""
FEW = ["--suites", "kg", "--tasks", "2", "--set", "search.expansions=2"]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("parts")
    (home / "ownparts.py").write_text(PARTS)
    typed(["collect", "--name", "c", *FEW], home)
    return home


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.estimator=ownparts:no_credit", "raised KeyError: 'coef' (ownparts.py, line 7)"),
        ("train.estimator=ownparts:short_credit", "gave coef of shape"),
        ("train.loss=ownparts:no_loss", "(ownparts.py, line 15)"),
        ("train.loss=ownparts:half_a_loss", "gave Tensor; it must give two tensors of shape"),
        ("train.loss=ownparts:one_number", "it must give two tensors of shape"),
    ],
)
def test_a_wrong_part_is_refused_before_training(here: Path, setting: str, said: str) -> None:
    told = typed(["train", "--name", "c", "--set", setting], here, code=2)
    assert said in told and setting.partition("=")[2] in told
    assert not list(here.glob("runs/c/checkpoints/step-*"))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("search.rule=ownparts:divides", "priority raised ZeroDivisionError: division by zero (ownparts.py, line 24)"),
        ("search.rule=ownparts:words", "draws gave 'two'; it must give a whole number"),
        ("search.rule=ownparts:chooses", "choose raised IndexError: list index out of range (ownparts.py, line 30)"),
        ("search.evaluator=ownparts:Broken", "has no attribute 'nothing' (ownparts.py, line 34)"),
        ("search.evaluator=ownparts:Numbers", "Score(value=0.5)"),
        ("search.evaluator=ownparts:Waits", "async def evaluate"),
        ("policy.proposer=ownparts:mute", "raised RuntimeError: no words (ownparts.py, line 50)"),
    ],
)
def test_a_wrong_part_is_refused_before_collecting(here: Path, setting: str, said: str) -> None:
    name = setting.rpartition(":")[2]
    assert said in typed(["collect", "--name", name, *FEW, "--set", setting], here, code=2)


def test_every_training_writes_metrics(here: Path) -> None:
    places = [{"id": f"{i}", "title": f"Place {i}", "text": f"Beside Place {(i + 1) % 8}."} for i in range(8)]
    (here / "docs.jsonl").write_text("".join(json.dumps(place) + "\n" for place in places))
    for words, recipe, where in (
        (["train", "prm", "--name", "c", "--epochs", "1"], "prm", "runs/c"),
        (["train", "scorer", "--name", "c", "--epochs", "2"], "scorer", "runs/c"),
        (["train", "treehop", "hop", "--corpus", "docs.jsonl", "--epochs", "2"], "treehop", "hop"),
    ):
        typed(words, here)
        rows = [json.loads(row) for row in (here / where / "metrics.jsonl").read_text().splitlines()]
        assert [row for row in rows if row["recipe"] == recipe and row.get("loss") is not None], rows


def test_a_file_of_one_task_is_attempted_anew_in_every_batch(here: Path) -> None:
    (here / "one.jsonl").write_text('{"id": "a", "goal": "walk", "horizon": 3}\n')
    own = ["--tasks-file", "one.jsonl", "--reward", "ownparts:even", "--suites", "maze"]
    line = ["collect", "--name", "one", *own, "--set", "search.expansions=2"]
    for batch in range(3):
        out = typed([*line, "--batch", str(batch)], here)
        assert next_line(out)[0] == "train"
    assert typed(["show", "--name", "one"], here).count("done") == 3


class Down(BaseEnvironment):
    name = "down"
    tools = (ToolSpec("look", "looks", {"type": "object", "properties": {}}),)

    async def reset(self, task: Task, key: int) -> Observation:
        raise EnvFault("the licence has run out")


async def opened_down() -> Down:
    return Down()


async def test_a_search_that_never_began_says_so_from_python() -> None:
    class Policy:
        version = "v"

        def context(self, *given: Any) -> Context:
            raise AssertionError("nothing to be drawn")

        async def draw(self, *given: Any) -> list[Completion]:
            raise AssertionError("nothing to be drawn")

    with pytest.warns(RuntimeWarning, match="down/a: the search never began .*licence has run out"):
        tree = await treewright.search(Task("down", "a", "look"), Down(), Policy(), settings=Settings(retries=0))
    assert len(tree) == 1 and "never began" in repr(tree) and asyncio.get_running_loop()


def test_a_draw_is_as_long_from_python_as_from_the_command_line() -> None:
    from treewright.agent.runs.collect import UNLIMITED, tokens_for
    from treewright.envs.types import Suite

    bare = Suite("bare", lambda split, count: [], opened_down)
    assert Settings is SettingsOfTheEngine and Settings().max_tokens == tokens_for(bare, UNLIMITED) == 512
