"""The web benchmark's options: a peer that is not there says so, and benchmarks without one refuse it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")
pytest.importorskip("miniwob", reason="needs the pages of MiniWoB: pip install --no-deps miniwob")

from treewright.agent.cli.bench import bench
from treewright.benchmarks.pair import ROOT
from treewright.benchmarks.peer_playwright_mcp import mcp_steps
from treewright.benchmarks.web_before import demo_gain, turn
from treewright.benchmarks.web_page import busy, put_table, table
from treewright.benchmarks.web_trials import peer_steps
from treewright.benchmarks.web_where import where
from treewright.benchmarks.web_work import processor_seconds
from treewright.envs import TreewrightError
from treewright.envs.web.browser import find_chromium

needs_browser = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium: apt-get install chromium-headless-shell"
)


def test_a_benchmark_without_a_peer_refuses_one() -> None:
    with pytest.raises(TreewrightError, match="bench kernels has no use for --peer-python"):
        bench("kernels", quick=True, peer_python=Path("/nowhere"))


@needs_browser
def test_a_peer_that_is_not_there_or_lacks_its_packages_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(TreewrightError, match="did not answer"):
        peer_steps(tmp_path / "python", ["click-test"], 1.0)
    with pytest.raises(TreewrightError, match=r"pip install browsergym-core==0\.14\.3 browsergym-miniwob==0\.14\.3"):
        peer_steps(Path(sys.executable), ["click-test"], 1.0)


def test_a_part_is_measured_alone_and_the_figures_of_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "web.json"
    kept = {
        "figures": {"steps_per_s": {"value": 28.0, "unit": "1/s"}},
        "parts": {"steps": {"commit": "a", "quick": False}},
    }
    path.write_text(json.dumps({**kept, "commit": "old", "quick": False}))
    bench("web", quick=True, only=["distance"], json=path)
    found = json.loads(path.read_text())
    assert found["figures"]["steps_per_s"]["value"] == 28.0 and found["parts"]["steps"] == kept["parts"]["steps"]
    assert found["figures"]["page_distance_ms_p95"]["value"] > 0 and found["parts"]["distance"]["quick"]
    assert not found["quick"] and found["commit"] != "old" and found["hardware"]["cores"]
    with pytest.raises(TreewrightError, match="no part called 'distnace'; there are miniwob, steps"):
        bench("web", quick=True, only=["distnace"], json=path)


def test_what_the_demo_gained_is_read_from_its_figures_or_it_is_said_how_to_make_them(tmp_path: Path) -> None:
    path = tmp_path / "demo.json"
    with pytest.raises(TreewrightError, match="type: treewright demo"):
        demo_gain(path)
    names = ("points", "low", "high")
    path.write_text(json.dumps({"figures": {f"market.policy_gain_{n}": {"value": v} for v, n in enumerate(names)}}))
    assert demo_gain(path) == {f"market_gain_{n}": (float(v), "points") for v, n in enumerate(names)}


def test_processor_time_is_that_of_the_children_too() -> None:
    before, mine = processor_seconds(), time.process_time()
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-S", "-c", busy], check=True)
    assert processor_seconds() - before >= 0.25 > time.process_time() - mine


@needs_browser
def test_a_step_of_market_is_told_apart_by_the_processes_that_take_part() -> None:
    found = asyncio.run(where(2))
    parts = {name: found[name] for name in ("python", "driver", "browser", "renderer")}
    assert min(parts.values()) > 0 and found["other"] < 0.1 * found["sum"]
    assert found["sum"] == pytest.approx(sum(value for name, value in found.items() if name != "sum"))


def test_a_folder_without_playwrights_server_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(TreewrightError, match=r"npm install --prefix .* @playwright/mcp@0\.0\.83"):
        asyncio.run(mcp_steps(tmp_path, ["click-test"], 1.0))


@needs_browser
def test_a_turn_of_this_build_clicks_and_counts_and_one_of_another_or_that_fails_is_told(tmp_path: Path) -> None:
    found = turn(ROOT, "miniwob", 1)
    assert found["cost"] > 0 and 1 <= found["steps"] <= 3 and found["digest"]
    with pytest.raises(TreewrightError, match=f"(?s)miniwob failed in {ROOT}:.*ValueError"):
        turn(ROOT, "miniwob", "none")  # type: ignore[arg-type]
    with pytest.raises(TreewrightError, match=f"instead of {tmp_path}: is there a pkg/treewright in it"):
        turn(tmp_path, "miniwob", 1)


def test_the_pages_table_is_that_of_its_figures_and_leaves_out_what_was_not_measured(tmp_path: Path) -> None:
    shown = ROOT / "docs" / "web.md"
    page = tmp_path / "web.md"
    page.write_text(shown.read_text())
    put_table(ROOT / "docs" / "web.json", page)
    assert page.read_text() == shown.read_text(), "type: make bench-web ONLY=demo"
    assert table({"same_page_false": {"value": 0}}).splitlines()[2:] == [
        "| `same_page_false`: of 40 pairs that look alike, taken for the same | 0 | 0 |"
    ]
    parts = {"steps": {"load": 9.5}, "cpu": {"load": 0.4}, "old": {}}
    assert "begin): steps (9.5). The load was not recorded for: old." in busy(
        {"hardware": {"cores": 2}, "parts": parts}
    )
    page.write_text("no marks")
    with pytest.raises(TreewrightError, match="has no place for the table"):
        put_table(ROOT / "docs" / "web.json", page)
