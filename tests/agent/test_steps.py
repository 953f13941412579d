"""The model of steps, imagined plans, and A* that listens to them, as a user calls them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.agent.judges.imagined import Imagined, steps_left
from treewright.agent.judges.judge import open_evaluator
from treewright.agent.judges.steps import StepJudge
from treewright.envs import Action, Observation, Task, TreewrightError
from treewright.search.types import Candidate, Completion, Exchange, NodeStatus
from treewright.training.step_model import StepExample, StepModel, StepSettings, features_of, fit, hashed

TASK = Task("own", "1", "pay order k12")
LOOKED = (Exchange("look", Action.of("find_order", order="k12"), Observation("invoice i7")),)


def candidate(
    action: Action | None,
    turns: tuple[Exchange] = LOOKED,
    status: NodeStatus = NodeStatus.OPEN,
    error: str | None = None,
) -> Candidate:
    return Candidate(turns, Completion(str(action)), action, error, Observation("ok"), status, 0.0, len(turns) + 1)


def test_features_tell_the_tool_its_arguments_origins_and_what_was_done() -> None:
    found = features_of(TASK, LOOKED, Action.of("pay_order", invoice="i7"))
    assert {
        "tool pay_order",
        "part pay_order invoice=find_order",
        "after find_order > pay_order invoice=find_order",
    } <= set(found)
    assert {"goal # > pay_order", "goal order > pay_order"} <= set(found)
    assert "names 2 of 2" in found and "repeated False" in found and "left 0 True" in found
    assert features_of(TASK, (), None) == ("invalid",)


def test_one_step_of_the_fit_by_hand() -> None:
    """Two examples share a feature: Adagrad from zero weights moves each by its rate, up or down."""
    settings = StepSettings(passes=1, rate=0.1, ridge=0.0)
    model = fit([StepExample(("a", "b"), True), StepExample(("c",), False)], settings)
    at = {name: model.weights[hashed(name, settings.bits)] for name in "abc"}
    assert at == pytest.approx({"a": 0.1, "b": 0.1, "c": -0.1}, abs=1e-6)
    assert model.probability(["a", "b"]) == pytest.approx(1 / (1 + math.exp(-0.2)))


def test_training_approaches_the_optimum_that_newton_finds() -> None:
    rng = np.random.default_rng(0)
    true = np.array([1.5, -2.0, 0.5])
    x = rng.integers(0, 2, (600, 3))
    y = rng.random(600) < 1 / (1 + np.exp(-x @ true))
    w = np.zeros(3)
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ w))
        w -= np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x, x.T @ (p - y))
    rows = [StepExample(tuple("abc"[j] for j in range(3) if x[i, j]), bool(y[i])) for i in range(600)]
    model = fit(rows, StepSettings(passes=60, rate=0.3, ridge=0.0))
    assert [model.weights[hashed(c, 18)] for c in "abc"] == pytest.approx(w, abs=0.25)


def test_accuracy_counts_pairs_and_ties_half() -> None:
    model = StepModel(np.zeros(1 << 18), StepSettings())
    model.weights[hashed("good", 18)] = 1.0
    rows = [StepExample(("good",), True), StepExample(("x",), True), StepExample(("y",), False)]
    assert model.accuracy(rows) == 0.75 and math.isnan(model.accuracy(rows[:1]))


def test_a_step_model_is_saved_in_a_folder_and_a_wrong_folder_is_refused(tmp_path: Path) -> None:
    model = fit([StepExample(("a", "b"), True), StepExample(("c",), False)])
    again = StepModel.load(model.save(tmp_path / "steps"))
    assert np.array_equal(again.weights, model.weights) and again.settings == model.settings
    with pytest.raises(TreewrightError, match="train steps"):
        StepModel.load(tmp_path)
    with pytest.raises(TreewrightError, match="full reward"):
        fit([StepExample(("a",), True)])


async def test_equal_actions_of_siblings_are_judged_once() -> None:
    model = fit([StepExample(features_of(TASK, LOOKED, Action.of("pay_order", invoice="i7")), True),
                 StepExample(features_of(TASK, LOOKED, Action.of("wait")), False)])  # fmt: skip
    said = await StepJudge(model).evaluate(TASK, [candidate(Action.of("pay_order", invoice="i7"))] * 2
                                           + [candidate(Action.of("wait")), candidate(None)])  # fmt: skip
    assert said[0] == said[1] and said[0].value > 0.5 > said[2].value and said[3].value == 0.5


class Writes:
    def __init__(self, text: str) -> None:
        self.prompts: list[Any]
        self.text, self.prompts = text, []

    async def write(self, prompt: str, seed: int, max_tokens: int) -> str:
        self.prompts.append(prompt)
        return self.text


@pytest.mark.parametrize(
    ("text", "left"),
    [("- pay\n- tell Ada", 2), ("1. pay", 1), ("nothing", 0), ("- nothing.", 0), ("", 1), ("I would pay.", 1)],
)
def test_steps_left_are_counted_by_lines(text: str, left: int) -> None:
    assert steps_left(text) == left


async def test_imagined_plans_give_the_share_done_are_asked_once_and_counted() -> None:
    model = Writes("- pay\n- tell Ada")
    judge = Imagined(model, max_tokens=50)
    pair = [candidate(Action.of("wait")), candidate(Action.of("wait"))]
    first = await judge.evaluate(TASK, pair)
    assert [s.value for s in first] == [2 / 4, 2 / 4] and sorted(s.tokens for s in first) == [0, 50]
    again = await judge.evaluate(TASK, pair[:1])
    assert again[0].tokens == 0 and judge.asked == len(model.prompts) == 1
    ended, wrong = await judge.evaluate(
        TASK, [candidate(Action.of("done"), status=NodeStatus.TERMINAL), candidate(None, error="no such tool")]
    )
    assert (ended.value, wrong.value, judge.asked) == (1.0, 0.0, 1)
    assert "pay order k12" in model.prompts[0] and "invoice i7" in model.prompts[0]


def test_a_policy_that_only_scores_cannot_imagine_plans() -> None:
    with pytest.raises(TreewrightError, match="writes no plans"):
        open_evaluator("imagined:scripted:treewright.agent.policies.uniform:uniform_calls")


def test_steps_are_learned_from_a_store_and_a_star_goes_by_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = CliRunner()
    acts = ["--policy", "scripted:mazewalk:walker"]
    first = line.invoke(app, ["collect", "--name", "one", "--suites", "maze", "--tasks", "6", *acts,
                              "--set", "search.expansions=30"])  # fmt: skip
    assert first.exit_code == 0, first.output
    learned = line.invoke(app, ["train", "steps", "--name", "one"])
    assert learned.exit_code == 0 and "ranked right" in learned.output, learned.output
    options = [
        "--set",
        "search.rule=astar",
        "--set",
        "search.evaluator=steps:runs/one/steps",
        "--set",
        "search.stop=proved",
    ]
    for more in ([], ["--set", "search.options.weight=[3,1]", "--set", "search.options.same_states=true"]):
        ran = line.invoke(app, ["run", "maze/0", *acts, *options, *more])
        assert ran.exit_code == 0 and "A*: " in ran.output, ran.output
    wrong = line.invoke(app, ["run", "maze/0", *acts, "--set", "search.rule=uct", "--set", "search.stop=proved"])
    assert wrong.exit_code != 0 and "search.stop=proved" in str(wrong.exception)
