"""The loop chooses schedules by noise: chances are logged, kept with checkpoints, and the same after a stop."""

from __future__ import annotations

from pathlib import Path

import pytest
from not_none import not_none
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.search.rules.adapting import ARMS
from treewright.search.store import TreeStore
from treewright.training.manifest import latest, read_manifest
from treewright.training.track import read_metrics

LINE = ("--suites", "kg", "--set", "loop.tasks=4", "--set", "search.rule=adaptive", "--set",
        'search.options={"by": "noise", "cost": "flops"}', "--set", "search.expansions=8")  # fmt: skip


def test_chances_are_learned_logged_and_the_same_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def loop(name: str, iterations: int) -> None:
        result = CliRunner().invoke(app, ["loop", "-n", name, *LINE, "--set", f"loop.iterations={iterations}"])
        if result.exception is not None:
            raise result.exception

    loop("whole", 2)
    rows = read_metrics(Path("runs/whole/metrics.jsonl"))
    for row in rows:
        chances = [row[f"chance/kg by {arm}"] for arm in ARMS]
        assert sum(chances) == pytest.approx(1) and min(chances) > 0
    kept = read_manifest(not_none(latest(Path("runs/whole/checkpoints"))).path)["extra"]["adapted"]["schedules"]
    assert kept["rounds"] == 2 and sum(map(len, kept["seen"]["kg"].values())) == 8
    assert all(cost > 1e6 for record in kept["seen"]["kg"].values() for _, cost in record), "in operations"
    with TreeStore.open("runs/whole/trees.sqlite", read_only=True) as store:
        rules = {store.load(r.tree_id).header.settings["rule"] for r in store.trees() if r.run == "whole/1"}
    assert len(rules) == 1 and "'kg by split'" in rules.pop(), "what the second round was told stands in its trees"
    loop("half", 1)
    loop("half", 2)
    again = read_metrics(Path("runs/half/metrics.jsonl"))
    assert [[r[f"chance/kg by {a}"] for a in ARMS] for r in again] == [[r[f"chance/kg by {a}"] for a in ARMS]
                                                                     for r in rows]  # fmt: skip
