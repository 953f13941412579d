"""`treewright bench store`: rows in, arrays out, look-ups, and how soon the viewer shows such a store."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from treewright.benchmarks.store_load import Figures
from treewright.benchmarks.store_load import main as measure
from treewright.envs.errors import TreewrightError
from treewright.search.store import TreeStore

__all__ = ["main", "viewer_figures"]

WAIT_MS = 60_000.0


def main(quick: bool = False, json_path: str | None = None, plot_path: str | None = None) -> dict[str, Any]:
    """Measures, prints a table and returns {"figures", "quick"}; see `treewright.benchmarks.store_load`.

    viewer_open_s   seconds from opening the store to its list in a headless browser; needs 'treewright[web]' and a
                    Chromium, without them a message says so
    viewer_tree_s   from opening a tree of 10,000 nodes there to its drawing
    """
    console = Console(emoji=False)
    figures = measure(quick, json_path, plot_path, more=lambda path: _viewer(path, console))
    table = Table("figure", "value", "unit")
    for name, (value, unit) in figures.items():
        table.add_row(name, f"{value:,.4g}" if value < 1000 else f"{value:,.0f}", unit)
    console.print(table)
    if quick:
        console.print("quick: a small store; the full size is measured without --quick")
    given = {name: {"value": value, "unit": unit} for name, (value, unit) in figures.items()}
    return {"figures": given, "quick": quick}


def _viewer(path: str, console: Console) -> Figures:
    try:
        return asyncio.run(viewer_figures(path))
    except TreewrightError as error:
        console.print(f"viewer_open_s was not measured: {error}", markup=False)
        return {}


async def viewer_figures(path: str | Path) -> Figures:
    """{"viewer_open_s", "viewer_nodes", "viewer_tree_s"} of a store. Raises TreewrightError without a browser."""
    try:
        import uvicorn
        from playwright.async_api import async_playwright
    except ImportError as error:
        raise TreewrightError(f"{error.name} is missing: pip install 'treewright[web]'") from error
    from treewright.agent.view import make_app
    from treewright.envs.web.browser import require_chromium

    plain = os.geteuid() == 0  # root has no sandbox to give

    async with async_playwright() as driver:
        browser = await driver.chromium.launch(
            executable_path=require_chromium(), args=["--no-sandbox"] if plain else []
        )
        page = await browser.new_page()
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            began = time.perf_counter()
            with TreeStore.open(path, read_only=True) as store:
                config = uvicorn.Config(make_app(store, "bench"), log_level="warning", timeout_graceful_shutdown=1)
                server = uvicorn.Server(config)
                serving = asyncio.create_task(server.serve(sockets=[sock]))
                address = f"http://127.0.0.1:{sock.getsockname()[1]}/bench/"
                await page.goto(address)
                await page.locator("tbody tr").first.wait_for(timeout=WAIT_MS)
                listed = time.perf_counter()
                await page.locator("tbody tr a").first.click()
                await page.locator(".node-head").first.wait_for(timeout=WAIT_MS)
                drawn = time.perf_counter()
                nodes = float(sum(row.nodes for row in store.trees()))
                server.should_exit = True
                await serving
        await browser.close()
    return {
        "viewer_open_s": (listed - began, "s"),
        "viewer_nodes": (nodes, "nodes"),
        "viewer_tree_s": (drawn - listed, "s"),
    }
