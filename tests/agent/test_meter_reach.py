"""What collecting, training, the loop and evaluation cost reaches their JSON and metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.agent.policies.policy import SEEDLING
from treewright.agent.runs.rounds import untold
from treewright.search.meter import Meter, measured
from treewright.search.store import TreeStore
from treewright.training.flops import work_of_folder
from treewright.training.track import read_metrics

FEW = ("--set", "search.expansions=1")


def call(*words: str) -> str:
    result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, words)
    if result.exception is not None:
        raise result.exception
    return result.output


def trees(run: str) -> list[Any]:
    with TreeStore.open(Path("runs") / run / "trees.sqlite", read_only=True) as store:
        return [store.load(row.tree_id) for row in store.trees()]


def test_collect_and_train_say_what_they_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = call("collect", "-n", "a", "--suites", "kg", "--tasks", "3", "--json", "c.json", *FEW)
    told = json.loads(Path("c.json").read_text())["meter"]
    counted = measured(trees("a"), work_of_folder(SEEDLING)).as_dict()
    assert {k: v for k, v in told.items() if "seconds" not in k} == {
        k: v for k, v in counted.items() if "seconds" not in k
    }
    assert told["policy_seconds"] > 0 < told["flops"] and f"cost: {told['sampled_tokens']} tokens sampled" in said
    call("collect", "-n", "a", "--suites", "kg", "--tasks", "3", "--json", "again.json", *FEW)
    assert json.loads(Path("again.json").read_text())["meter"]["sampled_tokens"] == 0
    call("train", "-n", "a", "--set", "train.lr=0.001")
    (row,) = read_metrics(Path("runs/a/metrics.jsonl"))
    cost = row["meter"]
    assert cost["trained_packed"] == row["tokens"] <= cost["trained_rows"] and cost["train_seconds"] > 0
    assert cost["train_flops"] > 0 == cost["sampled_tokens"], "sampling was paid for by collect"


def test_a_round_of_the_loop_says_what_sampling_and_training_cost_also_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call("loop", "-n", "l", "--suites", "kg", "--set", "loop.iterations=1", "--set", "loop.tasks=3", *FEW)
    (row,) = read_metrics(Path("runs/l/metrics.jsonl"))
    cost, counted = row["meter"], measured(trees("l"), work_of_folder(SEEDLING))
    assert (cost["sampled_tokens"], cost["prompt_cacheless"]) == (counted.sampled_tokens, counted.prompt_cacheless)
    assert cost["sampled_tokens"] == row["sampled_tokens"] and cost["env_steps"] <= row["env_steps"]
    assert cost["trained_packed"] == row["tokens"] and cost["policy_seconds"] > 0
    assert cost["flops"] == pytest.approx(cost["generation_flops"] + cost["prompt_flops"] + cost["train_flops"])
    lost = untold(Path("runs/l/checkpoints"), None)
    assert lost is not None and Meter.of(lost.meter) == Meter.of(cost), "a line that was lost is the same again"
    assert lost.values()["meter/sampled_tokens"] == cost["sampled_tokens"]
    call("eval", "-n", "l", "--tasks", "2", "--json", "e.json")
    told = json.loads(Path("e.json").read_text())
    assert told["suites"]["kg"]["tasks"] == 2 and told["meter"]["sampled_tokens"] > 0 == told["meter"]["train_flops"]


def test_a_benchmark_that_grows_trees_says_what_they_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from treewright.agent.cli import bench as command

    def grows(quick: bool, json_path: Any, plot_path: Any) -> dict[str, Any]:
        monkeypatch.chdir(tmp_path)
        call("collect", "-n", "b", "--suites", "kg", "--tasks", "1", *FEW)
        return {"figures": {}}

    monkeypatch.setattr(command, "_main_of", lambda name: grows)
    command.bench("credit", json=tmp_path / "b.json")
    told = json.loads((tmp_path / "b.json").read_text())
    assert told["meter"]["sampled_tokens"] == measured(trees("b")).sampled_tokens > 0
    monkeypatch.setattr(command, "_main_of", lambda name: lambda *given: {"figures": {}})
    command.bench("credit", json=tmp_path / "b.json")
    assert "meter" not in json.loads((tmp_path / "b.json").read_text())
