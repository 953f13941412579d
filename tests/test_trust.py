"""The page of promises names tests that exist, and figures that stand in the JSON beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from treewright.benchmarks.fault_gradient import after_faults
from treewright.training.check.mdp_growth import grow

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "trust.md").read_text()


def test_every_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/.]+\.py)`", TEXT)
    assert len(named) > 15 and all((ROOT / path).is_file() for path in named)


@pytest.mark.parametrize(
    ("file", "key", "shown"),
    [
        ("kills", "kills_killed", "10,000 kills"),
        ("kills", "kills_duplicates", "0 duplicates"),
    ],
)
def test_figures_are_those_of_their_files(file: str, key: str, shown: str) -> None:
    value = json.loads((ROOT / "docs" / f"{file}.json").read_text())["figures"][key]["value"]
    assert f"{value:,.0f} {shown.split()[1]}" == shown and shown in TEXT


def test_counts_of_the_sweeps_are_those_of_their_files() -> None:
    ways = json.loads((ROOT / "docs" / "web_bypasses.json").read_text())
    soak = json.loads((ROOT / "docs" / "web_soak.json").read_text())
    assert f"{ways['cases']:,} ways" in TEXT and f"{ways['reach_the_canary_without_the_guard']:,} of which" in TEXT
    assert ways["connections_with_the_guard"] == 0
    assert f"{soak['steps']:,} steps, {soak['kills']} kills, {soak['processes_killed']} processes killed" in TEXT
    assert soak["processes_left"] == 0


def test_kills_of_ranks_are_told_as_their_file_has_them() -> None:
    held = json.loads((ROOT / "docs" / "kill-ranks.json").read_text())["figures"]
    found = {name: int(one["value"]) for name, one in held.items()}
    of_ranks, of_collectors = (
        found["rank_kills_of_leader"] + found["rank_kills_of_follower"], found["rank_kills_of_collectors"]
    )  # fmt: skip
    assert of_ranks + of_collectors == found["rank_kills"] and found["killed_loops_same"] == found["killed_loops"] == 1
    assert f"{found['rank_kills']} kills, {of_ranks} of ranks and {of_collectors} of collectors" in TEXT
    cluster = " ".join((ROOT / "docs" / "cluster.md").read_text().split())
    assert f"{of_ranks} kills of ranks and {of_collectors} of collectors" in cluster
    assert f"{found['groups_begun']} groups of ranks were begun" in cluster


def test_what_was_put_into_the_file_by_hand_says_so_in_both() -> None:
    """A harness that ran through `all.py` has seconds and a commit of twelve digits; the page names the others."""
    held = json.loads((ROOT / "docs" / "trust.json").read_text())["harnesses"]
    odd = {name for name, run in held.items() if "from" not in run
           and (run["seconds"] is None or len(run["commit"].rstrip("+")) != 12)}  # fmt: skip
    assert odd <= {name for name, run in held.items() if run.get("by_hand")}
    met = held["grid"]["figures"]["grid_faults_met"]["value"]
    assert f"{met:,.0f} trials in which a call was broken" in TEXT.replace(f"{met:.0f}", f"{met:,.0f}")
    for name, run in held.items():
        assert not run.get("by_hand") or f"`{name}` by hand" in TEXT, name
        assert not run.get("trouble") or re.search(rf"`make \w+ ONLY={name}` \| [^|]*failed \|", TEXT), name


def test_the_table_of_lost_trees_is_that_of_its_file() -> None:
    figures = {k: v["value"] for k, v in json.loads((ROOT / "docs" / "faults.json").read_text())["figures"].items()}
    for share in (0, 2, 10, 30):
        cells = [f"{share} %"]
        for schedule in ("best_first", "chains"):
            at = f"{schedule}_{share}"
            cells += [
                f"{figures[f'fault_gradient_lost_{at}']:.0%}".replace("%", " %"),
                f"{figures[f'fault_gradient_bias_{at}']:.3f}",
                f"{figures[f'fault_gradient_shift_over_noise_{at}']:.1f}",
            ]
        assert f"| {' | '.join(cells)} |" in TEXT


def test_few_lost_trees_do_no_measurable_harm_and_many_do() -> None:
    grown = grow("best_first", 16_000, 3)
    lost, few = after_faults(grown, 0.02)
    assert 0.1 < lost < 0.4 and few.over_noise < 3
    lost, many = after_faults(grown, 0.3)
    assert lost > 0.9 and many.over_noise > 3
