from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.kernels.trees import ancestors
from treewright.benchmarks import kernels as bench
from treewright.benchmarks import kernels_cpu as bench_cpu
from treewright.benchmarks import kernels_decode as bench_decode
from treewright.benchmarks import kernels_step as bench_step
from treewright.benchmarks.families import FAMILIES, Family, trajectories
from treewright.kernels import decode
from treewright.kernels.reference import dense_attention, relative_error


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_families_have_the_wanted_size_and_their_rows_are_the_root_paths(family: Family) -> None:
    plan = family.plan(500, seed=3)
    plan.check_integrity()
    assert abs(plan.n_queries - 500) <= 70
    seen = ancestors(plan.parent.tolist())
    rows = trajectories(plan)
    assert all(np.array_equal(row, np.flatnonzero(seen[row[-1]])) for row in rows)
    assert len({int(row[-1]) for row in rows}) == len(rows) == int((seen.sum(0) == 1).sum())


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [f for f in FAMILIES if f.name in ("flat 2k + 16 x 1k", "pure causal")]
    monkeypatch.setattr(bench, "FAMILIES", [*few, *few, *few])
    monkeypatch.setattr(bench_cpu, "FAMILIES", few)
    monkeypatch.setattr(bench, "planning_seconds", lambda tokens: 0.25)
    tiny = dataclasses.replace(bench_step.CPU, tokens=120, hidden=32, inner=48, heads=2, kv_heads=1, width=16)
    monkeypatch.setattr(bench_step, "CPU", tiny)
    monkeypatch.setattr(bench_decode, "CASES", {"4 x 2 over 70 + 9": ((70, 9), (4, 2)), "2 over 4": ((4,), (2,))})
    monkeypatch.setattr(decode, "PAYS", 10_000)
    monkeypatch.setattr(
        bench, "cpu_figures", lambda tokens, **options: bench_cpu.cpu_figures(200, most_rows=2, repeats=1)
    )


def test_bench_writes_figures_table_plot_and_where_they_come_from(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = bench.main(True, str(tmp_path / "r.json"), str(tmp_path / "r.svg"))
    assert json.loads((tmp_path / "r.json").read_text()) == result
    names = {"plan_s_1e6", "max_rel_error_fp32", "max_rel_error_bf16", "cpu_tree_speedup_over_ideal_min",
             "step_speedup_over_ideal", "decode_vs_batched", "decode_memory_vs_batched"}  # fmt: skip
    assert names <= set(result["figures"])
    assert all(set(figure) == {"value", "unit"} for figure in result["figures"].values())
    assert {"hardware", "versions", "commit"} <= set(result)
    ideal = {row["family"]: row["ideal"] for row in result["table"]["cpu"]}
    assert ideal["pure causal"] == 1 and ideal["flat 2k + 16 x 1k"] > 2
    ElementTree.parse(tmp_path / "r.svg")
    said = capsys.readouterr().out
    assert "Quick" in said
    if not torch.cuda.is_available():
        assert "say nothing about a GPU" in said


def test_a_red_gate_stops_the_bench_before_anything_is_timed(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "GATES", {torch.float32: 1e-12})
    monkeypatch.setattr(bench, "cpu_figures", lambda *a, **o: pytest.fail("timed on a red gate"))
    with pytest.raises(RuntimeError, match="nothing timed"):
        bench.main(True)


def test_a_step_over_rows_has_the_gradient_of_the_step_over_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = dataclasses.replace(bench_step.CPU, tokens=300, hidden=32, inner=48, heads=2, kv_heads=1, width=16)
    tree, rows = bench_step.packs(FAMILIES[5].plan(300), shape, "cpu")
    assert len(rows) > 1 and all(len(p.ids) <= 300 for p in rows)
    leaves = len(trajectories(tree.plan))
    assert sum(int((p.plan.parent < 0).sum()) for p in rows) == leaves
    monkeypatch.setattr(bench_step, "CPU", shape)
    monkeypatch.setattr(bench_step, "tree_logp", lambda h, w, row, target: ((h @ w.T)[row, target], None))
    assert bench_step.step_figures("cpu", quick=True)[1]["step_speedup_over_ideal"]["value"] > 0  # any loss agrees
    broken = bench_step._Decoder.hidden
    monkeypatch.setattr(bench_step._Decoder, "hidden", lambda d, p: broken(d, p) * (1 + (p.plan.parent < 0).sum()))
    with pytest.raises(RuntimeError, match="gradients of tree and rows differ"):
        bench_step.step_figures("cpu", quick=True)


def test_decoding_is_not_timed_where_the_two_ways_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_decode, "CASES", {"2 over 4000": ((4000,), (2,))})
    kept = decode._over
    monkeypatch.setattr(decode, "_over", lambda q, *rest: kept(q * 2, *rest))
    with pytest.raises(RuntimeError, match="disagree"):
        bench_decode.decode_figures("cpu", quick=True)


def test_one_compiled_flex_mask_serves_every_family(monkeypatch: pytest.MonkeyPatch) -> None:
    bench_gpu = pytest.importorskip("treewright.benchmarks.kernels_gpu")
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    flex = bench_gpu._Flex(512, (4, 2), None, "cpu")
    for family in FAMILIES[:4]:
        plan = family.plan(512)
        q, k, v = (torch.randn(h, 512, 16) for h in (4, 2, 2))
        expected, _ = dense_attention(q, k, v, plan)
        with torch.no_grad():
            assert relative_error(flex.on(plan)(q, k, v), expected) < 1e-5
    with pytest.raises(ValueError, match="500 tokens for a mask of 512"):
        flex.on(FAMILIES[0].plan(500))


def test_gpu_figures_hold_rows_and_the_least_over_large_ones() -> None:
    bench_gpu = pytest.importorskip("treewright.benchmarks.kernels_gpu")
    row = {"family": "x", "tokens": 16384, "heads": "32:8", "D": 128, "fwd_tflops": 3.0, "bwd_tflops": 2.0}
    row |= {"fwd_vs_flex": None, "bwd_vs_flex": 1.5}
    figures = bench_gpu._figures([row, row | {"fwd_tflops": 1.0}, row | {"tokens": 4096, "fwd_tflops": 0.5}])
    assert figures["fwd_tflops_min"]["value"] == 1 and figures["fwd_tflops_median"]["value"] == 3
    assert "fwd_vs_flex_min" not in figures and "bwd_vs_flex [x, 4096, 32:8, D=128]" in figures


def test_planning_is_measured_on_a_forest_of_the_wanted_size() -> None:
    assert 0 < bench.planning_seconds(2000) < 0.5
