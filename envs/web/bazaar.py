"""The suite `bazaar`: a larger site than the market, on the same server code and with the same two ways to open it.

`SUITE.open()` gives sandboxed sessions, `open_live()` sessions that share one bazaar per task. Two thirds of the
tasks need a step that a live bazaar cannot take back; in a third, a wrong one of these is near and fails the task.
"""

from __future__ import annotations

from typing import Any

from treewright.envs.types import Suite, Task
from treewright.envs.web.bazaar_site import bazaar_routes
from treewright.envs.web.bazaar_tasks import graded, make_tasks, oracle
from treewright.envs.web.bazaar_world import World
from treewright.envs.web.browser import close_browser, require_chromium
from treewright.envs.web.market import MarketEnvironment
from treewright.envs.web.market_site import Site

__all__ = ["SITE", "SUITE", "BazaarEnvironment", "close_bazaar", "open_live", "open_sandboxed"]

SITE = Site(bazaar_routes, World.from_json)
"""This process's bazaar; it serves from the first `open` until `SUITE.close()`."""


class BazaarEnvironment(MarketEnvironment):
    """A session at the bazaar: sandboxed with one of its own, or live in one shared by all with the same task."""

    name = "bazaar"
    part = 2000

    def build(self, task: Task) -> Any:
        return World.build(task.seed, task.split)

    async def score(self, task: Task, answer: str) -> float:
        return graded(task, answer, self.site.state(self.token))


async def open_sandboxed() -> BazaarEnvironment:
    """A session with a bazaar of its own."""
    await SITE.start()
    return BazaarEnvironment(SITE)


async def open_live() -> BazaarEnvironment:
    """A session in the bazaar that all live sessions with the same task share until `SITE.forget_shared()`."""
    await SITE.start()
    return BazaarEnvironment(SITE, live=True)


async def close_bazaar() -> None:
    """Ends the browser of the running event loop and the bazaar's server."""
    await close_browser()
    await SITE.stop()


def _available() -> None:
    require_chromium()


SUITE = Suite(
    name="bazaar",
    tasks=make_tasks,
    open=open_sandboxed,
    oracle=oracle,
    description="A shop with facets and checkout, a forum and a refund desk in a real browser; many steps are final.",
    max_tokens=48,
    sessions=4,
    close=close_bazaar,
    available=_available,
)
