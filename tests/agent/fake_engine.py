"""An inference engine that is none: draws with a local model, remembers what it was told, and dies on demand."""

import asyncio

from treewright.agent.policies.engine import EngineDead, Told
from treewright.envs.errors import TreewrightError
from treewright.search.types import Context


class FakeEngine:
    """Draws with a local model; does with weights what it is told and remembers it."""

    def __init__(self, local, longest=1 << 20):
        self.longest = longest
        self.local, self.calls, self.now, self.most, self.gate = local, [], 0, 0, None
        self.dead, self.dies_after, self.trouble = False, None, None

    def lives(self):
        if self.dead:
            raise EngineDead("the engine's process died")

    async def generate(self, ask):
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
        return Told(done.token_ids, done.logprobs, done.finish_reason, 2)

    async def load_weights(self, folder):
        assert self.now == 0
        self.lives()
        self.calls.append(("weights", folder))

    async def load_state(self, state):
        self.calls.append(("state", sorted(state)))

    async def load_adapter(self, folder):
        self.calls.append(("adapter", folder))

    async def sleep(self):
        self.lives()
        self.calls.append(("sleep",))
        return True

    async def wake(self):
        self.lives()
        self.calls.append(("wake",))

    async def restart(self):
        assert self.dead and self.now == 0
        await asyncio.sleep(0.01)
        if self.trouble:
            raise TreewrightError(self.trouble)
        self.dead = False
        self.calls.append(("restart",))

    async def close(self):
        self.calls.append(("close",))
