"""Free memory goes back to the system around an update."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from treewright.agent.policies.heap import give_back
from treewright.agent.runs import loop


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
