"""A hundred steps in a browser that dies now and then: states are found again and no process is left.

`make soak-web` takes 10,000.
"""

from __future__ import annotations

import pytest

pytest.importorskip("playwright", reason="needs the extra 'web': pip install 'treewright[web]'")

from soak_web import browsers, soak

from treewright.envs.web.browser import find_chromium


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium: apt-get install chromium-headless-shell")
async def test_killed_browsers_are_replaced_states_found_again_and_no_process_is_left() -> None:
    report = await soak(120, 40)
    assert report["steps"] >= 120 and report["kills"] >= 2
    assert report["restores"] >= 1 and report["kills_in_mid_search"] >= 1, "the kills were not noticed"
    assert report["trees_equal_to_quiet_ones"] >= 1
    assert report["processes_left"] == 0 and not browsers()
