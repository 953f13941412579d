"""The viewer in a real headless Chromium: keys, filters, side by side, replay, live growth, and hostile texts."""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from payloads import payloads
from view_trees import Growth, big, png, walks, write_store

from treewright.agent.view import make_app, write_page
from treewright.search.store import TreeStore

uvicorn = pytest.importorskip("uvicorn", reason="the viewer needs a server; pip install 'treewright[web]'")
web = pytest.importorskip("playwright.async_api", reason="Playwright is missing; pip install 'treewright[web]'")
find_chromium = pytest.importorskip("treewright.envs.web.browser").find_chromium
expect, async_playwright = web.expect, web.async_playwright

WHY = "no Chromium: apt-get install chromium-headless-shell, or set TREEWRIGHT_CHROMIUM"
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.skipif(find_chromium() is None, reason=WHY)]

COUNT = int(os.environ.get("TREEWRIGHT_PAYLOADS", "100"))
SIZE = {"width": 1280, "height": 800}
WAIT = 8_000.0  # ms


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser():
    """A browser that draws: the one of the web environments saves frames, so that nothing would be animated."""
    sandbox = os.geteuid() != 0
    async with async_playwright() as driver:
        launched = await driver.chromium.launch(
            executable_path=find_chromium(), chromium_sandbox=sandbox, args=[] if sandbox else ["--no-sandbox"]
        )
        yield launched
        await launched.close()


@asynccontextmanager
async def serving(store):
    """The address of a viewer of this store."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    config = uvicorn.Config(make_app(store, "secret"), log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/secret/"
    finally:
        server.should_exit = True
        await task


class Watched:
    """A page that notes what a page must not do."""

    def __init__(self, page):
        self.page, self.requests, self.errors, self.dialogs = page, [], [], 0
        page.on("request", lambda r: self.requests.append(r.url))
        page.on("pageerror", lambda e: self.errors.append(str(e)))
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.on("dialog", self._dismiss)

    async def _dismiss(self, dialog):
        self.dialogs += 1
        await dialog.dismiss()

    def outside(self, own):
        return [u for u in self.requests if not u.startswith((own, "data:"))]


async def until(page, condition):
    """Playwright's own way to wait evaluates text inside the page, which the page forbids."""
    async with asyncio.timeout(WAIT / 1000):
        while not await page.evaluate(condition):
            await page.evaluate("new Promise((done) => setTimeout(done, 20))")


async def ended(page):
    """When the last frame asked for has been drawn."""
    await until(page, "Boolean(treewright.panes[0].view && !treewright.panes[0].waiting)")


@asynccontextmanager
async def looking(browser, address, **options):
    context = await browser.new_context(viewport=SIZE, **options)
    try:
        context.set_default_timeout(WAIT)
        page = await context.new_page()
        watched = Watched(page)
        await page.goto(address)
        await page.wait_for_selector("html[data-ready]")
        yield page, watched
    finally:
        await context.close()


@pytest_asyncio.fixture(loop_scope="module")
async def view(browser, tmp_path):
    """A page over a small store, served."""
    with TreeStore.open(write_store(tmp_path / "t.sqlite", walks(4)), read_only=True) as store:
        async with serving(store) as address, looking(browser, address) as (page, watched):
            yield page
            assert not watched.errors and not watched.outside(address)


@pytest_asyncio.fixture(loop_scope="module")
async def page_file(tmp_path):
    with TreeStore.open(write_store(tmp_path / "t.sqlite", walks(4)), read_only=True) as store:
        return write_page(tmp_path / "t.html", store).as_uri()


async def selected(page):
    return await page.evaluate("treewright.active.selected")


async def press(page, *keys):
    for key in keys:
        await page.keyboard.press(key)


async def open_first(page):
    await press(page, "ArrowDown", "Enter")
    await page.wait_for_selector(".node-head")


# -- walking ----------------------------------------------------------------------------------------------------------


async def test_the_keyboard_alone_finds_opens_and_walks_a_tree(view):
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


async def test_help_theme_shape_and_colour_have_keys(view):
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


async def test_the_list_walks_by_keys_and_filters_narrow_it(view):
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


async def test_a_click_selects_the_node_under_it(view):
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


async def test_the_selected_node_shows_tokens_prompt_observation_and_pictures(browser, tmp_path):
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
                grown.tree.observation[2].text.split("\n")[0]
            )
            await expect(page.locator(".details img")).to_have_count(1)
            assert await page.locator(".details img").evaluate("e => e.decode().then(() => e.naturalWidth)") == 96
            await expect(page.locator(".details")).to_contain_text("not a PNG or JPEG picture")
            assert not watched.errors


# -- two trees, growth, live ------------------------------------------------------------------------------------------


async def test_two_trees_of_a_task_stand_side_by_side(view):
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


async def test_the_growth_replays_pop_by_pop(view):
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


async def test_a_running_search_is_seen_growing(browser, tmp_path):
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


async def test_the_file_works_without_any_request(browser, page_file):
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
async def test_the_page_follows_the_system_in_light_and_dark(browser, page_file, scheme):
    async with looking(browser, page_file, color_scheme=scheme) as (page, _):
        await open_first(page)
        red = await page.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
        assert (red > 200) is (scheme == "light")
        await ended(page)
        corner = await page.evaluate("[...treewright.panes[0].canvas.getContext('2d').getImageData(2, 2, 1, 1).data]")
        assert (corner[0] > 200) is (scheme == "light")


# -- ten thousand nodes -----------------------------------------------------------------------------------------------


async def test_ten_thousand_nodes_pan_and_zoom(browser, tmp_path, record_property):
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


# -- hostile texts ----------------------------------------------------------------------------------------------------


def hostile(texts, attempt=0):
    """A tree whose first nodes carry each payload in what was said, done, observed, complained and signed."""
    grown = Growth(attempt=attempt)
    drafts = []
    for text in texts:
        grown.text = lambda kind, words, text=text: text
        error = text if len(drafts) % 2 else None
        drafts.append(grown.draft(text, grown.seen(1, True, error=text), error=error, share=1 / len(texts)))
    grown.apply(0, drafts)
    return grown


def named(texts):
    """Trees whose run, task, goal, version and first observation are a payload."""
    return [Growth(text, text, text, text, text=lambda kind, words, text=text: text).grow(1) for text in texts]


@asynccontextmanager
async def canary():
    """A loopback server that counts who called."""
    calls = []

    async def answer(reader, writer):
        calls.append(await reader.readline())
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\naccess-control-allow-origin: *\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", calls
    finally:
        server.close()


FRAMES_THAT_RAN = """async (texts) => {
    const frames = texts.map((text) => {
        const frame = document.createElement('iframe');
        frame.srcdoc = text;
        document.body.append(frame);
        return frame;
    });
    await new Promise((done) => setTimeout(done, 1500));
    const ran = (frame) => { try { return Boolean(frame.contentWindow.owned); } catch { return true; } };
    return frames.filter(ran).length;
}"""


async def test_the_payloads_do_their_work_on_a_page_that_trusts_them(browser):
    """The control: without it a harmless payload would count as one that was stopped."""
    async with canary() as (address, calls):
        texts, owned = payloads(COUNT, address), 0
        for first in range(0, COUNT, 100):  # a thousand frames at once would need more time than they are given
            page = await browser.new_page()
            owned += await page.evaluate(FRAMES_THAT_RAN, texts[first : first + 100])
            await page.close()
        worked = owned + len({line for line in calls if b" /f" not in line})
        assert worked > COUNT // 2, worked


async def check_hostile(page, texts):
    """Opens everything that shows a payload; gives how many nodes were looked at."""
    await expect(page.locator("tbody tr").first).to_be_visible()
    shown = await page.locator("td.goal").all_text_contents()
    assert any("<script" in text.lower() or "onerror" in text for text in shown)
    name = await page.evaluate("(async () => (await treewright.list.rows).find((r) => r.nodes > 50).id)()")
    await page.evaluate(f"treewright.go({{tree: '{name}', view: 'link'}})")
    await page.wait_for_selector(".node-head")
    for node in range(1, len(texts) + 1):
        await page.evaluate(f"treewright.panes[0].select({node})")
        await until(page, f"treewright.details.node === {node}")
        if node % 40 == 1:
            await page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
            said = await page.locator("section pre").all_text_contents()
            assert any(texts[node - 1].split("\u2028")[0] in text for text in said)
    await page.hover("canvas", position={"x": 200, "y": 300})
    for other in await page.evaluate("treewright.list.rows.slice(0, 6).map((r) => r.id)"):
        await page.evaluate(f"treewright.go({{tree: '{other}'}})")
        await until(page, f"treewright.panes[0].model?.row.id === '{other}'")
    await page.evaluate("treewright.go({report: 1})")
    await page.wait_for_selector("figure img")
    foreign = "script, iframe, object, embed, link, meta, base, svg, math, video, form, input, style"
    found = await page.evaluate(f"[...document.querySelectorAll('{foreign}')].map((e) => e.tagName + (e.type || ''))")
    own = {
        "METAreferrer",
        "META",
        "LINK",
        "STYLE",
        "SCRIPT",
        "SCRIPTapplication/json",
        "FORM",
        "INPUTsearch",
        "INPUTrange",
    }
    assert set(found) <= own and found.count("SCRIPT") == 1, found


@pytest.mark.parametrize("how", ["served", "file"])
async def test_hostile_texts_run_nothing_and_ask_for_nothing(browser, tmp_path, how):
    async with canary() as (outside, calls):
        texts = payloads(COUNT, outside)
        with TreeStore.open(
            write_store(tmp_path / "t.sqlite", [*named(texts[:24]), hostile(texts)]), read_only=True
        ) as store:
            async with serving(store) as address:
                target = write_page(tmp_path / "t.html", store).as_uri() if how == "file" else address
                context = await browser.new_context(viewport=SIZE)
                await context.add_init_script(
                    "window.refused = [];"
                    "addEventListener('securitypolicyviolation', (e) => refused.push(e.violatedDirective))"
                )
                page = await context.new_page()
                watched = Watched(page)
                await page.goto(target)
                await page.wait_for_selector("html[data-ready]")
                await check_hostile(page, texts)
                assert await page.evaluate("window.owned === undefined && refused.length === 0")
                assert not watched.dialogs and not watched.errors, watched.errors
                assert not watched.outside(target) and not calls
                assert len(context.pages) == 1
                await context.close()


async def test_the_policy_of_the_page_stops_markup_even_if_it_got_in(browser, page_file):
    async with looking(browser, page_file) as (page, _), canary() as (outside, calls):
        outcome = await page.evaluate(
            """async (address) => {
                const refused = [];
                addEventListener('securitypolicyviolation', (e) => refused.push(e.violatedDirective));
                let threw = false;
                try { document.body.innerHTML = '<img src=x onerror="window.owned=1">'; } catch { threw = true; }
                const image = document.createElement('img');
                image.src = address;
                try { image.setAttribute('onerror', 'window.owned=1'); } catch { threw = true; }
                document.body.append(image);
                await fetch(address).catch(() => 0);
                await new Promise((r) => setTimeout(r, 50));
                return { threw, owned: window.owned === 1, refused };
            }""",
            outside,
        )
        assert outcome["threw"] and not outcome["owned"] and not calls
        assert {"connect-src", "img-src"} <= set(outcome["refused"])
