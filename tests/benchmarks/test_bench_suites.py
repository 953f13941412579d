"""Chains against best-first through the engine: equal tokens, curves on file, no run twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from treewright.benchmarks import suites as bench_suites
from treewright.benchmarks.suites import ARMS, Plan, main
from treewright.envs.errors import TreewrightError

TINY = Plan(tokens={"": 150}, batch={"": 150}, checks=1, tasks={"": 3}, seeds=(1,))


def test_both_arms_spend_their_token_budget_and_a_second_call_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs.jsonl"
    first = main(suites=["kg"], runs=runs, plan=TINY, json_path=tmp_path / "out.json")
    assert [r["arm"] for r in first["runs"]] == list(ARMS)
    assert all(r["tokens"][-1] >= 150 and len(r["success"]) == 2 for r in first["runs"])
    assert first["runs"][0]["success"][0] == first["runs"][1]["success"][0]
    assert {f"auc_{arm}_kg" for arm in ARMS} <= set(first["figures"])
    monkeypatch.setattr(bench_suites, "_run", None)
    again = main(suites=["kg"], runs=runs, plan=TINY)
    assert json.loads(json.dumps(again["runs"])) == json.loads(json.dumps(first["runs"]))


def test_a_benchmark_without_suites_says_so(tmp_path: Path) -> None:
    from treewright.agent.cli.bench import bench

    with pytest.raises(TreewrightError, match="bench credit has no use for --suite"):
        bench("credit", suite=["kg"])
