"""The four ways that a training step is measured in have one gradient; the figures are those that are committed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

transformers = pytest.importorskip("transformers")

from treewright.benchmarks import train  # noqa: E402
from treewright.benchmarks.families import FAMILIES  # noqa: E402
from treewright.benchmarks.train_ways import WAYS, backward, gathered_keys, load_of, steps_of  # noqa: E402
from treewright.kernels import TreePlan  # noqa: E402
from treewright.training.model import prepare  # noqa: E402

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
    )  # fmt: skip
    made = transformers.LlamaForCausalLM(config).eval()
    prepare(made)
    return made


@pytest.mark.parametrize("name", train.NAMES)
def test_all_ways_have_the_gradient_of_rows(model: Any, name: str) -> None:
    load = load_of(next(f for f in FAMILIES if f.name == name).plan(300), 97)
    found, sizes = {}, {}
    for way in WAYS:
        steps = steps_of(load, way)
        sizes[way] = sum(step.load.plan.n_queries for step in steps)
        model.zero_grad()
        backward(model, steps)
        found[way] = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
    for way in WAYS:
        assert float((found[way] - found["rows"]).norm() / found["rows"].norm()) <= 2e-5, way
    assert sizes["tree"] == sizes["gathered"] == 300 <= sizes["shared"] <= sizes["rows"]
    assert (sizes["shared"] == 300) == name.startswith("flat")


def test_keys_are_gathered_once_for_each_segment_of_a_path() -> None:
    plan = TreePlan.from_segments([-1, 0, 1, 1, 0], [5, 3, 2, 4, 1])
    assert gathered_keys(plan) == 5 + 8 + 10 + 12 + 6


def test_a_measured_line_and_its_figures(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    load = load_of(FAMILIES[2].plan(200), 97)
    line = train.side_by_side(train.Mode(name="float32", model=model), "f", load, WAYS, 1)
    assert line["difference"] <= 1e-4 and line["speedup"] > 0 and line["ideal"] > 2
    assert {f"{way}_{what}" for way in WAYS for what in ("s", "peak")} <= set(line)
    figures = train._figures([line, line | {"mode": "bf16", "difference": 0.01, "of ideal": 0.5}])
    assert figures["gradient_difference_max"][0] == line["difference"]
    assert figures["train_step_over_ideal_min_bf16"][0] == 0.5
    monkeypatch.setitem(train.AGREE, None, 0.0)
    with pytest.raises(RuntimeError, match="nothing is timed"):
        train.side_by_side(train.Mode(name="float32", model=model), "f", load, WAYS, 1)


def test_planning_is_timed_with_and_without_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    class Row:
        def __init__(self) -> None:
            self.rows: list[Any] = []

        def add(self, sample: Any) -> None:
            self.rows.append(sample)

        def pack(self) -> dict[str, Any]:
            return {"input_ids": np.zeros(sum(len(row["input_ids"]) for row in self.rows))}

    monkeypatch.setattr(train, "_trl_row", lambda: Row)
    figures = train._planning(Console(quiet=True))
    assert figures["plan_vs_trl_packing"][0] == pytest.approx(figures["plan_s"][0] / figures["plan_trl_s"][0], rel=9)
    monkeypatch.setattr(train, "_trl_row", lambda: None)
    assert "plan_vs_trl_packing" not in train._planning(Console(quiet=True))


def test_the_committed_figures_name_what_was_measured_and_how() -> None:
    result = json.loads((DOCS / "train.json").read_text())
    names = {"train_step_over_ideal_min", "train_step_over_ideal_min_bf16", "train_step_over_ideal_min_lora",
             "train_step_over_ideal_min_checkpointed", "chunked_peak_ratio_8x", "plan_vs_trl_packing",
             "gradient_difference_max"}  # fmt: skip
    assert names <= set(result["figures"]) and result["commit"] and not result["gpu"]
    assert result["quick"] == ("a quick run" in " ".join((DOCS / "training.md").read_text().split()))
