"""Two builds side by side: ratios, intervals, what is refused, and the page that shows what is committed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from treewright.benchmarks import pair
from treewright.benchmarks.pair import WORKLOADS, check, checkout, keep, ratio_of, slower
from treewright.benchmarks.pair_work import WORK
from treewright.benchmarks.performance import markdown, named
from treewright.benchmarks.performance import run as performance_page
from treewright.benchmarks.scale import exponent
from treewright.benchmarks.unpaired import Unpaired, against_peers
from treewright.benchmarks.viewing import BEGUN, DONE, SHOWN, frames_of, listing, shown_after
from treewright.envs.errors import TreewrightError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def paired(ratio: float, low: float | None = None) -> dict[str, Any]:
    return {"ratio": ratio, "low": ratio if low is None else low}


def test_a_build_is_as_fast_as_itself_and_half_as_much_is_a_half() -> None:
    assert ratio_of([2.0, 4.0, 3.0], [1.0, 2.0, 1.5]) == (0.5, 0.5, 0.5)
    middle, low, high = ratio_of([1.0] * 5, [0.8, 0.9, 1.0, 1.1, 1.2])
    assert (middle, low, high) == (1.0, 0.8, 1.2)


def test_exponents_are_those_of_the_powers_that_costs_were_made_of() -> None:
    for power in (0.0, 1.0, 2.0):
        sizes = [10, 100, 1000]
        b, low, high = exponent(sizes, [[n**power, 3 * n**power] for n in sizes])
        assert abs(b - power) < 1e-9 and low <= b <= high


def test_builds_that_give_different_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair, "_turn", lambda workload, build, size: (1.0, build.name))
    with pytest.raises(TreewrightError, match="engine_1e3: the builds give different results; nothing is reported"):
        pair._paired(WORKLOADS[0], (Path("a"), Path("b")), quick=True, rounds=1)


def test_a_workload_runs_on_a_build_by_its_folder_alone() -> None:
    cost, digest = pair._turn(WORKLOADS[0], ROOT, 30)
    assert cost > 0 and len(digest) == 32
    assert {workload.work for workload in WORKLOADS} == set(WORK)


def test_what_is_no_build_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TreewrightError, match="no checkout of treewright"), checkout(str(tmp_path)):
        pass
    with pytest.raises(TreewrightError, match=r"no build 0000000 here .*git fetch --unshallow"), checkout("0000000"):
        pass


def test_only_what_falls_behind_twice_in_a_row_fails(tmp_path: Path) -> None:
    made = tmp_path / "performance.json"
    made.write_text(json.dumps({"small": {"old": "x", "pairs": {"a": paired(0.5), "b": paired(0.5)}}}))
    assert slower({"a": paired(0.5)}, {"a": paired(0.59), "new": paired(9.0)}) == []
    assert slower({"a": paired(0.5)}, {"a": paired(0.7, low=0.4)}) == []  # it may be noise
    rounds: list[dict[str, Any]] = [{"a": paired(0.7), "b": paired(0.7)}, {"a": paired(0.5), "b": paired(0.7)}]
    asked: list[Sequence[str]] = []

    def measure(only: Sequence[str]) -> Mapping[str, Any]:
        asked.append(list(only))
        return rounds[len(asked) - 1]

    with pytest.raises(TreewrightError, match="twice in a row: b;"):
        check(made, measure)
    assert asked[1] == ["a", "b"]
    rounds[1], asked[:] = {"a": paired(0.5), "b": paired(0.5)}, []
    check(made, measure)
    assert len(asked) == 2


def test_a_clone_without_history_is_told_and_not_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "performance.json"
    made.write_text(json.dumps({"small": {"old": "0" * 12, "pairs": {}}}))
    check(made)
    assert "left out: this clone has no commit 000000000000" in capsys.readouterr().out


def test_parts_of_a_result_are_kept_beside_each_other(tmp_path: Path) -> None:
    made = tmp_path / "performance.json"
    keep(made, {"small": {"old": "x", "new": "y", "pairs": {"a": paired(1.0)}}})
    assert json.loads(made.read_text())["quick"]
    keep(made, {"old": "x", "new": "y", "pairs": {"a": paired(1.0)}, "figures": {"a_vs_before": 1}})
    keep(made, {"old": "x", "new": "z", "pairs": {"b": paired(2.0)}, "figures": {"b_vs_before": 2}})
    keep(made, {"axes": {"engine": 1}, "figures": {"engine_exponent": 1}})
    result = json.loads(made.read_text())
    assert set(result["pairs"]) == {"a", "b"} and set(result["small"]["pairs"]) == {"a"} and not result["quick"]
    assert result["pairs"]["a"]["new"] == "y", "it was measured before"
    assert set(result["figures"]) == {"a_vs_before", "b_vs_before", "engine_exponent"} and result["new"] == "z"
    keep(made, {"old": "w", "new": "z", "pairs": {"b": paired(2.0)}})
    assert set(json.loads(made.read_text())["pairs"]) == {"b"}


def test_the_page_shows_what_is_committed(tmp_path: Path) -> None:
    made, page = DOCS / "performance.json", DOCS / "performance.md"
    result = json.loads(made.read_text())
    assert markdown(result) in page.read_text()
    assert set(result["small"]["pairs"]) >= set(pair.CHECKED)
    assert result["named"] == named(result), "write them: python -P -m treewright.benchmarks.performance JSON PAGE"
    told, copy = shutil.copy(made, tmp_path / "made.json"), shutil.copy(page, tmp_path / "page.md")
    performance_page([str(told), str(copy)])
    assert Path(copy).read_text() == page.read_text() and Path(told).read_text() == made.read_text()


def test_named_figures_say_where_they_are_from_or_why_there_are_none() -> None:
    pairs = {"engine": paired(0.6), "langgraph": paired(0.5), "loop_135m": {**paired(0.4), "after": 3.5, "unit": "GB"}}
    alone = {"viewing": {"figures": {"open_s": {"value": 0.9, "unit": "s"}, "link_fps": {"value": 60, "unit": "f"}}}}
    tests = {"processor": paired(0.7), "wall": paired(0.8)}
    found = named({"pairs": pairs, "unpaired": alone, "axes": {"engine": {"exponent": 1.01}}, "tests": tests})
    assert found["engine_vs_before"] == {"value": 0.6, "unit": "of before", "from": "engine"}
    assert found["engine_exponent"]["value"] == 1.01 and found["viewer_open_s"]["value"] == 0.9
    assert found["loop_135m_peak_gb"] == {"value": 3.5, "unit": "GB", "from": "loop_135m, after"}
    assert found["tests_vs_before"] == {"value": 0.7, "unit": "of before", "from": "tests, processor"}
    assert "server" in found["postgres_vs_before"]["why"] and found["sqlite_vs_before"] == {"why": "no full run"}
    asked = "engine_vs_before engine_exponent sessions_8_vs_1_tools postgres_vs_before sqlite_vs_before"
    assert set(f"{asked} run_start_vs_before loop_135m_peak_gb tests_vs_before langgraph_vs_before".split()) <= set(
        found
    )
    assert "make tests-pair" in named({})["tests_vs_before"]["why"]


def test_what_has_no_build_before_is_kept_beside_the_pairs_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "performance.json"
    keep(made, {"old": "x", "new": "y", "pairs": {"a": paired(1.0)}})
    part = Unpaired("viewing", "a tree in Chromium", "≤ 1 s", lambda small: {"open_s": (0.25, "s")})
    monkeypatch.setattr(pair, "UNPAIRED", (part,))
    pair.main(False, str(made), only=["viewing"])
    result = json.loads(made.read_text())
    assert set(result["pairs"]) == {"a"} and result["unpaired"]["viewing"]["figures"]["open_s"]["value"] == 0.25
    result["pairs"] = {"a": {**paired(1.0), "says": "a", "before": 1, "after": 1, "unit": "s", "high": 1, "rounds": 1}}
    assert "| a tree in Chromium (`viewing`) | `open_s` | 0.25 | s | ≤ 1 s |" in markdown(result)
    before = made.read_text()
    pair.main(True, str(made), only=["viewing"])
    assert made.read_text() == before, "a quick run is not kept"


def test_the_policy_agrees_with_generate_before_it_is_timed_against_it() -> None:
    found = against_peers(3, layers=1, length=12, turns=1)
    assert all(value > 0 for value, _ in found.values()) and "vs_peer" in found
    assert WORK["hf"](2)[0] > 0


def test_frames_and_opening_are_read_from_chromiums_trace() -> None:
    def event(name: str, ms: float, **args: Any) -> dict[str, Any]:
        return {"name": name, "ts": 1000 * ms, "args": args}

    blank, ours = ({"documentLoaderURL": url} for url in ("", "http://127.0.0.1:1/x/"))
    drawn = [event("DrawFrame", ms) for ms in (90, 130, 180, 210, 260, 900)]
    marks = [event(SHOWN, 120), event(BEGUN, 150), event(DONE, 300)]
    events = [event("navigationStart", 5, data=ours), event("navigationStart", 40, data=blank), *drawn, *marks]
    assert shown_after(events) == pytest.approx(0.125)
    assert frames_of(events) == pytest.approx([0.03, 0.05])
    with pytest.raises(TreewrightError, match="no mark 'tree shown'"):
        shown_after(drawn)


def test_a_list_of_many_trees_is_answered_whole() -> None:
    found = listing(7, 9)
    assert found["list_nodes"][0] == 63 and found["list_trees"][0] == 7 and found["list_s"][0] > 0
