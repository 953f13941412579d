"""The web benchmark's options: a peer that is not there says so, and benchmarks without one refuse it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")
pytest.importorskip("miniwob", reason="needs the pages of MiniWoB: pip install --no-deps miniwob")

from treewright.agent.cli.bench import bench
from treewright.benchmarks.web_trials import peer_steps
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
