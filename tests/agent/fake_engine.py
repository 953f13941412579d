"""An inference engine that is none: draws with a local model, remembers what it was told, and dies on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from treewright.agent.policies.engine import Ask, EngineDead, Told
from treewright.agent.policies.policy import Policy
from treewright.envs.errors import TreewrightError
from treewright.search.types import Context


class FakeEngine:
    """Draws with a local model; does with weights what it is told and remembers it."""

    def __init__(self, local: Policy, longest: int = 1 << 20) -> None:
        self.longest = longest
        self.calls: list[Any]
        self.local, self.calls, self.now, self.most, self.gate = local, [], 0, 0, None
        self.dead, self.dies_after, self.trouble = False, None, None
        self.again = 0
        self.routes = None  # what it tells of experts, by what was asked and how many ids it gave

    def lives(self) -> None:
        if self.dead:
            raise EngineDead("the engine's process died")

    async def generate(self, ask: Ask) -> Told:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.dies_after is not None:
                self.dead = self.dead or self.dies_after == 0
                self.dies_after = self.dies_after - 1 if self.dies_after else None
            self.lives()
            (done,) = await self.local.draw(Context(keep=0, delta=ask.ids, ids=ask.ids), [ask.seed], ask.max_tokens)
        finally:
            self.now -= 1
        routes = None if self.routes is None else self.routes(ask, len(done.token_ids))
        return Told(done.token_ids, done.logprobs, done.finish_reason, 2, routes, self.again)

    async def load_weights(self, folder: str) -> None:
        assert self.now == 0
        self.lives()
        self.calls.append(("weights", folder))

    async def load_state(self, state: Mapping[str, Any]) -> None:
        self.calls.append(("state", sorted(state)))

    async def load_adapter(self, folder: str) -> None:
        self.calls.append(("adapter", folder))

    async def sleep(self) -> bool:
        self.lives()
        self.calls.append(("sleep",))
        return True

    async def wake(self) -> None:
        self.lives()
        self.calls.append(("wake",))

    async def restart(self) -> None:
        assert self.dead and self.now == 0
        await asyncio.sleep(0.01)
        if self.trouble:
            raise TreewrightError(self.trouble)
        self.dead = False
        self.calls.append(("restart",))

    async def close(self) -> None:
        self.calls.append(("close",))
