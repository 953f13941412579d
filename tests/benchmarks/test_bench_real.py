"""The sections of `bench real`, run small on the packaged model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from treewright.agent.cli.bench import HOMES
from treewright.agent.runs.evaluate import Evaluation
from treewright.benchmarks.real import SECTIONS, valid_figures
from treewright.benchmarks.real_exact import RATES, exact_figures
from treewright.benchmarks.real_judges import PER_TASK, judges_figures
from treewright.benchmarks.real_learning import gains, learning_figures
from treewright.benchmarks.real_memory import memory_figures
from treewright.benchmarks.real_parts import FULL, QUICK, Figures, kept, measuring, share_interval, sized
from treewright.benchmarks.real_sampling import sampling_figures
from treewright.benchmarks.real_servers import compared
from treewright.benchmarks.real_shapes import OPTIMIZERS, SHAPES, shapes_figures
from treewright.benchmarks.real_step import step_figures
from treewright.benchmarks.real_update import BOUNDS, CLOSE, update_figures
from treewright.benchmarks.search import section
from treewright.envs.errors import TreewrightError

SMALL = replace(QUICK, held_out=3, untouched=3, demos=(3,), rounds=1, trees_a_round=2)


def test_every_section_is_there() -> None:
    assert HOMES["real"] == "real" and all(callable(section(name)) for name in SECTIONS)


def test_log_probs_and_gradients_agree_and_a_higher_rate_goes_further() -> None:
    with measuring(replace(QUICK, trees=5, gradients=3), None):
        found = {name: value for name, (value, _) in exact_figures(True, "seedling").items()}
    assert found["exact/tokens"] > 30 and found["exact/trees"] == 5 and found["exact/trees_with_gradient"] == 3
    assert 0 < found["real_logprob_gap_max"] <= 2e-4
    assert 0 < found["exact/gradient_of_plain_rows"] <= 1e-3
    moved, outside = ([found[f"{kind}/{rate:g}"] for rate in RATES] for kind in ("step_kl", "step_outside_clip"))
    assert moved == sorted(moved) and moved[-1] > 10 * moved[0] > 0
    assert outside == sorted(outside) and 0 <= outside[-1] <= 1


def test_valid_shares_are_those_of_the_best_way_with_an_interval() -> None:
    found = {name: value for name, (value, _) in valid_figures(True, "seedling").items()}
    assert found["real_valid_share_min"] == found["valid/grammar/kg"] == 1.0
    assert 0 < found["valid_low/grammar/kg"] < 0.5 and found["valid_high/grammar/kg"] == 1.0  # two tasks say little


def test_a_line_of_learning_is_measured_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    with measuring(SMALL, tmp_path):
        found = {name: value for name, (value, _) in learning_figures(True, "seedling").items()}
        (home,) = tmp_path.glob("learning-*")
        first = [*home.glob("*-alone-3.json"), *home.glob("*/rounds.json")]
        made = {file: file.stat().st_mtime_ns for file in first}
        assert len(first) == 7  # untouched, begun sampled and greedy, trees and chains; the rounds of both
        assert found["real_after_imitation_min"] == found["imitation/kg"] and 0 <= found["imitation_greedy/kg"] <= 100
        assert 0 <= found["oracle/kg"] <= 100 and found["trees/0/minutes"] > 0
        assert found["chains/0/sampled_tokens"] >= found["trees/0/sampled_tokens"] > 0
        assert found["real_gain_points_min"] == pytest.approx(found["trees/0/kg"] - found["imitation/kg"])
        shutil.rmtree(home / "trees-2-new-0/checkpoints")  # what was measured is read, not measured again
        again = {name: value for name, (value, _) in learning_figures(True, "seedling").items()}
    assert again == found and {file: file.stat().st_mtime_ns for file in first} == made
    with measuring(replace(SMALL, rounds=2), tmp_path):
        more = {name: value for name, (value, _) in learning_figures(True, "seedling").items()}
    rounds = json.loads((home / "trees-2-new-0/rounds.json").read_text())
    assert len(rounds) == 2 and rounds[0][0] == found["trees/0/sampled_tokens"] and more["trees/0/rounds"] == 2
    with measuring(replace(SMALL, tokens=1), tmp_path):  # as many as were drawn are enough
        alone = {name: value for name, (value, _) in learning_figures(True, "seedling").items()}
    assert not any(name.startswith(("trees", "real_gain")) for name in alone)
    assert alone["chains/0/rounds"] == more["chains/0/rounds"]


def test_loops_of_several_seeds_run_side_by_side_as_they_do_one_after_another(tmp_path: Path) -> None:
    two = replace(SMALL, seeds=2, chains=0)
    with measuring(two, tmp_path / "in turn"):
        learning_figures(True, "seedling")
    with measuring(replace(two, beside=2), tmp_path / "beside"):
        found = {name: value for name, (value, _) in learning_figures(True, "seedling").items()}
    drawn = [
        [json.loads(file.read_text())[0][0] for file in sorted(folder.glob("learning-*/trees-2-*/rounds.json"))]
        for folder in (tmp_path / "in turn", tmp_path / "beside")
    ]
    assert found["beside"] == 2 and drawn[1] == [found[f"trees/{seed}/sampled_tokens"] for seed in (0, 1)]
    assert drawn[0] == drawn[1]


def test_sampling_is_compared_between_two_builds_on_the_weights_that_imitated(tmp_path: Path) -> None:
    build = str(Path(__file__).resolve().parents[2])
    with measuring(SMALL, tmp_path):
        found = {name: value for name, (value, _) in sampling_figures(True, "seedling", (build, build)).items()}
        assert list(tmp_path.glob("learning-*/begun/checkpoints/step-*"))
        again = sampling_figures(True, "seedling", ("nowhere", "nowhere"))  # is read, not measured again
    assert {name: value for name, (value, _) in again.items()} == found
    assert found["sampling/low"] <= found["real_tokens_per_s_vs_before"] <= found["sampling/high"]
    assert found["sampling/before"] > 0 and found["sampling/after"] > 0


def test_gains_are_those_of_the_mean_over_seeds() -> None:
    def of(*success: float) -> dict[str, Evaluation]:
        names = tuple(map(str, range(len(success))))
        return {"kg": Evaluation("kg", names, success, 0.0, 0, 0, 0)}

    found = gains("trees", of(0, 0, 1, 1), [of(1, 0, 1, 1), of(1, 1, 1, 0)])
    assert found["trees_gain/kg"] == (25.0, "points")
    assert found["trees_low/kg"][0] < 25 < found["trees_high/kg"][0]


def test_the_memory_of_a_loop_is_that_of_its_own_process() -> None:
    found = {name: value for name, (value, _) in memory_figures(True, "seedling").items()}
    assert 0.2 < found["real_peak_gb"] < 2 and found["loop/trees"] == 4 and found["loop/sampler_gap"] < 1e-3


def test_a_step_on_trees_is_timed_beside_the_same_step_on_rows() -> None:
    with measuring(SMALL, None):
        found = {name: value for name, (value, _) in step_figures(True, "seedling").items()}
    assert found["step/gradient_difference"] < 1e-4 and found["step/trees"] == 2
    assert found["step/row_tokens"] > found["step/tokens"] and found["step/ideal"] > 1
    assert found["real_step_over_ideal"] * found["step/ideal"] == pytest.approx(found["step/speedup"])


def test_parts_that_were_measured_are_kept_by_what_they_are_of(tmp_path: Path) -> None:
    asked = []

    def measure() -> Figures:
        asked.append(1)
        return {"one": (float(len(asked)), "times")}

    with measuring(QUICK, tmp_path):
        assert kept({"part": "valid", "tasks": 2}, measure) == kept({"part": "valid", "tasks": 2}, measure)
        assert kept({"part": "valid", "tasks": 3}, measure)["one"][0] == 2
    assert kept({"part": "valid", "tasks": 2}, measure)["one"][0] == 3


def test_a_size_is_told_by_name() -> None:
    assert sized("tasks=4, trees=10") == replace(FULL, tasks=4, trees=10) and sized(None, QUICK) == QUICK
    assert sized("chains=0").chains == 0 and sized("tokens=9").tokens == 9
    with pytest.raises(TreewrightError, match="leave one of both out"):
        sized("chains=0,tokens=9")
    assert sized("taught=kg+stdlib,demos=3+4") == replace(FULL, taught=("kg", "stdlib"), demos=(3, 4), first=0)
    assert sized("taught=kg+stdlib,first=5").first == sized("first=5,taught=kg+stdlib").first == 5
    assert sized("demos=3").shown == {"office": 3, "workbench": 3}
    assert sized("demos=3+4").shown == {"office": 3, "workbench": 4}
    for wrong in ("tasks=0", "tasks", "task=3", "trees=-1", "trees=1+2", "demos=0", "demos=3+"):
        with pytest.raises(TreewrightError, match="NAME=NUMBER"):
            sized(wrong)
    with pytest.raises(TreewrightError, match="did you mean 'kg'"):
        sized("taught=kgg")
    for wrong in ("demos=3+4+5", "taught=kg+stdlib,demos=3+4+5", "taught=kg,demos=3+4"):
        with pytest.raises(TreewrightError, match=r"demos=\S+: write one number, or one for each"):
            sized(wrong)


def test_an_interval_of_a_share_is_wilsons() -> None:
    low, high = share_interval(0.5, 10)
    assert (low, high) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert share_interval(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4) and share_interval(0.3, 0) == (0.0, 1.0)


def test_every_rule_with_every_judge_searches_held_out_tasks_within_the_same_budget(tmp_path: Path) -> None:
    with measuring(SMALL, tmp_path):
        found = {name: value for name, (value, _) in judges_figures(True, "seedling").items()}
    for way in ("best_first", "astar", "beam"):
        for judge in ("likelihood", "checklist", "prm"):
            assert 0 < found[f"judges/{way}/{judge}/sampled"] <= PER_TASK
            assert 0 <= found[f"judges/{way}/{judge}"] <= 100
    assert found["judges/beam/checklist/judged"] > 0 == found["judges/alone/judged"]


def test_greedy_episodes_are_compared_up_to_the_first_draw_that_differs() -> None:
    one = _Path([("", 0.0), ("a", -1.0), ("b", -2.0), ("c", -3.0)])
    other = _Path([("", 0.0), ("a", -1.5), ("x", -2.0), ("c", -9.0)])
    found = {name: value for name, (value, _) in compared("way", cast(Any, [one]), cast(Any, [other])).items()}
    assert found == {
        "servers/way/draws": 2, "servers/way/same": 0.5, "servers/way/tokens": 2, "servers/way/gap": 0.5,
    }  # fmt: skip


class _Path:
    """What `compared` reads of a tree: texts, and two log-probs a draw."""

    def __init__(self, draws: list[tuple[str, float]]) -> None:
        self.text = [text for text, _ in draws]
        self.logprobs = [(logp, logp) for _, logp in draws]

    def __len__(self) -> int:
        return len(self.text)


def test_an_update_is_as_long_as_its_bound_and_its_gradient_says_what_it_promises() -> None:
    with measuring(replace(SMALL, trees_a_round=4), None):
        found = {name: value for name, (value, _) in update_figures(True, "seedling").items()}
    assert -1 <= found["update/gradients_alike"] <= 1 and found["update/trees"] == 4
    for bound in BOUNDS:
        assert CLOSE[0] <= found[f"update/{bound:g}/divergence"] / bound <= CLOSE[1]
        assert found[f"update/{bound:g}/promised"] > 0 and abs(found[f"update/{bound:g}/gained"]) <= 100
    assert found[f"update/{BOUNDS[1]:g}/promised"] > found[f"update/{BOUNDS[0]:g}/promised"]


def test_what_a_step_promises_is_told_for_its_own_trees_and_for_those_of_other_tasks() -> None:
    with measuring(replace(SMALL, trees_a_round=4), None):
        found = {name: value for name, (value, _) in shapes_figures(True, "seedling").items()}
    assert found["shapes/others"] == 12
    for name, (times, _) in SHAPES.items():
        assert found[f"shapes/{name}/trees"] == 4 * times and found[f"shapes/{name}/sampled_tokens"] > 0
        for optimizer in OPTIMIZERS if name == "trees" else OPTIMIZERS[:1]:
            own, others = (found[f"shapes/{name}/{optimizer}/{whose}"] for whose in ("own", "others"))
            assert 0 < own < 100 and abs(others) < own
