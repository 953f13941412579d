"""Free memory goes back to the system around an update, and before a step of a large model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from tests.agent.small import qwen3
from treewright.agent.runs import loop
from treewright.training import step
from treewright.training.heap import give_back
from treewright.training.pack import TokenRow, pack_rows


class Told(Exception):
    """Ends an update."""


class Trainer:
    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def update(self, trees: Any) -> dict[str, float]:
        self.calls.append("update")
        raise Told


def test_what_the_sampler_held_goes_back_before_the_trainer_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[str]()
    monkeypatch.setattr(loop, "give_back", lambda: calls.append("give back"))
    learner = loop.Learner(cast(Any, Trainer(calls)), tmp_path, 1, "hf:none")
    with pytest.raises(Told):
        learner.learn([], {})
    assert calls == ["give back", "update"]


@pytest.mark.parametrize("least, given", [(1, 2), (1 << 40, 0)])
def test_activations_go_back_before_each_step_of_a_large_model(
    least: int, given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[str]()
    monkeypatch.setattr(step, "give_back", lambda: calls.append("give back"))
    monkeypatch.setattr(step, "SMALL", least)
    trainer = step.Trainer(qwen3(), step.TrainSettings(minibatches=2, max_tokens=64, lr=1e-3))
    rows = [[TokenRow(context=(5, i, 7), response=(8, 9) * 5, coef=1.0)] for i in range(20)]
    trainer.descend_surrogate(pack_rows(rows, 64))
    assert len(calls) == given and trainer.steps == 2


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what a process holds")
def test_freed_pages_between_living_ones_leave_the_process() -> None:
    def resident() -> int:
        (line,) = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmRSS")]
        return int(line.split()[1])

    give_back()
    kept = [bytearray(60_000) for _ in range(4000)]
    full = resident()
    kept = kept[::2]
    give_back()
    assert full - resident() > 80_000 and len(kept) == 2000  # KiB, of the 117,000 that were freed
