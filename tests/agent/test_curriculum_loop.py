"""The loop's backward curriculum: trees from stored successes, counted apart, the same after a stop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from not_none import not_none
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.agent.config import load_config
from treewright.agent.runs.adapting import Adapted
from treewright.envs import TreewrightError
from treewright.search.meter import measured
from treewright.search.rooted import prefix_length
from treewright.search.store import TreeStore, compare
from treewright.training.manifest import latest, read_manifest
from treewright.training.track import read_metrics

FEW = ("--suites", "kg", "--set", "search.expansions=1", "--set", "loop.tasks=3", "--set", "train.lr=0.001")
CURRICULUM = (
    "--set", "loop.curriculum.share=0.4", "--set", "loop.curriculum.sources=a", "--set", "loop.curriculum.rare=1.0",
)  # fmt: skip


def call(*words: str) -> str:
    result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, words)
    if result.exception is not None:
        raise result.exception
    return result.output


def trees(run: str) -> list[Any]:
    with TreeStore.open(Path("runs") / run / "trees.sqlite", read_only=True) as store:
        return [store.load(row.tree_id) for row in store.trees()]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before, folder = torch.get_num_threads(), tmp_path_factory.mktemp("curriculum")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        call("collect", "-n", "a", "--suites", "kg", "--tasks", "12", "--set", "search.expansions=1")
    yield folder
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


def test_rounds_begin_some_trees_at_stored_successes_and_go_on_the_same_after_a_stop() -> None:
    said = call("loop", "-n", "whole", *FEW, *CURRICULUM, "--set", "loop.iterations=2")
    assert said.count("  2 starts ") == 2
    rows = read_metrics(Path("runs/whole/metrics.jsonl"))
    grown = trees("whole")
    begun = [t for t in grown if prefix_length(t)]
    assert [(row["starts"], row["trees"]) for row in rows] == [(2, 5), (2, 5)] and len(begun) == 4 and len(grown) == 10
    assert all(t.exact and t.header.continues is not None for t in begun)
    assert len({t.header.continues[0] for t in begun} & {t.tree_id for t in trees("a")}) >= 1
    first = [t for t in grown if t.header.run.startswith("whole/0")]
    cost = rows[0]["meter"]
    counted = measured([*first, *trees("a")])
    assert cost["sampled_tokens"] == counted.sampled_tokens, "the sources' tokens count in the first round"
    assert rows[1]["meter"]["replayed_steps"] >= sum(prefix_length(t) for t in begun if "/1/" in t.header.run) - 2
    with TreeStore.open("runs/whole/trees.sqlite", read_only=True) as store:
        stored = store.trees()
        (both,) = compare(stored, stored)
    assert both.tasks == len({r.task_id for r in stored if r.continues is None}) == 6, "starts are no whole episodes"
    call("loop", "-n", "half", *FEW, *CURRICULUM, "--set", "loop.iterations=1")
    call("loop", "-n", "half", *FEW, *CURRICULUM, "--set", "loop.iterations=2")
    one, two = (not_none(latest(Path(f"runs/{name}/checkpoints"))) for name in ("whole", "half"))
    told = [read_manifest(saved.path)["extra"]["adapted"]["curriculum"] for saved in (one, two)]
    for state in told:
        state["fronts"] = [{k: v for k, v in f.items() if k != "tree"} for f in state["fronts"]]
    assert told[0] == told[1] and told[0]["rounds"] == 2
    where = [[(t.task.id, prefix_length(t)) for t in trees(name) if prefix_length(t)] for name in ("whole", "half")]
    assert where[0] == where[1]


def test_success_is_that_of_trees_from_the_root_and_baselines_are_kept_apart() -> None:
    call("loop", "-n", "one", *FEW, *CURRICULUM, "--set", "loop.iterations=1")
    (row,) = read_metrics(Path("runs/one/metrics.jsonl"))
    baselines = read_manifest(not_none(latest(Path("runs/one/checkpoints"))).path)["baselines"]
    assert set(baselines) == {"kg", "kg, begun at stored nodes"}
    assert row["success"] == {"kg": pytest.approx(baselines["kg"])} and row["starts_success"] > 0
    call("loop", "-n", "none", *FEW, "--set", "loop.iterations=1", "--set", "loop.curriculum.share=0.4")
    (row,) = read_metrics(Path("runs/none/metrics.jsonl"))
    assert row["starts"] == 0 and row["trees"] == 3, "without stored successes all trees begin at the root"


def test_sources_that_are_not_there_and_collectors_are_refused() -> None:
    with pytest.raises(TreewrightError, match="there is no store 'nowhere'"):
        call("loop", "-n", "bad", *FEW, *CURRICULUM, "--set", "loop.curriculum.sources=nowhere")
    asked = load_config(None, ["loop.curriculum.share=0.4"])
    with pytest.raises(TreewrightError, match=r"leave loop\.collectors out"):
        Adapted(asked, {}, None, None, crew=object())  # type: ignore[arg-type]
