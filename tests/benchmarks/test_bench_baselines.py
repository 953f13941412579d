"""What fitted baselines save: measured without bias, and the page has the table of the committed figures."""

from __future__ import annotations

import json
from pathlib import Path

from treewright.benchmarks import baselines

DOCS = Path(__file__).parents[2] / "docs"


def test_every_baseline_is_measured_against_split_loo_and_a_true_value_helps_chains() -> None:
    found = baselines.main(trees=1_600)["schedules"]
    for told in found.values():
        assert set(told) == set(baselines.WAYS) and told["split_loo, τ = 3"]["ratio"] == 1.0
        assert all(x["over_noise"] < 3 for x in told.values())
    assert found["chains"]["split_fitted, true values"]["ratio"] < 0.95


def test_the_page_has_the_table_of_the_json() -> None:
    told = json.loads((DOCS / "baselines.json").read_text())
    assert not told["quick"]
    assert baselines.markdown(told["schedules"]) in (DOCS / "credit.md").read_text()
