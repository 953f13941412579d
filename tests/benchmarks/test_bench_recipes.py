"""The benchmark of the recipes runs from end to end and gives a figure for each."""

from __future__ import annotations

import pytest
import torch

from treewright.agent.cli.bench import HOMES
from treewright.benchmarks import recipes as bench_recipes


def test_every_recipe_has_a_gain_with_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_recipes, "QUICK", bench_recipes._Plan(10, 6, 10))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        figures = bench_recipes.main(quick=True)["figures"]
    finally:
        torch.set_num_threads(before)
    for name in bench_recipes.RECIPES:
        low, gain, high = (figures[f"gain_{name}_{part}"]["value"] for part in ("low", "points", "high"))
        assert -100 <= low <= gain <= high <= 100
    assert (
        0 <= figures["prm_brier"]["value"] <= 1
        and f"treewright.benchmarks.{HOMES['recipes']}" == bench_recipes.__name__
    )
