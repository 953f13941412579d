"""The larger plan of the second experiment: its arms open, its page says what its code does, a run is not run twice."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from treewright.agent.runs.setup import rule_of
from treewright.benchmarks import learning_loop
from treewright.benchmarks.learning_loop import ARMS, AXES, PLAN, WORLDS, Cell, bases, cells, figures, tuned
from treewright.training.credit import ESTIMATORS

PAGE = (Path(__file__).parents[2] / "docs" / "learning2.md").read_text()
TINY = replace(learning_loop.QUICK, tokens=40, tasks=1, held_out=2, source=1, search=2)


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_configuration_with_a_rule_and_an_estimator(arm: str, tmp_path: Path) -> None:
    config = learning_loop._config(Cell("rare", arm, 1e-3, 1), tmp_path, PLAN)
    assert rule_of(config.search).name and config.train.estimator in ESTIMATORS
    assert config.train.lr == 1e-3 and config.loop.tasks == PLAN.tasks
    assert (config.loop.curriculum.share > 0) == (arm == "curriculum")


def test_the_page_says_what_the_plan_is() -> None:
    for name in (*WORLDS, *ARMS, *AXES):
        assert f"`{name}`" in PAGE
    assert f"{PLAN.tokens:,} tokens" in PAGE and f"{PLAN.tasks} tasks a round" in PAGE
    assert f"{PLAN.held_out} held-out tasks" in PAGE and f"{PLAN.source} training tasks" in PAGE
    assert "seeds 101, 102 and 103" in PAGE and PLAN.tuning == (101, 102, 103)
    assert "seeds 1 to 10" in PAGE and PLAN.seeds == tuple(range(1, 11)) and PLAN.checks == 10
    assert PLAN.rates == (3e-4, 1e-3, 3e-3) and "Rates 3e-4, 1e-3 and 3e-3" in PAGE


def test_seeds_come_whole_and_share_their_tasks() -> None:
    plan = replace(PLAN, worlds=("easy", "rare"), arms=("chains", "late"), rates=(1e-3, 3e-3))
    assert [c.seed for c in cells(plan, (4, 5))] == [4] * 8 + [5] * 8
    one = cells(plan, (4,), {(w, a): 3e-3 for w in plan.worlds for a in plan.arms})
    assert [(c.world, c.arm, c.rate) for c in one] == [(w, a, 3e-3) for w in plan.worlds for a in plan.arms]
    first, second = (learning_loop._shuffled(WORLDS["rare"], seed) for seed in (1, 2))
    assert [t.id for t in first("train", 3)] == [t.id for t in first("train", 5)][:3]
    assert not {t.id for t in first("train", 50)} & {t.id for t in second("train", 50)}
    assert first("test", 3) == second("test", 3)


def test_the_rate_of_the_largest_area_is_taken_and_ratios_are_to_the_first_arm() -> None:
    def points(*success: float) -> list[Any]:
        return [{"success": s, "meter": dict.fromkeys(AXES, 100.0 * i)} for i, s in enumerate(success)]

    found = {
        Cell("rare", "chains", 1e-3, s): points(0.0, 0.1, 0.2) for s in (1, 2)
    } | {Cell("rare", "late", 1e-3, s): points(0.0, 0.2, 0.4) for s in (1, 2)}  # fmt: skip
    assert figures(found)["rare"]["flops"]["late"].ratio == pytest.approx(2.0)
    assert figures(found)["rare"]["flops"]["late"].pairs == 2
    slow = {Cell("rare", "chains", 3e-3, s): points(0.0, 0.0, 0.2) for s in (1, 2)}
    rates = tuned(found | slow)
    assert rates == {("rare", "chains"): 1e-3, ("rare", "late"): 1e-3}
    more = {Cell("rare", "chains_4", 1e-3, s): points(0.1, 0.1, 0.3) for s in (1, 2)}
    base = bases(found | slow | more, rates | {("rare", "chains_4"): 1e-3})
    assert base == {"rare": "chains_4"}, "chains are tuned as the other arms are"
    again = figures(found | more, base)["rare"]["flops"]
    assert again["chains_4"].ratio is None and again["chains"].ratio == pytest.approx(0.1 / 0.15)


def test_a_run_measures_at_the_start_and_the_end_and_is_not_run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell("easy", "late", 1e-3, 1)
    points = asyncio.run(learning_loop.run_cell(cell, tmp_path, TINY))
    assert len(points) == 2 and points[0]["meter"]["sampled_tokens"] == 0
    assert points[1]["meter"]["sampled_tokens"] >= 40 and points[1]["meter"]["flops"] > 0
    monkeypatch.setattr(learning_loop, "run_loop", None)
    assert asyncio.run(learning_loop.run_cell(cell, tmp_path, TINY)) == points
