"""The viewer in a real headless Chromium: finding, sorting, comparing, copying, exporting, and narrow screens."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import forked
import pytest
from view_pages import SIZE, expect, looking, marks, open_first, press, selected, serving, until
from view_trees import Growth, walks, write_store

from treewright.agent.view import write_page
from treewright.envs.types import Action
from treewright.search.store import TreeStore
from treewright.training.manifest import MANIFEST

pytestmark = marks

NARROW = {"width": 390, "height": 844}
WIDE = {"width": 1920, "height": 1080}
CLIPBOARD = ["clipboard-read", "clipboard-write"]


@pytest.fixture
def heron(tmp_path: Path) -> Any:
    """A store in which one tree saw a heron at node 2, and another was told of it in its goal."""
    seen = Growth("Find the mill", "seen", run="=first")
    seen.apply(0, [seen.draft("look", seen.seen(1), share=1.0)])
    seen.text = lambda kind, words: "A Heron\nstands still." if kind == "observation" else words
    seen.apply(1, [seen.draft('wait {"for": "it"}', seen.seen(2, True, 1.0), share=1.0)])
    seen.tree.chosen = 2
    return write_store(tmp_path / "t.sqlite", [*walks(2), seen, Growth("Paint a heron", "told").grow(2)])


async def find(page: Any, words: str) -> None:
    await page.fill("input[type=search]", words)


@pytest.fixture(params=["served", "file"])
def opened(
    request: pytest.FixtureRequest, browser: Any, heron: str, tmp_path: Path
) -> Callable[..., AbstractAsyncContextManager[Any]]:
    """Opens the store as a page, served or in one file."""
    from contextlib import asynccontextmanager

    @asynccontextmanager
    async def work(**options: Any) -> AsyncIterator[Any]:
        with TreeStore.open(heron, read_only=True) as store:
            if request.param == "file":
                async with looking(browser, write_page(tmp_path / "t.html", store).as_uri(), **options) as (page, seen):
                    yield page
                    assert not seen.errors
            else:
                async with serving(store) as address, looking(browser, address, **options) as (page, seen):
                    yield page
                    assert not seen.errors and not seen.outside(address)

    return work


# -- the list ---------------------------------------------------------------------------------------------------------


async def test_words_of_goals_actions_and_observations_are_found_and_lead_to_their_node(
    opened: Callable[..., AbstractAsyncContextManager[Any]],
) -> None:
    async with opened() as page:
        await find(page, "HERON")
        await expect(page.locator("tbody tr")).to_have_count(2)
        await expect(page.locator("mark")).to_have_count(2)
        await find(page, '"heron\nstands"'.replace("\n", " ") + " mill")
        await expect(page.locator("tbody tr")).to_have_count(0)
        await find(page, "heron still")
        await expect(page.locator("tbody tr")).to_have_count(1)
        hit = page.locator(".hit")
        await expect(hit).to_contain_text("observation, node 2")
        assert (await hit.locator("mark").text_content()).lower() == "heron"
        await find(page, '"for": heron')
        await expect(page.locator("tbody tr")).to_have_count(1)
        await page.click(".hit")  # also where the list has not been drawn anew for the last words
        await page.wait_for_selector(".node-head")
        assert await selected(page) == 2
        await press(page, "Escape")
        assert await page.locator("input[type=search]").input_value() == '"for": heron'


async def test_a_link_that_was_followed_just_before_the_typed_words_are_kept_is_not_lost(opened: Any) -> None:
    async with opened() as page:
        await find(page, "heron still")
        await expect(page.locator("tbody tr")).to_have_count(1)
        await page.evaluate("document.querySelector('.hit').click(); treewright.list.changed()")
        await page.wait_for_selector(".node-head")
        assert await selected(page) == 2
        await press(page, "Escape")
        assert await page.locator("input[type=search]").input_value() == "heron still"


async def test_a_row_that_is_pressed_while_the_list_comes_anew_is_opened_all_the_same(opened: Any) -> None:
    async with opened() as page:
        await find(page, "heron")
        await page.locator(".hit").first.hover()
        await page.mouse.down()
        later = "await treewright.list.everything()"  # asked afterwards, twice: the rows are there by then, and wait
        await page.evaluate(f"(async () => {{ treewright.list.load(); {later}; {later} }})()")
        await page.mouse.up()
        await page.wait_for_selector(".node-head")


async def test_columns_sort_by_a_click_and_the_address_keeps_it(
    opened: Callable[..., AbstractAsyncContextManager[Any]],
) -> None:
    async def column(name: str) -> list[Any]:
        return [int(text) for text in await page.locator(f"td.c-{name}").all_text_contents()]

    async with opened() as page:
        await page.click("th.c-nodes button")
        await expect(page.locator("th.c-nodes")).to_have_attribute("aria-sort", "descending")
        down = await column("nodes")
        assert down == sorted(down, reverse=True) and len(set(down)) > 3
        await page.focus("th.c-nodes button")
        await press(page, "Enter")
        await expect(page.locator("th.c-nodes")).to_have_attribute("aria-sort", "ascending")
        assert await column("nodes") == down[::-1] and "sort=nodes" in page.url
        await page.reload()
        await page.wait_for_selector("html[data-ready]")
        assert await column("nodes") == down[::-1]
        await page.click("th.c-goal button")
        await expect(page.locator("th.c-goal")).to_have_attribute("aria-sort", "ascending")
        goals = [text.lower() for text in await page.locator("td.c-goal").all_text_contents()]
        assert goals == sorted(goals)


async def test_weights_are_called_by_their_step(browser: Any, tmp_path: Path) -> None:
    known = [f"{n:032x}" for n in (9, 4, 6)]
    home = tmp_path / "first"
    (home / "checkpoints" / "step-000002").mkdir(parents=True)
    told = {"step": 2, "version": "x", "files": {}, "versions": known}
    (home / "checkpoints" / "step-000002" / MANIFEST).write_text(json.dumps(told))
    trees = [Growth(task=f"walk-{i}", version=version).grow(2) for i, version in enumerate(known)]
    with TreeStore.open(write_store(home / "trees.sqlite", trees), read_only=True) as store:
        async with serving(store) as address, looking(browser, address) as (page, _):
            assert await page.locator("td.c-version").all_text_contents() == ["step 2", "step 1", "step 0"]
            options = await page.locator("select[aria-label=weights] option").all_text_contents()
            assert options == ["any weights", "step 0", "step 1", "step 2"]
            await page.select_option("select[aria-label=weights]", label="step 1")
            await expect(page.locator("tbody tr")).to_have_count(1)
            await open_first(page)
            await expect(page.locator(".details .hint").last).to_contain_text("policy step 1")
            assert known[1] not in await page.locator(".details").text_content()


# -- comparing --------------------------------------------------------------------------------------------------------


async def test_two_branches_are_compared_turn_by_turn(view: Any) -> None:
    await open_first(view)
    await press(view, "Home", "ArrowRight", "m")
    first = await selected(view)
    await press(view, "ArrowUp", "c")
    await view.wait_for_selector(".diff .line")
    other = int(view.url.partition("other=")[2].partition("&")[0])
    assert other != first and f"node={first}&" in view.url
    left, right = [
        "".join(text or "\n" for text in await view.locator(f".diff .{side}").all_text_contents())
        for side in ("minus", "plus")
    ]
    model = "treewright.panes[0].model"
    for node, said in ((first, left), (other, right)):
        label = await view.evaluate(f"{model}.label({node})")
        assert label.removeprefix("go ").split("…")[0] in said
    await expect(view.locator(".compare-head")).to_contain_text("only left")
    await press(view, "Escape")
    await view.wait_for_selector(".node-head")
    assert await selected(view) == other


async def test_trees_beside_each_other_are_compared_whole_and_equal_ones_are_said_to_be_equal(view: Any) -> None:
    await open_first(view)
    await press(view, "b")
    await expect(view.locator("canvas")).to_have_count(2)
    sizes = await view.evaluate("treewright.panes.map((p) => p.model.size)")
    await view.click(".acts button:has-text('compare')")
    await view.select_option("select[aria-label='what is compared']", "tree")
    await expect(view.locator(".compare-head h1")).to_have_text("two trees")
    for fold in await view.locator(".folded").all():
        await fold.click()
    for side, size in (("minus", sizes[0]), ("plus", sizes[1])):
        lines = [text for text in await view.locator(f".diff .{side}:not(.none)").all_text_contents() if " · " in text]
        assert len(lines) == size
    words = dict(pair.split("=") for pair in view.url.partition("#")[2].split("&"))
    await view.evaluate(f"treewright.go({{...{json.dumps(words)}, with: '{words['tree']}'}})")
    await expect(view.locator(".compare-head")).to_contain_text("both are equal")


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("a b c", "a c"),
        ("", "x y"),
        ("a b", ""),
        ("a b c d e", "x b y d z"),
        ("a a b a", "a b a a"),
        ("a", "a"),
        ("q", "r"),
    ],
)
async def test_the_shown_difference_turns_one_text_into_the_other(
    browser: Any, page_file: str, left: str, right: str
) -> None:
    async with looking(browser, page_file) as (page, _):
        found = await page.evaluate("([a, b]) => treewright.compare.differences(a, b)", [left.split(), right.split()])
    assert [line for sign, line in found if sign != "+"] == left.split()
    assert [line for sign, line in found if sign != "-"] == right.split()
    shortest = {"a b c": 1, "a b c d e": 6, "a a b a": 2}
    if left in shortest:
        assert sum(sign != " " for sign, _ in found) == shortest[left], "no edit is told that is none"


# -- copying ----------------------------------------------------------------------------------------------------------


async def copied(page: Any, what: str) -> Any:
    await page.click(f"button[aria-label='copy as {what}']")
    await expect(page.locator(".toast")).to_contain_text(f"copied: {what}")
    return await page.evaluate("navigator.clipboard.readText()")


async def test_a_path_is_copied_as_code_that_runs_as_json_and_as_messages(
    browser: Any, heron: str, tmp_path: Path
) -> None:
    with TreeStore.open(heron, read_only=True) as store:
        async with serving(store) as address, looking(browser, address, permissions=CLIPBOARD) as (page, _):
            await find(page, "heron still")
            await expect(page.locator("tbody tr")).to_have_count(1)
            await open_first(page)
            name, node = await page.evaluate("[treewright.active.model.row.id, treewright.active.selected]")
            code, plain, talk = [await copied(page, what) for what in ("Python", "JSON", "messages")]
        tree = store.load(name)
    ran: dict[str, Any] = {}
    exec(compile(code, "copied", "exec"), ran)
    assert ran["path"] == tree.path(node) and ran["tree"].digest() == tree.digest()
    assert ran["actions"] == [tree.action[i] for i in tree.path(node)[1:]]
    steps = json.loads(plain)["path"]
    assert [step["node"] for step in steps] == tree.path(node)
    assert [step["token_ids"] for step in steps] == [list(tree.ids[i]) for i in tree.path(node)]
    assert Action.from_key(json.dumps(steps[-1]["calls"])) == tree.action[node] and steps[-1]["reward"] == 1.0
    conversation = json.loads(talk)["messages"]
    assert [message["role"] for message in conversation] == ["user", "assistant", "user", "assistant", "user"]
    assert conversation[-1]["content"] == "A Heron\nstands still."
    (tmp_path / "talk.jsonl").write_text(json.dumps(json.loads(talk)))
    imported(tmp_path, "talk.jsonl", 1)


def imported(folder: Path, file: str, trees: int) -> None:
    """What a file gives to `treewright import`."""
    done = forked.treewright(["import", file, "--name", "back"], folder, os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    with TreeStore.open(folder / "runs" / "back" / "trees.sqlite", read_only=True) as store:
        assert len(store.trees()) == trees


# -- files ------------------------------------------------------------------------------------------------------------


async def saved(page: Any, kind: str) -> tuple[Any, Any]:
    async with page.expect_download() as waiting:
        await page.select_option("select[aria-label='export what is listed']", kind)
    download = await waiting.value
    return download.suggested_filename, (await download.path()).read_text("utf-8")


async def test_what_is_listed_is_exported_in_its_order(
    opened: Callable[..., AbstractAsyncContextManager[Any]], tmp_path: Path
) -> None:
    async with opened(accept_downloads=True) as page:
        await find(page, "heron")
        await expect(page.locator("tbody tr")).to_have_count(2)
        await page.click("th.c-task button")
        name, text = await saved(page, "csv")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        assert name == "trees.csv" and [row["task_id"] for row in rows] == ["seen", "told"]
        assert [row["goal"] for row in rows] == ["Find the mill", "Paint a heron"]
        assert rows[0]["run"] == "'=first", "no cell is a formula"
        name, text = await saved(page, "messages")
        lines = [json.loads(line) for line in text.splitlines()]
        assert name == "messages.jsonl" and [line["id"] for line in lines] == ["seen", "told"]
        (tmp_path / name).write_text(text)
        imported(tmp_path, name, 2)
        _, text = await saved(page, "json")
        assert json.loads(text.splitlines()[0])["path"][-1]["text"] == 'wait {"for": "it"}'


async def test_an_export_of_nothing_says_so(browser: Any, tmp_path: Path) -> None:
    with TreeStore.open(write_store(tmp_path / "t.sqlite", [Growth()], finish=False), read_only=True) as store:
        async with serving(store) as address, looking(browser, address) as (page, _):
            await page.select_option("select[aria-label='export what is listed']", "messages")
            await expect(page.locator(".toast")).to_contain_text("no tree of the list has an answer yet")


# -- narrow -----------------------------------------------------------------------------------------------------------


async def fits(page: Any) -> tuple[bool | Any, Any]:
    wide = await page.evaluate(
        """[...document.querySelectorAll('body *')]
            .filter((e) => e.getClientRects().length && !e.closest('.pane-caption') && !e.matches('.unseen')
                && e.getBoundingClientRect().right > innerWidth + 1)
            .map((e) => e.tagName + '.' + e.className)"""
    )
    return not wide and await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), wide


@pytest.mark.parametrize("size", [NARROW, SIZE, WIDE], ids=["390", "1280", "1920"])
async def test_nothing_is_cut_off_at_the_side(browser: Any, page_file: str, size: dict[str, int]) -> None:
    async with looking(browser, page_file, viewport=size) as (page, watched):
        for words in ("", "text=north"):
            await page.evaluate(f"location.hash = '{words}'")
            await expect(page.locator("tbody tr").first).to_be_visible()
            assert (await fits(page))[0], await fits(page)
        await page.click("tbody a")
        await page.wait_for_selector(".acts")
        assert (await fits(page))[0], await fits(page)
        await press(page, "b")
        await expect(page.locator("canvas")).to_have_count(2)
        assert (await fits(page))[0], await fits(page)
        await press(page, "c")
        await page.wait_for_selector(".diff")
        assert (await fits(page))[0], await fits(page)
        await press(page, "r")
        await page.wait_for_selector("figure img")
        assert (await fits(page))[0], await fits(page)
        await press(page, "?")
        assert (await fits(page))[0] and not watched.errors


async def test_a_phone_sorts_by_a_menu_and_zooms_by_two_fingers(browser: Any, page_file: str) -> None:
    async with looking(browser, page_file, viewport=NARROW, has_touch=True) as (page, _):
        await page.select_option("select[aria-label=sort]", "-nodes")
        sizes = [int(text) for text in await page.locator("td.c-nodes").all_text_contents()]
        assert sizes == sorted(sizes, reverse=True)
        await page.locator("tbody a").first.tap()
        await page.wait_for_selector(".acts")
        await until(page, "Boolean(treewright.panes[0].view)")
        before = await page.evaluate("treewright.panes[0].view.ky")
        box = await page.locator("canvas").bounding_box()
        x, y = box["x"] + 100, box["y"] + 150
        hands = await page.context.new_cdp_session(page)

        async def touch(kind: str, *points: tuple[Any, Any]) -> None:
            spots = [{"x": a, "y": b, "id": i} for i, (a, b) in enumerate(points)]
            await hands.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": spots})

        await touch("touchStart", (x, y))
        await touch("touchStart", (x, y), (x + 40, y))
        await touch("touchMove", (x, y), (x + 120, y))
        await touch("touchEnd")
        await until(page, f"treewright.panes[0].view.ky > 2 * {before}")
