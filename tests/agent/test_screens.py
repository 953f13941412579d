"""Pictures of pages: to a chat server whose model sees them, into the store once each, and into the viewer."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import subprocess
import zlib
from pathlib import Path
from typing import Any

import forked
import pytest
import pytest_asyncio
from not_none import not_none
from sqlalchemy import select

from treewright.agent.policies.openai import OpenAIPolicy
from treewright.agent.policies.pictures import message_json
from treewright.agent.policies.prompt_text import chat_messages, observation_text
from treewright.agent.view import write_page
from treewright.envs import Action, Observation, Task, TreewrightError
from treewright.search.store import TreeStore
from treewright.search.store.models import blobs
from treewright.search.types import Exchange

web = pytest.importorskip("playwright.async_api", reason="needs the extra 'web': pip install 'treewright[web]'")
find_chromium = pytest.importorskip("treewright.envs.web.browser").find_chromium
needs_browser = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium: apt-get install chromium-headless-shell"
)
pytestmark = pytest.mark.asyncio(loop_scope="module")
TASK = Task("t", "1", "look")
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
PAGES = {
    "/": "<title>a</title><div style='height:100px'></div><a href=/b style='display:block;width:200px'>next</a>",
    "/b": "<title>b</title><h1>The end</h1><a href=/>back</a>",
}


def seen(*parts: dict[str, Any], text: str = "page") -> Observation:
    return Observation(text, "f", provenance="page", parts=parts)


def urls(body: Any) -> list[Any]:
    return [p["image_url"]["url"] for m in body["messages"] if isinstance(m["content"], list) for p in m["content"][1:]]


async def test_pictures_go_with_the_observations_that_are_shown_in_full() -> None:
    picture = {"type": "image", "png": PNG, "boxes": {}}
    coded = {"type": "image", "mime_type": "image/png", "base64": base64.b64encode(PNG + b"1").decode()}
    turns = [Exchange("click", Action.of("click", ref="e1"), seen(coded, {"type": "arrival", "distance": 0.1}))]
    messages = [message_json(m) for m in chat_messages(TASK, (), seen(picture), turns, images=True)]
    first, second = messages[1]["content"], messages[3]["content"]
    assert first[0] == {"type": "text", "text": "look\n\npage"} and second[0]["text"] == "page"
    assert base64.b64decode(first[1]["image_url"]["url"].partition(",")[2]) == PNG
    assert first[1]["image_url"]["url"].startswith("data:image/png;base64,") and second[1]["type"] == "image_url"
    newest = [message_json(m) for m in chat_messages(TASK, (), seen(picture), turns, window=1, images=True)]
    assert isinstance(newest[1]["content"], str) and isinstance(newest[3]["content"], list)


async def test_a_policy_that_reads_text_says_what_to_type_and_other_parts_are_refused_by_type() -> None:
    with pytest.raises(TreewrightError, match=r"--set policy.options.images=true"):
        observation_text(seen({"type": "image", "png": PNG}))
    assert observation_text(seen({"type": "arrival", "distance": 0.1})) == "page"
    for part in ({"type": "audio", "wav": b"RIFF"}, {"type": "image", "png": b"GIF89a"}):
        with pytest.raises(TreewrightError, match=f"a part of type {part['type']} that is no PNG or JPEG picture"):
            chat_messages(TASK, (), seen(part), (), images=True)


async def test_results_of_tools_are_text_and_their_pictures_follow() -> None:
    policy = OpenAIPolicy("m", "http://127.0.0.1:9", tools_as="schema", images=True)
    said = 'click {"ref": "e1"}'
    turns = [Exchange(said, Action.of("click", ref="e1"), seen({"type": "image", "png": PNG}, text="after"))]
    body = policy._body(policy.context(TASK, (), seen(), turns, ()), 8)
    roles = [(m["role"], isinstance(m["content"], list)) for m in body["messages"]]
    assert roles[-2:] == [("tool", False), ("user", True)] and body["messages"][-2]["content"] == "after"
    await policy.close()


# -- from the command line to the viewer ----------------------------------------------------------------------------


async def typed(folder: Path, *line: str, images: str = "true") -> tuple[subprocess.CompletedProcess[str], list[Any]]:
    """A command over a site with screenshots, and a chat server whose model sees them: (what it did, its requests)."""
    asked = []

    async def chat(reader: Any, writer: Any) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = int(not_none(re.search(r"content-length: (\d+)", head, re.I))[1])
        body = json.loads(await reader.readexactly(length))
        asked.append(body)
        end = "The end" in json.dumps(body["messages"][-1])
        said = 'answer {"text": "done"}' if end else 'click {"ref": "e1"}'
        choices = [{"index": i, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
                   for i in range(int(body.get("n", 1)))]  # fmt: skip
        raw = json.dumps({"choices": choices, "usage": {"prompt_tokens": 9, "completion_tokens": 9}}).encode()
        top = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n"
        writer.write(top.encode() + b"Connection: close\r\n\r\n" + raw)
        await writer.drain()
        writer.close()

    from local_site import serve_pages

    site, server = await serve_pages(PAGES), await asyncio.start_server(chat, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    (folder / "tasks.jsonl").write_text(
        "".join(
            f'{{"id": "t{n}", "goal": "go on", "reward": {{"url": "/b"}}, "split": "{split}"}}\n'
            for n, split in enumerate(["train", "train", "test"])
        )
    )
    (folder / "site.toml").write_text(f'url = "{site.url}/"\ntasks = "tasks.jsonl"\nscreenshot = true\n')
    words = [
        *line, "--policy", f"openai:m@http://127.0.0.1:{port}/v1", "--set", f"policy.options.images={images}",
        "--set", "search.expansions=3", "--set", "search.evaluator=none",
    ]  # fmt: skip
    given = {**os.environ, "NO_COLOR": "1", "COLUMNS": "120"}
    done = await asyncio.to_thread(forked.treewright, words, folder, given)
    site.close()
    server.close()
    return done, asked


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A run that was collected with pictures: its folder, and the requests that the model's server got."""
    folder = tmp_path_factory.mktemp("run")
    done, asked = await typed(folder, "collect", "--suites", "web:site.toml", "--tasks", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, asked


ACTING = {
    "run": ["run", "web:site.toml/t2"],
    "run alone": ["run", "web:site.toml/t2", "--expansions", "0"],
    "eval": ["eval", "--suites", "web:site.toml", "--tasks", "1", "--expansions", "2"],
}


@needs_browser
@pytest.mark.parametrize("line", ACTING)
async def test_pictures_reach_the_model_where_a_policy_acts(tmp_path: Path, line: str) -> None:
    done, asked = await typed(tmp_path, *ACTING[line])
    assert done.returncode == 0, done.stdout + done.stderr
    pictures = [base64.b64decode(url.partition(",")[2]) for body in asked for url in urls(body)]
    assert asked and all(urls(body) for body in asked), "every request shows the page that it is about"
    assert all(picture.startswith(b"\x89PNG") for picture in pictures) and len(set(pictures)) == 2


@needs_browser
@pytest.mark.parametrize("line", ["run", "eval"])
async def test_a_site_with_screenshots_and_a_model_that_reads_says_what_to_type(tmp_path: Path, line: str) -> None:
    done, asked = await typed(tmp_path, *ACTING[line], images="false")
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2 and asked == [] and "policy.options.images=true" in said and "Traceback" not in said


@needs_browser
async def test_a_page_is_seen_by_the_model_and_stored_once_however_often_it_was_seen(
    run: tuple[Any, list[Any]],
) -> None:
    folder, asked = run
    assert asked and all(urls(body) for body in asked)
    assert all(base64.b64decode(url.partition(",")[2]).startswith(b"\x89PNG") for body in asked for url in urls(body))
    store = folder / "runs" / "run" / "trees.sqlite"
    with TreeStore.open(str(store)) as kept:
        trees = [kept.load(row.tree_id) for row in kept.trees()]
        with kept.snapshot() as connection:
            rows = connection.execute(select(blobs.c.codec, blobs.c.data)).all()
            held = [zlib.decompress(data) if codec == "zlib" else bytes(data) for codec, data in rows]
    pictures = [part["png"] for tree in trees for o in tree.observation if o is not None for part in o.shown]
    assert len(trees) == 2 and len(pictures) >= 4 and len(set(pictures)) == 2
    assert sorted(data for data in held if data.startswith(b"\x89PNG")) == sorted(set(pictures))
    box = not_none(trees[0].observation[0]).shown[0]["boxes"]["e1"]
    assert box[1] >= 100 and box[2] == 200


@needs_browser
async def test_the_viewer_marks_the_element_that_was_acted_on(run: tuple[Any, list[Any]], tmp_path: Path) -> None:
    folder, _ = run
    with TreeStore.open(str(folder / "runs" / "run" / "trees.sqlite")) as kept:
        path = write_page(tmp_path / "tree.html", kept)
    sandbox = os.geteuid() != 0
    async with web.async_playwright() as driver:
        browser = await driver.chromium.launch(
            executable_path=find_chromium(), chromium_sandbox=sandbox, args=[] if sandbox else ["--no-sandbox"]
        )
        page = await browser.new_page(viewport={"width": 1280, "height": 800})
        await page.goto(path.as_uri())
        await page.wait_for_selector("html[data-ready]")
        for key in ("ArrowDown", "Enter"):
            await page.keyboard.press(key)
        await page.wait_for_selector(".node-head")
        await page.evaluate("treewright.active.select(1)")
        frame, image = page.locator(".marked .frame").first, page.locator(".marked img").first
        await frame.wait_for(state="attached")
        await image.evaluate("image => image.decode()")
        mark, whole = await frame.bounding_box(), await image.bounding_box()
        await browser.close()
    assert whole["x"] <= mark["x"] and mark["x"] + mark["width"] <= whole["x"] + whole["width"] + 1
    assert mark["width"] == pytest.approx(whole["width"] * 200 / 1024, rel=0.05)
    assert mark["y"] > whole["y"] + whole["height"] * 90 / 768
