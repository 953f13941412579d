from __future__ import annotations

import json
from pathlib import Path

import pytest
from growth import counted

from treewright.benchmarks import credit as bench_credit
from treewright.training.check.mdp_growth import SCHEDULES
from treewright.training.credit import ESTIMATORS, variants


def test_the_bench_reports_every_cell_and_writes_what_it_returns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "credit.json"
    result = bench_credit.main(
        quick=True, json_path=path, trees=320, schedules=["chains", "random", "best_first"], nodes=4000
    )
    assert json.loads(path.read_text()) == result
    figures = result["figures"]
    wanted = {"bias_split_loo_random_over_noise", "bias_leaf_rows_best_first_over_noise", "split_loo_s_1e6"}
    cells = {f"scale_{name}_best_first" for name in [*ESTIMATORS, *variants.__all__] if name != "split_fitted"}
    assert wanted | cells <= set(figures)
    assert figures["bias_split_loo_best_first_over_noise"]["value"] < 3
    printed = capsys.readouterr().out
    assert "quick run" in printed and "split_loo by schedule" in printed


def test_a_plot_is_drawn_or_its_absence_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "credit.svg"
    bench_credit.main(quick=True, plot_path=path, trees=16, schedules=["chains"], nodes=1000)
    assert path.exists() or "matplotlib is not installed" in capsys.readouterr().out


def test_the_tables_in_the_documentation_are_those_of_the_committed_figures() -> None:
    docs = Path(__file__).parents[2] / "docs"
    figures = json.loads((docs / "credit.json").read_text())["figures"]
    assert bench_credit.markdown(figures, list(SCHEDULES)) in (docs / "credit.md").read_text()


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_the_work_of_an_estimator_grows_no_faster_than_its_nodes(name: str) -> None:
    few, many = bench_credit.big_batch(5_000), bench_credit.big_batch(50_000)
    estimator = ESTIMATORS[name]
    estimator(few)  # what is made once
    (steps, held), (more_steps, more_held) = counted(lambda: estimator(few)), counted(lambda: estimator(many))
    assert more_steps < 12 * steps and more_held < 12 * held
