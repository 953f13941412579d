"""Training curves in the viewer and the report: from metrics.jsonl, live, with the trees of each update beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from view_pages import expect, looking, marks, serving
from view_trees import walks, write_store

from treewright.agent.view.charts_report import write_report
from treewright.agent.view.curves import curves_json, make_curves, metric_files
from treewright.search.store import TreeStore

SHOTS = os.environ.get("TREEWRIGHT_SHOTS")  # a folder: pictures of the page are kept there, to be looked at


def update(step: int, **more: Any) -> str:
    values = {"step": step, "iteration": step, "recipe": "credit", "seconds": 2.0, "success": {"walk": step / 20},
              "loss": 1 / step, "kl": 0.001 * step, "entropy": 1.5, "sampler_gap": 1e-6, "grad_norm": 0.4,
              "tokens": 1000.0}  # fmt: skip
    return json.dumps(values | more) + "\n"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TreeStore]:
    """A store in the folder of its run, and the numbers of the run's updates beside it."""
    home = tmp_path / "runs" / "first"
    home.mkdir(parents=True)
    with TreeStore.open(write_store(home / "trees.sqlite", walks(2)), read_only=True) as opened:
        yield opened


def metrics(store: TreeStore) -> Path:
    from pathlib import Path

    return Path(store.name).with_name("metrics.jsonl")


def test_curves_have_a_point_for_each_update_and_nothing_that_is_no_number(store: TreeStore) -> None:
    assert make_curves(store) == ([], []) and metric_files(store) == {}
    lines = [update(1), update(2, loss=None, success={"walk": None}), "not json\n", update(3, kl="much"), update(3)]
    metrics(store).write_text("".join(lines) + '{"step": 4')
    charts, updates = make_curves(store)
    assert [(u["step"], u["loss"], u["kl"]) for u in updates] == [(1, 1, 0.001), (2, None, 0.002), (3, 1 / 3, 0.003)]
    (run,) = {u["run"] for u in updates}
    assert [u["trees"] for u in updates] == [f"{run}/0", f"{run}/1", f"{run}/2"]
    by_name = {c.name: c for c in charts}
    assert list(by_name["success"].series[0].x) == [1, 3] and by_name["success"].series[0].name == "walk"
    assert list(by_name["train_loss"].series[0].y) == [1, 1 / 3]
    assert list(by_name["train_tokens_per_s"].series[0].y) == [500, 500, 500]
    metrics(store).write_text(update(1, recipe="<script>", iteration=0))
    (one,) = curves_json(store)["updates"]
    assert one["trees"] is None and one["recipe"] == "<script>"  # shown as text, like everything


def test_the_report_has_the_curves_and_a_table_of_updates(store: TreeStore, tmp_path: Path) -> None:
    metrics(store).write_text(update(1) + update(2))
    page = write_report(store, tmp_path / "report").read_text()
    assert "Success in training" in page and "<h2>Updates</h2>" in page and page.count("/0</td>") == 1


@marks[0]
@marks[1]
@pytest.mark.parametrize("width", [1280, 390])
async def test_the_page_draws_the_curves_and_follows_a_run_that_goes_on(
    browser: Any, store: TreeStore, width: int
) -> None:
    metrics(store).write_text("".join(update(step) for step in range(1, 9)))
    size = {"width": width, "height": 844 if width < 500 else 800}
    async with serving(store) as address, looking(browser, address + "#report=1", viewport=size) as (page, watched):
        await expect(page.locator(".updates tbody tr")).to_have_count(8)
        await expect(page.locator("figure img").first).to_be_visible()
        wide = "document.documentElement.scrollWidth"
        assert await page.evaluate(wide) <= width
        if SHOTS:
            await page.screenshot(path=f"{SHOTS}/curves-{width}.png", full_page=False)
            await page.locator(".updates").scroll_into_view_if_needed()
            await page.screenshot(path=f"{SHOTS}/updates-{width}.png")
        with metrics(store).open("a") as file:
            file.write(update(9))
        await expect(page.locator(".updates tbody tr")).to_have_count(9)
        await page.locator(".updates a").first.click()
        await expect(page.locator(".summary")).to_contain_text("0 trees")  # this store has none of that round
        assert not watched.errors and not watched.outside(address)
