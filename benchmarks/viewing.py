"""The viewer at size: a tree of 100,000 nodes in Chromium, by its trace, and the list of 10 million nodes."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action, Observation, Task
from treewright.search.store import TreeStore
from treewright.search.store.bulk import Columns, load_trees
from treewright.search.tree import TreeHeader
from treewright.search.types import NodeStatus, Outcome

__all__ = ["Figures", "frames_of", "listed", "listing", "opening", "shown_after", "stored"]

Figures = dict[str, tuple[float, str]]
WIDTH, TRIES = 4, 5  # children of a node; openings of a tree, and calls of a list, of which the median counts
SIZE: Final = {"width": 1280, "height": 800}
CATEGORIES: Final = ["blink.user_timing", "devtools.timeline", "disabled-by-default-devtools.timeline.frame"]
SHOWN, BEGUN, DONE = "tree shown", "scrolling begins", "scrolling ends"

WAIT = """async () => {
  const next = () => new Promise(requestAnimationFrame);
  while (!window.treewright?.panes[0].frames.length) await next();
  performance.mark("tree shown");
  treewright.panes[0].redraw();
  await next();
  await next();
  await next();
  return treewright.active.model.size;
}"""
SCROLL = """async ([shape, seconds]) => {
  const pane = treewright.panes[0], next = () => new Promise(requestAnimationFrame);
  treewright.setShape(shape);
  await next();
  pane.zoom(8, 300, 400);
  await next();
  await next();
  const turn = (shiftKey, deltaY) => pane.canvas.dispatchEvent(new WheelEvent("wheel", { shiftKey, deltaY, clientX: 640,
    clientY: 400, bubbles: true, cancelable: true }));
  performance.mark("scrolling begins");
  const began = performance.now();
  let marks = 0;
  for (let i = 0; performance.now() - began < 1000 * seconds; i++) {
    if (i % 40 < 30) pane.pan(0, i % 80 < 40 ? -40 : 40);
    else turn(false, i % 80 < 40 ? 20 : -20);
    await next();
    marks = Math.max(marks, pane.marks);
  }
  performance.mark("scrolling ends");
  await next();
  return marks;
}"""


def stored(path: str, trees: int, nodes: int, tokens: int = 1) -> int:
    """Writes trees of so many nodes by the bulk path; returns rows. Their texts are short and their tokens few."""
    rng, n = np.random.default_rng(0), nodes - 1
    columns = Columns(
        parent=np.arange(n) // WIDTH,
        text=[f"go on {i % 97}" for i in range(n)],
        sizes=np.full(n, tokens),
        ids=rng.integers(0, 150_000, n * tokens, dtype=np.int32),
        logprobs=-rng.random(n * tokens, dtype=np.float32),
        seed=rng.integers(0, 2**62, n),
        action=[Action.of("click", ref=f"e{i % 50}").key for i in range(n)],
        score=rng.random(n),
        pages=[Observation(f"page {i}", f"f{i}") for i in range(20)],
        seen=rng.integers(0, 20, n),
        reward=np.zeros(n),
    )
    root = Outcome(Observation("the first page"), NodeStatus.OPEN)
    headers = (
        TreeHeader(run=f"run {i % 20}", task=Task("bench", f"{i}", "measure"), attempt=0, seed=i, policy_version="v1",
                   settings={}, root=root)
        for i in range(trees)
    )  # fmt: skip
    return load_trees(path, ((header, columns) for header in headers))


def listing(trees: int, nodes: int) -> Figures:
    """`listed` of a new store of so many trees with so many nodes each."""
    with tempfile.TemporaryDirectory(prefix="treewright-bench-") as folder:
        path = str(Path(folder) / "trees.db")
        rows = stored(path, trees, nodes)
        return {"list_nodes": (float(rows), "nodes"), **listed(path)}


def listed(path: str) -> Figures:
    """Seconds of wall clock until the viewer's server answers api/list: a new server's first answer, then the median of
    a few, of the list sorted by nodes, of a page amid the list, and of what it can be narrowed by."""
    from starlette.testclient import TestClient

    from treewright.agent.view import make_app

    with TreeStore.open(path, read_only=True) as store:
        trees = len(store.trees())
        client = TestClient(make_app(store, "bench"), base_url="http://127.0.0.1:8000")

        def answered(query: str) -> float:
            began = time.perf_counter()
            answer = client.get(f"/bench/api/{query}")
            took = time.perf_counter() - began
            answer.raise_for_status()
            if (total := answer.json().get("total", trees)) != trees:
                raise TreewrightError(f"the list has {total} trees, the store {trees}")
            return took

        first = answered("list?limit=100")
        asked = {
            "list_s": "list?limit=100",
            "list_sorted_s": "list?limit=100&sort=-nodes",
            "list_deep_s": f"list?limit=100&offset={trees // 2}",
            "facets_s": "facets",
        }
        took = {name: statistics.median(answered(query) for _ in range(TRIES)) for name, query in asked.items()}
    return {
        "list_trees": (float(trees), "trees"),
        "list_first_s": (first, "s"),
        **{name: (value, "s") for name, value in took.items()},
    }


def opening(nodes: int, seconds: float = 3.0, picture: Path | None = None) -> Figures:
    """A tree in Chromium: seconds from the address to the frame that shows it, frames a second while it is scrolled.

    picture  a file for what the window shows after scrolling. Raises TreewrightError without a browser.
    """
    return asyncio.run(_opened(nodes, seconds, picture))


async def _opened(nodes: int, seconds: float, picture: Path | None) -> Figures:
    with tempfile.TemporaryDirectory(prefix="treewright-bench-") as folder:
        path = str(Path(folder) / "trees.db")
        stored(path, 1, nodes)
        with TreeStore.open(path, read_only=True) as store:
            tree = store.trees()[0].tree_id
            async with _serving(store) as address, _browser() as browser:
                target = f"{address}#tree={tree}"
                await _traced(browser, target, nodes)  # the server's and the browser's own first time
                took = [shown_after(await _traced(browser, target, nodes)) for _ in range(TRIES)]
                out: Figures = {"open_s": (statistics.median(took), "s"), "open_worst_s": (max(took), "s")}
                for shape in ("icicle", "link"):
                    gaps = frames_of(await _traced(browser, target, nodes, (shape, seconds), picture))
                    out[f"{shape}_fps"] = (1 / statistics.fmean(gaps), "frames/s")
                    out[f"{shape}_gap_p99_ms"] = (1000 * float(np.percentile(gaps, 99)), "ms")
                out["fps"] = (min(out["icicle_fps"][0], out["link_fps"][0]), "frames/s, the lower of both")
    return out


async def _traced(
    browser: Any, target: str, nodes: int, scroll: tuple[str, float] | None = None, picture: Path | None = None
) -> list[dict[str, Any]]:
    """Chromium's trace of a new page that opens the tree and, if asked, scrolls."""
    page = await browser.new_page(viewport=SIZE)
    try:
        await browser.start_tracing(page=page, categories=CATEGORIES)
        await page.goto(target, wait_until="commit")
        if (found := await page.evaluate(WAIT)) != nodes:
            raise TreewrightError(f"the viewer shows {found} of {nodes} nodes")
        if scroll is not None and await page.evaluate(SCROLL, list(scroll)) < 1:
            raise TreewrightError("nothing was drawn while the tree was scrolled")
        if picture is not None and scroll is not None:
            await page.screenshot(path=str(picture.with_stem(f"{picture.stem}-{scroll[0]}")))
        return list(json.loads(await browser.stop_tracing())["traceEvents"])
    finally:
        await page.close()


def shown_after(events: Sequence[Mapping[str, Any]]) -> float:
    """Seconds from the start of the navigation to the first frame behind the mark that the tree was painted: at most
    two frames after the one that showed it first."""
    mark = _mark(events, SHOWN)
    begun = [
        e["ts"]
        for e in events
        if e["name"] == "navigationStart" and e["args"]["data"]["documentLoaderURL"].startswith("http")
    ]
    drawn = [e["ts"] for e in events if e["name"] == "DrawFrame" and e["ts"] >= mark]
    if not begun or not drawn:
        raise TreewrightError("Chromium's trace has no navigation, or no frame behind it")
    return float(min(drawn) - max(begun)) / 1e6


def frames_of(events: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds from one frame that was drawn to the next while the tree was scrolled."""
    begun, done = _mark(events, BEGUN), _mark(events, DONE)
    drawn = sorted(e["ts"] for e in events if e["name"] == "DrawFrame" and begun <= e["ts"] <= done)
    if len(drawn) < 2:
        raise TreewrightError("Chromium's trace has fewer than two frames of the scrolling")
    return [float(b - a) / 1e6 for a, b in itertools.pairwise(drawn)]


def _mark(events: Sequence[Mapping[str, Any]], name: str) -> float:
    found = [e["ts"] for e in events if e["name"] == name]
    if not found:
        raise TreewrightError(f"Chromium's trace has no mark {name!r}")
    return float(max(found))


@asynccontextmanager
async def _browser() -> AsyncIterator[Any]:
    try:
        from playwright.async_api import async_playwright
    except ImportError as error:
        raise TreewrightError(f"{error.name} is missing: pip install 'treewright[web]'") from error
    from treewright.envs.web.browser import require_chromium

    plain = ["--no-sandbox"] if os.geteuid() == 0 else []  # root has no sandbox to give
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=require_chromium(), args=plain)
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def _serving(store: TreeStore) -> AsyncIterator[str]:
    """The address of a viewer of the store."""
    import socket

    import uvicorn

    from treewright.agent.view import make_app

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        config = uvicorn.Config(make_app(store, "bench"), log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}/bench/"
        finally:
            server.should_exit = True
            await serving
