"""Hostile texts in the viewer, in a real headless Chromium: nothing runs, nothing is asked for."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from payloads import payloads
from speed import patient
from view_pages import SIZE, Watched, expect, looking, marks, serving, until
from view_trees import Growth, write_store

from treewright.agent.view import write_page
from treewright.search.store import TreeStore

pytestmark = marks
COUNT = int(os.environ.get("TREEWRIGHT_PAYLOADS", "100"))


def always(text: str) -> Any:
    return lambda kind, words: text


def hostile(texts: list[str], attempt: int = 0) -> Growth:
    """A tree whose first nodes carry each payload in what was said, done, observed, complained and signed."""
    grown = Growth(attempt=attempt)
    drafts: list[Any] = []
    for text in texts:
        grown.text = always(text)
        error = text if len(drafts) % 2 else None
        drafts.append(grown.draft(text, grown.seen(1, True, error=text), error=error, share=1 / len(texts)))
    grown.apply(0, drafts)
    return grown


def named(texts: list[str]) -> list[Any]:
    """Trees whose run, task, goal, version and first observation are a payload."""
    return [Growth(text, text, text, text, text=lambda kind, words, text=text: text).grow(1) for text in texts]


@asynccontextmanager
async def canary() -> AsyncIterator[tuple[str, list[Any]]]:
    """A loopback server that counts who called."""
    calls = []

    async def answer(reader: Any, writer: Any) -> None:
        calls.append(await reader.readline())
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\naccess-control-allow-origin: *\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", calls
    finally:
        server.close()


FRAMES = """(texts) => texts.forEach((text) => {
    const frame = document.createElement('iframe');
    frame.srcdoc = text;
    document.body.append(frame);
})"""
FRAMES_THAT_RAN = """() => {
    const ran = (frame) => { try { return Boolean(frame.contentWindow.owned); } catch { return true; } };
    return [...document.querySelectorAll('iframe')].filter(ran).length;
}"""


async def test_the_payloads_do_their_work_on_a_page_that_trusts_them(browser: Any) -> None:
    """The control: without it a harmless payload would count as one that was stopped."""
    async with canary() as (address, calls):
        texts, owned = payloads(COUNT, address), 0

        def worked(ran: int) -> int:
            return owned + ran + len({line for line in calls if b" /f" not in line})

        for first in range(0, COUNT, 100):  # a thousand frames at once would need more time than they are given
            part, page = texts[first : first + 100], await browser.new_page()
            await page.evaluate(FRAMES, part)
            latest = time.monotonic() + patient(15)
            await asyncio.sleep(patient(1.5))
            while worked(ran := await page.evaluate(FRAMES_THAT_RAN)) <= (first + len(part)) // 2:
                if time.monotonic() > latest:
                    break
                await asyncio.sleep(0.2)
            owned += ran
            await page.close()
        assert worked(0) > COUNT // 2, worked(0)


async def check_hostile(page: Any, texts: list[str]) -> None:
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
    for kind in ("path", "tree"):
        await page.evaluate(
            f"treewright.go({{compare: 1, tree: '{name}', node: 1, with: '{name}', other: 2, as: '{kind}'}})"
        )
        await page.wait_for_selector(".diff .line")
    await page.evaluate("treewright.go({text: 'script'})")
    await page.wait_for_selector(".hit mark")
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
async def test_hostile_texts_run_nothing_and_ask_for_nothing(browser: Any, tmp_path: Path, how: str) -> None:
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


async def test_the_policy_of_the_page_stops_markup_even_if_it_got_in(browser: Any, page_file: str) -> None:
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
