"""The suite `market`: a shop with a forum, in a real browser, with real state behind it.

`SUITE.open()` gives sandboxed sessions, each with a shop of its own that snapshots cover in full. `open_live()` gives
sessions that share one shop per task, as customers of a real one do: there, buying, cancelling, posting and deleting
cannot be undone, and `effect` says so before.
"""

from __future__ import annotations

import secrets
from typing import Any

from treewright.envs.types import Effect, Restore, Suite, Task, digest
from treewright.envs.web.browser import close_browser
from treewright.envs.web.effects import DEFAULT_RULES, SAFE_METHODS, Target
from treewright.envs.web.environment import WebEnvironment
from treewright.envs.web.market_site import TOKEN_HEADER, Site
from treewright.envs.web.market_tasks import graded, make_tasks, oracle
from treewright.envs.web.market_world import World

__all__ = ["SITE", "SUITE", "MarketEnvironment", "close_market", "open_live", "open_sandboxed"]

SITE = Site()
"""This process's market; it serves from the first `open` until `SUITE.close()`."""


def cart_rule(target: Target) -> Effect | None:
    """A cart belongs to one session, and what is in it can be taken out again."""
    return Effect.REVERSIBLE if target.method not in ("", *SAFE_METHODS) and target.path.startswith("/cart/") else None


class MarketEnvironment(WebEnvironment):
    """A session at the market: sandboxed with a shop of its own, or live in a shop shared by all with the same task.

    A live snapshot holds the session's cart and page; if the shared shop has changed since, restoring it raises
    Divergence.
    """

    name = "market"
    restore_ways = frozenset({Restore.STATE, Restore.REPLAY})

    still = True  # the site's policy forbids scripts
    part = 600

    def __init__(self, site: Site, *, live: bool = False) -> None:
        self.live = live
        self.token = secrets.token_hex(16)
        super().__init__(
            site.url,
            rules=(cart_rule, *DEFAULT_RULES),
            headers={TOKEN_HEADER: self.token},
            part=self.part,
            quiet=0.0,
            uses=False,  # its pages use no other elements than those that have a role
            calm=None,  # every character of these pages is state
            reuse=True,  # the site's policy forbids scripts, so its pages cannot keep anything
        )
        self.site = site
        self.sandboxed = not live

    def build(self, task: Task) -> Any:
        """The shop that a task begins in."""
        return World.build(task.seed, task.split)

    async def begin(self, task: Task, key: int) -> None:
        self.site.enter(self.token, self.build(task), task.id if self.live else "")

    async def server_state(self) -> bytes:
        return self.site.state(self.token).encode()

    async def load_server_state(self, state: bytes) -> None:
        self.site.load(self.token, state.decode())

    async def server_mark(self) -> str:
        return digest(self.site.state(self.token))

    async def score(self, task: Task, answer: str) -> float:
        return graded(task, answer, self.site.state(self.token))

    async def close(self) -> None:
        await super().close()
        self.site.leave(self.token)


async def open_sandboxed() -> MarketEnvironment:
    """A session with a shop of its own."""
    await SITE.start()
    return MarketEnvironment(SITE)


async def open_live() -> MarketEnvironment:
    """A session in the shop that all live sessions with the same task share until `SITE.forget_shared()`."""
    await SITE.start()
    return MarketEnvironment(SITE, live=True)


async def close_market() -> None:
    """Ends the browser of the running event loop and the market's server."""
    await close_browser()
    await SITE.stop()


SUITE = Suite(
    name="market",
    tasks=make_tasks,
    open=open_sandboxed,
    oracle=oracle,
    description="A small shop with a forum in a real browser: look up, buy, cancel, delete.",
    max_tokens=32,
    sessions=4,
    close=close_market,
)
