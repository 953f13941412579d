"""The viewer in a real headless Chromium: keys, filters, side by side, replay and live growth."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
from not_none import not_none
from view_pages import ended, expect, looking, marks, open_first, press, selected, serving, until
from view_trees import Growth, big, png, write_store

from treewright.search.store import TreeStore

pytestmark = marks


# -- walking ----------------------------------------------------------------------------------------------------------


async def test_the_keyboard_alone_finds_opens_and_walks_a_tree(view: Any) -> None:
    await press(view, "/")
    await view.keyboard.type("walk-2 walker-2")
    await expect(view.locator("tbody tr")).to_have_count(1)
    await press(view, "ArrowDown", "Enter")
    await view.wait_for_selector(".node-head")
    m = await view.evaluate(
        "({parent: [...treewright.active.model.parent], chosen: treewright.active.model.row.chosen})"
    )
    parent = m["parent"]
    assert await selected(view) == m["chosen"], "a tree opens at its answer"
    await press(view, "Home")
    assert await selected(view) == 0
    await press(view, "ArrowRight")
    child = await selected(view)
    assert parent[child] == 0
    await press(view, "ArrowRight")
    assert parent[await selected(view)] == child
    below = await selected(view)
    await press(view, "ArrowDown")
    other = await selected(view)
    assert other != below and await view.evaluate(f"treewright.active.model.depth[{other}]") == 2
    await press(view, "ArrowUp")
    assert await selected(view) == below
    await press(view, "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowLeft")
    assert await selected(view) == 0
    await press(view, "End")
    await expect(view.locator(".node-head h2")).to_contain_text(f"node {m['chosen']}")
    await press(view, "Escape")
    await expect(view.locator("tbody tr")).to_have_count(1)
    assert await view.locator("input[type=search]").input_value() == "walk-2 walker-2", "the filters are kept"


async def test_help_theme_shape_and_colour_have_keys(view: Any) -> None:
    await open_first(view)
    await press(view, "?")
    await expect(view.locator("dialog")).to_be_visible()
    await press(view, "Escape")
    await expect(view.locator("dialog")).to_be_hidden()
    before = await view.evaluate("getComputedStyle(document.body).backgroundColor")
    await press(view, "t")
    assert await view.evaluate("getComputedStyle(document.body).backgroundColor") != before
    await press(view, "v", "4")
    assert await view.evaluate("[treewright.shape, treewright.mode]") == ["link", "weight"]
    await press(view, "3")
    await expect(view.locator(".facts")).to_contain_text("advantage")
    assert "view=link" in view.url and "colour=advantage" in view.url
    await view.reload()
    await view.wait_for_selector(".node-head")
    assert await view.evaluate("[treewright.shape, treewright.mode]") == ["link", "advantage"]


async def test_the_list_walks_by_keys_and_filters_narrow_it(view: Any) -> None:
    await expect(view.locator("tbody tr")).to_have_count(8)
    await press(view, "j", "j", "k", "ArrowDown")
    at = await view.evaluate("[...document.querySelectorAll('tbody a')].indexOf(document.activeElement)")
    assert at == 1
    await view.select_option("select[aria-label=run]", "first")
    await expect(view.locator("tbody tr")).to_have_count(4)
    solved = await view.locator("td.sign.good").count()
    await view.select_option("select[aria-label=outcome]", "yes")
    await expect(view.locator("tbody tr")).to_have_count(solved)
    await expect(view.locator(".summary")).to_contain_text(f"{solved} tree")
    await view.click("button[type=reset]")
    await expect(view.locator("tbody tr")).to_have_count(8)


async def test_a_click_selects_the_node_under_it(view: Any) -> None:
    await open_first(view)
    for shape in ("icicle", "link"):
        if await view.evaluate("treewright.shape") != shape:
            await press(view, "v")
        await press(view, "Home", "f")
        await ended(view)
        spot = await view.evaluate("""() => {
            const pane = treewright.panes[0], { model, view } = pane, node = model.children(0)[1];
            const box = pane.canvas.getBoundingClientRect();
            const y = treewright.shape === "icicle" ? model.top[node] + model.span[node] / 2 : model.middle[node];
            const x = (model.depth[node] + 0.5 - view.x) * view.kx;
            return { node, x: box.left + x, y: box.top + (y - view.y) * view.ky };
        }""")
        await view.mouse.click(spot["x"], spot["y"])
        assert await selected(view) == spot["node"]


async def test_the_selected_node_shows_tokens_prompt_observation_and_pictures(browser: Any, tmp_path: Path) -> None:
    grown = Growth("Reach the tower")
    picture = ({"type": "image", "png": png()}, {"type": "video", "data": b"<svg onload=alert(1)>"})
    grown.apply(0, [grown.draft('go {"to": "mill"}', grown.seen(1), 0.25, share=1.0)])
    grown.apply(1, [grown.draft("look", grown.seen(2, True, 1.0, parts=picture), 0.75, share=1.0)])
    grown.tree.chosen = 2
    with TreeStore.open(write_store(tmp_path / "t.sqlite", [grown]), read_only=True) as store:
        async with serving(store) as address, looking(browser, address) as (page, watched):
            await open_first(page)
            assert await page.locator(".tokens .t").all_text_contents() == ["l", "o", "o", "k", "∅"]
            title = await page.locator(".tokens .t").first.get_attribute("title")
            assert title.startswith("token 108, log-prob −") and "probability" in title
            await page.click(".fold summary")
            prompt = await page.locator(".fold pre").first.text_content()
            assert prompt == "".join(bytes(i for i in grown.tree.context_ids(1) if i < 256).decode())
            await expect(page.locator(".facts")).to_contain_text("score0.75")
            await expect(page.locator("section pre").last).to_contain_text(
                not_none(grown.tree.observation[2]).text.split("\n")[0]
            )
            await expect(page.locator(".details img")).to_have_count(1)
            assert await page.locator(".details img").evaluate("e => e.decode().then(() => e.naturalWidth)") == 96
            await expect(page.locator(".details")).to_contain_text("not a PNG or JPEG picture")
            assert not watched.errors


# -- two trees, growth, live ------------------------------------------------------------------------------------------


async def test_two_trees_of_a_task_stand_side_by_side(view: Any) -> None:
    await open_first(view)
    first = await view.evaluate("treewright.panes[0].model.row.id")
    await press(view, "b")
    await expect(view.locator("canvas")).to_have_count(2)
    await expect(view.locator(".pane-caption").nth(1)).to_contain_text("walker-1")
    rows = await view.evaluate("treewright.panes.map((p) => p.model.row)")
    assert rows[0]["id"] == first != rows[1]["id"] and rows[0]["task_id"] == rows[1]["task_id"]
    assert f"beside={rows[1]['id']}" in view.url
    await press(view, "Tab", "Home")
    assert await view.evaluate("[treewright.active === treewright.panes[1], treewright.panes[1].selected]") == [True, 0]
    await expect(view.locator(".node-head h2")).to_contain_text("node 0")
    await press(view, "b")
    await expect(view.locator("canvas")).to_have_count(1)


async def test_the_growth_replays_pop_by_pop(view: Any) -> None:
    await open_first(view)
    pops, born = await view.evaluate("[[...treewright.active.model.pops], [...treewright.active.model.born]]")
    marks = "treewright.panes[0].marks"
    slider = view.locator("input[type=range]")
    for time in (0, 1, 4, len(pops)):
        await slider.evaluate(f"e => {{ e.value = {time}; e.dispatchEvent(new Event('input')); }}")
        await ended(view)
        assert await view.evaluate(marks) == sum(b < time for b in born), time
        await expect(view.locator("output")).to_contain_text(f"pop {time} of {len(pops)}")
    await press(view, ",", ",")
    await expect(view.locator("output")).to_contain_text(f"pop {len(pops) - 2} of")
    await press(view, " ")
    await until(view, "!treewright.playing && treewright.time === Infinity")
    await press(view, " ")
    await until(view, "treewright.playing && treewright.time > 2 && treewright.time < Infinity")
    await press(view, " ")
    assert await view.evaluate("treewright.playing") == 0


async def test_a_running_search_is_seen_growing(browser: Any, tmp_path: Path) -> None:
    grown = Growth().grow(5)
    name, total = grown.tree.tree_id, len(grown.tree)
    with (
        TreeStore.open(tmp_path / "t.sqlite") as writer,
        TreeStore.open(tmp_path / "t.sqlite", read_only=True) as store,
    ):
        async with serving(store) as address, looking(browser, address) as (page, watched):
            await expect(page.locator(".summary")).to_contain_text("0 trees")
            await writer.create(grown.tree.header)
            await expect(page.locator("tbody tr")).to_have_count(1)
            await expect(page.locator(".live")).to_be_visible()
            await open_first(page)
            assert await page.evaluate("treewright.active.model.size") == 1
            for expansion, first in grown.expansions[:3]:
                await writer.append(name, expansion, first)
            seen = grown.expansions[3][1]
            await until(page, f"treewright.active.model.size === {seen}")
            assert await page.evaluate("[...treewright.active.model.reward].every(Number.isNaN)"), "truth stays sealed"
            for expansion, first in grown.expansions[3:]:
                await writer.append(name, expansion, first)
            await writer.finish(grown.tree)
            await until(
                page, f"treewright.active.model.row.status === 'done' && treewright.active.model.size === {total}"
            )
            await expect(page.locator(".live")).to_be_hidden()
            assert not watched.errors


# -- one file ---------------------------------------------------------------------------------------------------------


async def test_the_file_works_without_any_request(browser: Any, page_file: str) -> None:
    async with looking(browser, page_file, offline=True) as (page, watched):
        await expect(page.locator("tbody tr")).to_have_count(8)
        await press(page, "/")
        await page.keyboard.type("walker-1")
        await expect(page.locator("tbody tr")).to_have_count(4)
        await open_first(page)
        await press(page, "3", "b")
        await expect(page.locator("canvas")).to_have_count(2)
        await expect(page.locator(".facts")).to_contain_text("advantage")
        await press(page, "r")
        await expect(page.locator("figure img")).to_have_count(5)
        assert all(await page.locator("figure img").evaluate_all("all => all.map((e) => e.naturalWidth > 0)"))
        assert watched.requests[0] == page_file and not watched.outside(page_file) and not watched.errors


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_follows_the_system_in_light_and_dark(browser: Any, page_file: str, scheme: str) -> None:
    async with looking(browser, page_file, color_scheme=scheme) as (page, _):
        await open_first(page)
        red = await page.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
        assert (red > 200) is (scheme == "light")
        await ended(page)
        corner = await page.evaluate("[...treewright.panes[0].canvas.getContext('2d').getImageData(2, 2, 1, 1).data]")
        assert (corner[0] > 200) is (scheme == "light")


# -- ten thousand nodes -----------------------------------------------------------------------------------------------


async def test_ten_thousand_nodes_pan_and_zoom(browser: Any, tmp_path: Path, record_property: Any) -> None:
    grown = big(10_000)
    with TreeStore.open(write_store(tmp_path / "t.sqlite", [grown]), read_only=True) as store:
        async with serving(store) as address, looking(browser, address) as (page, watched):
            await open_first(page)
            assert await page.evaluate("treewright.active.model.size") == len(grown.tree) >= 10_000
            for shape in ("icicle", "link"):
                if await page.evaluate("treewright.shape") != shape:
                    await press(page, "v")
                frames = await page.evaluate("""async () => {
                    const pane = treewright.panes[0], gaps = [], marks = [];
                    pane.fit();
                    for (let i = 0, last = performance.now(); i < 60; i++) {
                        await new Promise(requestAnimationFrame);
                        if (i % 2) pane.pan(3, -5); else pane.zoom(i < 40 ? 1.08 : 0.9, 900, 300);
                        const now = performance.now();
                        if (i > 1) gaps.push(now - last);
                        last = now;
                        marks.push(pane.marks || 0);
                    }
                    return { gaps, marks, drawn: pane.frames.slice(-60) };
                }""")
                gaps = sorted(frames["gaps"])
                middle, script = statistics.median(gaps), statistics.median(frames["drawn"])
                told = (
                    f"{shape}: {len(grown.tree)} nodes, frame to frame median {middle:.1f} ms, "
                    f"p95 {gaps[int(0.95 * len(gaps))]:.1f} ms, script median {script:.1f} ms"
                )
                print(told)
                record_property(shape, told)
                assert min(frames["marks"][5:]) > 0, "something is drawn in every frame"
                await page.evaluate("treewright.panes[0].fit()")
                await ended(page)
                assert 300 < await page.evaluate("treewright.panes[0].marks") < 6000, "thin subtrees are drawn as one"
                await press(page, "End", "z", "ArrowLeft", "ArrowRight")
            assert not watched.errors
