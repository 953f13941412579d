"""The runner of the harnesses: nothing is skipped silently, figures are merged, and the page shows the file."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]


def _runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trust_runner", HERE / "all.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["trust_runner"] = module
    spec.loader.exec_module(module)
    return module


runner = _runner()
PROGRAM = """
import json, sys
assert "--quick" in sys.argv
json.dump({"figures": FIGURES}, open(sys.argv[sys.argv.index("--json") + 1], "w"))
sys.exit(CODE)
"""


@pytest.fixture
def work(tmp_path: Path) -> Any:
    def done(figures: dict[str, Any] | None, code: int = 0, owes: tuple[str, ...] = ("lost",)) -> Any:
        if figures is not None:
            (tmp_path / "one.py").write_text(PROGRAM.replace("FIGURES", repr(figures)).replace("CODE", str(code)))
        return runner.work(runner.Harness("one.py", owes), quick=True, root=tmp_path)

    return done


def test_what_is_missing_fails_or_owes_a_figure_is_said(work: Any) -> None:
    assert work(None)["trouble"] == "there is no one.py"
    whole = work({"lost": {"value": 0.0, "unit": "nodes"}, "bare": 3})
    assert whole["trouble"] == "" and whole["figures"]["bare"] == {"value": 3, "unit": "1"}
    assert work({"lost": 0}, code=1)["trouble"] == "one.py ended with 1"
    assert work({"other": 0})["trouble"] == "one.py gave no lost"


def test_parts_are_merged_and_counts_that_must_be_zero_are_added_up() -> None:
    def run(**figures: float) -> dict[str, Any]:
        made = {name: {"value": value, "unit": "1"} for name, value in figures.items()}
        return {"figures": made, "seconds": 1.0, "trouble": ""}

    before = runner.merged({}, "security", {"canaries": run(canaries_found=0.0)}, quick=False)
    both = {"ledger": run(ledger_duplicates=1.0), "commands": run(ledger_duplicates=2.0, kills_lost=0.0)}
    found = runner.merged(before, "faults", both, quick=True)
    assert found["figures"]["ledger_duplicates"]["value"] == 3.0 and found["figures"]["canaries_found"]["value"] == 0.0
    assert runner.wrong(found["figures"]) == ["ledger_duplicates = 3, promised 0"]
    assert [found["harnesses"][name]["quick"] for name in ("canaries", "ledger")] == [False, True]
    again = runner.merged(found, "faults", {"ledger": run(ledger_duplicates=0.0)}, quick=False)
    assert again["figures"]["ledger_duplicates"]["value"] == 2.0, "the other harness has not run again"
    assert "`soak_slopes_above_noise` | not measured" in runner.table(found)


def test_every_harness_is_a_file_and_a_target_runs_it() -> None:
    made = (ROOT / "Makefile").read_text()
    assert all(f"\n{part}: " in made for part in runner.HARNESSES) and "tests/faults/all.py $@" in made
    assert set(runner.PROMISED) <= {
        name for all_ in runner.HARNESSES.values() for h in all_.values() for name in h.owes
    }


def test_the_page_shows_the_figures_of_the_file() -> None:
    page = (ROOT / "docs" / "trust.md").read_text()
    path = ROOT / "docs" / "trust.json"
    found = json.loads(path.read_text())
    assert runner.rewritten(page, found) == page, "the page is made from the file by make faults or make security"
    assert runner.unsaid(page, found["figures"]) == [], "a promise not kept stands on the page, under Not kept"


def test_a_promise_not_kept_must_be_said_and_some_cannot_be_excused() -> None:
    def figures(**values: float) -> dict[str, dict[str, float | str]]:
        return {name: {"value": value, "unit": "1"} for name, value in values.items()}

    said = "# Page\n\n## Not kept\n\n`soak_slopes_above_noise` and `ledger_duplicates`.\n\n## More\n\n`kills_lost`\n"
    assert runner.unsaid(said, figures(soak_slopes_above_noise=2.0, ledger_duplicates=0.0)) == []
    elsewhere = said.replace("Not kept", "Kept")
    assert runner.unsaid(elsewhere, figures(soak_slopes_above_noise=2.0)) == ["soak_slopes_above_noise = 2, promised 0"]
    assert runner.unsaid(said, figures(ledger_duplicates=1.0, kills_lost=1.0)) == [
        "ledger_duplicates = 1, promised 0",
        "kills_lost = 1, promised 0",
    ]
