"""Playwright's MCP server on MiniWoB's pages, timed through an MCP client: npm's @playwright/mcp beside our own steps.

Steps are clicks at the same points as in our own measurement, each with the snapshot that the server makes of the page
afterwards (it writes it to a file and answers with its name; reading it is not counted). The server waits half a second
after each action by default; a second round is timed without that.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from treewright.benchmarks.peer_browsergym import POINTS
from treewright.envs.errors import TreewrightError

__all__ = ["PACKAGE", "ROUNDS", "mcp_steps"]

PACKAGE: Final = "@playwright/mcp@0.0.83"
ROUNDS: Final[dict[str, tuple[str, ...]]] = {"": (), "_without_its_wait": ("--timeout-settle", "0")}


def _command(folder: Path) -> list[str]:
    from treewright.envs.web.browser import require_chromium

    script, node = folder / "node_modules" / "@playwright" / "mcp" / "cli.js", shutil.which("node")
    if node is None or not script.is_file():
        raise TreewrightError(
            f"there is no {script} that node could run; type: npm install --prefix {folder} {PACKAGE}"
        )
    found = [node, str(script), "--headless", "--isolated", "--caps", "vision", "--allow-unrestricted-file-access"]
    found += ["--executable-path", str(require_chromium()), "--viewport-size", "800x600"]
    return [*found, *(["--no-sandbox"] if os.geteuid() == 0 else [])]


async def mcp_steps(folder: Path, pages: Sequence[str], seconds: float) -> dict[str, dict[str, float]]:
    """By round: steps, seconds in them, resets, seconds in them. Raises TreewrightError with what the server said."""
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client

    command, found = _command(folder), {}
    for name, more in ROUNDS.items():
        with tempfile.TemporaryDirectory() as files, open(os.devnull, "w") as silent:  # noqa: ASYNC230
            server = StdioServerParameters(command=command[0], args=[*command[1:], *more], cwd=files)
            async with (
                stdio_client(server, errlog=silent) as (reader, writer),
                ClientSession(reader, writer) as session,
            ):
                await session.initialize()
                found[name] = await _timed(session, pages, seconds)
    return found


async def _timed(session: Any, pages: Sequence[str], seconds: float) -> dict[str, float]:
    from treewright.envs.web.miniwob import pages as folder

    found = {"steps": 0.0, "step_s": 0.0, "resets": 0.0, "reset_s": 0.0}
    await _open(session, f"{folder().as_uri()}/{pages[0]}.html")  # the browser's own start is not timed
    began = time.monotonic()
    for page in pages:
        if time.monotonic() - began > seconds:
            break
        start = time.monotonic()
        await _open(session, f"{folder().as_uri()}/{page}.html")
        found["reset_s"] += time.monotonic() - start
        found["resets"] += 1
        for x, y in POINTS:
            start = time.monotonic()
            said = await _called(session, "browser_mouse_click_xy", {"element": "a point", "x": x, "y": y})
            if "Snapshot" not in said:
                said = await _called(session, "browser_snapshot", {})
            found["step_s"] += time.monotonic() - start
            found["steps"] += 1
            if "Snapshot" not in said:
                raise TreewrightError(f"Playwright MCP showed no page after a click on {page}: {said[:200]}")
    return found


async def _open(session: Any, url: str) -> None:
    await _called(session, "browser_navigate", {"url": url})
    await _called(session, "browser_evaluate", {"function": "() => { core.startEpisodeReal() }"})


async def _called(session: Any, tool: str, arguments: dict[str, Any]) -> str:
    answer = await session.call_tool(tool, arguments)
    said = "\n".join(getattr(part, "text", "") for part in answer.content)
    if getattr(answer, "isError", getattr(answer, "is_error", False)):
        raise TreewrightError(f"Playwright MCP refused {tool}: {said[:300]}")
    return said
