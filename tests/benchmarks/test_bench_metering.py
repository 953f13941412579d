"""What the meter itself costs: entries of clocks are counted, and the page quotes the committed figure."""

from __future__ import annotations

import json
from pathlib import Path

from treewright.benchmarks import metering

DOCS = Path(__file__).parents[2] / "docs"


def test_the_meter_takes_less_than_a_hundredth_of_a_run() -> None:
    found = {name: f["value"] for name, f in metering.main(quick=True)["figures"].items()}
    assert found["meter_clock_entries"] > 10 and found["growing_s"] > 0 and found["meter_counting_ms"] > 0
    assert found["meter_overhead"] < 0.01
    spent = found["meter_clock_entries"] * found["meter_entry_us"] / 1e6 + found["meter_counting_ms"] / 1e3
    assert abs(found["meter_overhead"] - spent / found["growing_s"]) < 1e-9


def test_the_page_quotes_the_committed_figure() -> None:
    told = json.loads((DOCS / "meter.json").read_text())
    assert not told["quick"]
    share = told["figures"]["meter_overhead"]["value"]
    assert f"{share:.2%}".replace("%", " %") in (DOCS / "training.md").read_text()
