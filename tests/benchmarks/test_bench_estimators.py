"""When an unbiased estimator matters: a world in which leaf rows learn the worse action, and the page that says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from treewright.benchmarks import estimators
from treewright.benchmarks.estimators import CASES, ESTIMATORS, OPTIMIZERS, interval, markdown, trained

DOCS = Path(__file__).parents[2] / "docs"


def test_in_the_trap_the_unbiased_estimator_learns_the_sure_action_and_leaf_rows_the_coin() -> None:
    right = trained(CASES["trap"], "split_loo", "adam", 0.1, 1, 40)
    wrong = trained(CASES["trap"], "rows", "adam", 0.1, 1, 40)
    assert right[0] == wrong[0] == pytest.approx(0.55)
    assert right[-1] > 0.57 and wrong[-1] < 0.53


def test_what_the_world_draws_is_not_trained() -> None:
    world = CASES["trap"].world
    assert world.values()[0].tolist() == pytest.approx([0.55, 0.5, 1.0, 0.0])
    assert estimators._best(CASES["trap"]) == pytest.approx(0.6)
    assert estimators._best(CASES["short, alike"]) >= CASES["short, alike"].world.values()[0][0]


def test_the_interval_is_of_paired_differences() -> None:
    assert interval([2.0, 3.0], [1.0, 2.0]) == pytest.approx((1.0, 1.0, 1.0))


def test_every_case_has_every_estimator_and_optimizer() -> None:
    found = estimators.main(quick=True, updates=2)
    assert set(found["cases"]) == set(CASES) and found["quick"]
    for told in found["cases"].values():
        assert set(told["estimators"]) == set(ESTIMATORS)
        assert all(np.isfinite(x[o]["area"]) for x in told["estimators"].values() for o in OPTIMIZERS)


@pytest.mark.skipif(not (DOCS / "estimators.json").exists(), reason="its figures have not been made yet")
def test_the_page_has_the_table_of_the_json() -> None:
    told = json.loads((DOCS / "estimators.json").read_text())
    page = (DOCS / "credit.md").read_text()
    assert not told["quick"] and all(line in page for line in markdown(told["cases"]).splitlines())
