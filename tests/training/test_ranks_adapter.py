"""Two processes train an adapter as one does: equal gradients, a reference without a copy, checkpoints both ways; and
ranks whose settings differ are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ranks_child import together

pytest.importorskip("peft")


def test_an_adapter_learns_in_two_processes_what_it_learns_in_one(tmp_path: Path) -> None:
    together("adapted", tmp_path)
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found["ways"]) == 8
    for name, one in found["ways"].items():
        half = name.endswith("half")
        assert one["gap"] <= (0.05 if half else 1e-9) and one["steps"] > 0 and one["same"], name
        assert one["loss"][0] == pytest.approx(one["loss"][1], rel=0.05 if half else 1e-9), name
        many, alone = one["reference"]
        if "clipped" in name:  # a mean over packs, which are others
            assert many > 0 and many == pytest.approx(alone, rel=0.2), name
        else:
            assert many is None and alone is None, name
    ends = found["ends"]
    assert ends["restored"][0] == ends["restored"][1] and ends["back"][0] == ends["back"][1] == ends["restored"][0]
    assert found["after"][0] == pytest.approx(found["after"][1], rel=1e-4) and ends["gap"] <= 1e-4
    assert "adapter for other" in ends["said"] and "begin with --policy" in ends["said"]
    assert "train.max_tokens is 120 on one rank and 119 on another; start all ranks by the same line" in ends["unlike"]
    saved = next((tmp_path / "two").glob("step-*"))
    assert (saved / "adapter_model.safetensors").is_file() and not (saved / "model.safetensors").exists()
    held = sum(p.stat().st_size for p in (saved / "state").iterdir())
    assert held < 60_000  # the adapter and its optimizer, nothing of the base
