"""A few points of the grid of faults, and that it notices a tree that a fault has changed without a word."""

from __future__ import annotations

from typing import Any

import pytest

from treewright.envs import types

from . import grid


async def test_faults_that_pass_leave_no_trace_and_those_that_stay_are_told() -> None:
    counts = await grid.trials(2, ["tools"], ["half", "wrong"])
    assert counts["grid_faults_met"] == counts["grid_trials"] == 2 * 2 * len(grid.PLACES)
    assert not counts["grid_wrong_trees"] and not counts["grid_hangs"] and not counts["grid_rewards_of_faults"]
    assert counts["grid_mended"] >= 2 * len(grid.PLACES), "those that pass, at the least"


async def test_a_fault_that_is_taken_as_an_answer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Believing(grid.Behind):
        """Takes a lost step as one that showed nothing."""

        async def step(self, action: types.Action, key: int) -> types.StepResult:
            try:
                return await super().step(action, key)
            except Exception:
                return types.StepResult(types.Observation("", "lost"), reward=0.0, effect=types.Effect.READ)

    monkeypatch.setattr(grid, "Behind", Believing)
    counts: Any = await grid.trials(2, ["passages"], ["reset"])
    assert counts["grid_wrong_trees"]


async def test_a_call_that_hangs_because_one_before_it_was_broken_is_no_busy_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grid, "TRIES", 2)

    class Stuck(grid.Behind):
        """What comes after a broken step takes as long as it may; nobody waits for it here."""

        async def step(self, action: types.Action, key: int) -> types.StepResult:
            self.struck.slow += self.struck.calls > 0
            return await super().step(action, key)

    monkeypatch.setattr(grid, "Behind", Stuck)
    monkeypatch.setattr(grid, "PLACES", ("step",))
    counts: Any = await grid.trials(1, ["passages"], ["reset"])
    assert counts["grid_hangs"] == 1 and not counts["grid_left_out"]
