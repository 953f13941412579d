"""The comparison of credit and trees within responses: its parts, a tiny run, and the page that tells of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from treewright.agent.config import load_config
from treewright.benchmarks import segments_learning as bench
from treewright.envs.registry import suite
from treewright.training.credit import TreeArrays, estimate

DOCS = Path(__file__).parents[2] / "docs"


def test_best_of_n_trains_the_first_of_the_best_answers_and_none_where_nothing_was_earned() -> None:
    name = "treewright.benchmarks.segments_learning:best_of_n"
    some = estimate(name, TreeArrays.of([-1, 0, 0, 0], reward=[0, 0.5, 1, 1])).coef
    assert np.flatnonzero(some).tolist() == [2] and some[2] > 0
    assert not estimate(name, TreeArrays.of([-1, 0, 0], reward=[0, 0, 0])).coef.any()


def test_every_arm_is_a_configuration_and_differs_from_its_other_in_what_is_compared() -> None:
    configs = {arm: load_config(None, list(settings)) for arm, settings in bench.ARMS.items()}
    assert set(bench.PAIRS) | set(bench.PAIRS.values()) == set(configs)
    tempo, grpo = configs["tempo"], configs["grpo"]
    assert tempo.search == grpo.search and (tempo.train.unit, grpo.train.unit) == ("token", "turn")
    assert configs["segments"].train.estimator == configs["chains"].train.estimator == "split_loo"
    assert configs["vstar"].loop.prm_every == 2 and configs["best_of_n"].search == grpo.search
    assert all(suite(name).tasks("train", 1) for name in bench.SUITES.values())


def test_the_page_says_what_the_plan_is() -> None:
    page, plan = (DOCS / "segments-learning.md").read_text(), bench.PLAN
    for name in (*bench.ARMS, *bench.SUITES, *bench.SUITES.values()):
        assert f"`{name}`" in page
    assert f"samples {plan.tokens:,} tokens" in page and f"{plan.held_out} held-out tasks" in page
    assert plan.checks == 3 and "at the start and three times after" in page
    assert plan.tasks == 4 and "Four tasks an update" in page
    assert f"at most {plan.epochs} epochs" in page and f"{plan.demos} demonstrations" in page
    assert plan.enough == 0.2 and f"20 % of {plan.held_out} training tasks" in page
    assert plan.tuning == (101, 102, 103) and "seeds 101, 102 and 103" in page
    assert plan.seeds == (1, 2, 3, 4, 5) and "seeds 1 to 5" in page
    assert plan.rates == (1e-3, 3e-3) and "Rates 1e-3 and 3e-3" in page
    assert '"length": 6, "most": 4' in bench.CUT and "segments of 6 tokens, at most 4" in page


def test_seeds_have_training_tasks_of_their_own_and_share_those_held_out() -> None:
    one = suite(bench.SUITES["countdown"])
    seeds = [bench._from(one, seed) for seed in (*bench.PLAN.seeds, *bench.PLAN.tuning)]
    drawn = [{task.id for task in made.tasks("train", bench.APART)} for made in seeds]
    assert len(set().union(*drawn)) == bench.APART * len(seeds)
    assert all(made.tasks("test", 5) == one.tasks("test", 5) for made in seeds)


def points(*success: float) -> list[dict[str, Any]]:
    return [{"success": s, "meter": {"sampled_tokens": 100 * i}, "rounds": i} for i, s in enumerate(success)]


def test_rates_are_chosen_by_area_and_arms_compared_by_seed() -> None:
    tuning = {
        bench.Cell("sorting", "grpo", rate, seed): points(0, top, top)
        for seed in (101, 102)
        for rate, top in ((1e-3, 0.5), (3e-3, 0.25))
    }
    assert bench.tuned(tuning, 200) == {("sorting", "grpo"): 1e-3}
    runs = {
        bench.Cell("sorting", arm, 1e-3, seed): points(0, top + seed / 100, top + seed / 100)
        for seed in (1, 2, 3)
        for arm, top in (("grpo", 0.2), ("tempo", 0.4))
    }
    arm = bench.figures(runs)["sorting"]["tempo"]
    assert arm.ratio == pytest.approx(0.42 / 0.22) and arm.low is not None and arm.low > 1.5 and arm.pairs == 3


def test_tiny_runs_go_through_the_loop_and_are_not_made_twice(tmp_path: Path) -> None:
    first = bench.main(quick=True, home=tmp_path)
    assert set(first["arms"]["sorting"]) == {"tempo", "grpo"}
    assert all(len(p) == bench.QUICK.checks + 1 and p[-1]["rounds"] > 0 for p in first["runs"].values())
    kept = sorted(tmp_path.glob("sorting-*.json"))
    kept[0].write_text(json.dumps(points(0.25, 0.75)))
    again = bench.main(quick=True, home=tmp_path)
    assert again["runs"][kept[0].stem] == points(0.25, 0.75)


def test_the_page_says_what_the_json_holds() -> None:
    _, heading, below = (DOCS / "segments-learning.md").read_text().partition(bench.HEADING)
    figures = DOCS / "segments-learning.json"
    assert heading
    if figures.exists():
        result = json.loads(figures.read_text())
        assert not result["quick"] and set(result["arms"]) == set(bench.SUITES)
        assert below == bench.results_text(result)
    else:
        assert below == "None yet.\n", "figures without the JSON that they come from"


def test_what_decides_nothing_is_called_undecided() -> None:
    arm = {"against": "grpo", "area": 0.5, "final": 0.6, "ratio": 1.25, "low": 0.9, "high": 1.5, "pairs": 5}
    base = {**arm, "against": None, "area": 0.4, "ratio": None, "low": None, "high": None}
    result = {
        "arms": {"sorting": {"grpo": base, "tempo": arm}},
        "rates": {"sorting grpo": 1e-3, "sorting tempo": 3e-3},
        "runs": {"x": points(0, 1)},
        "commit": "abc",
    }
    row = "| `sorting` | `tempo` | `grpo` | 0.003 and 0.001 | 0.500 | 0.400 | 1.25 (0.90 … 1.50) | undecided |"
    assert row in bench.results_text(result)
    better = {**result, "arms": {"sorting": {"grpo": base, "tempo": {**arm, "low": 1.1}}}}
    assert "| better |" in bench.results_text(better)
