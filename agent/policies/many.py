"""Several engines with the same weights behind one policy: draws are spread over them, new weights go to all.

A node's draws go to the engine that its prompt's beginning leads to, so that each keeps the prefixes of its own trees
in its cache, unless that one has much more to do than another. An engine that fails is left out for a while and its
draws are made by another, with the same seeds; before it draws again it is given the newest weights.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from treewright.agent.policies.policy import PolicyStats, Pusher
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, Task, ToolSpec
from treewright.search.types import Completion, Context, Exchange, PolicyFault

__all__ = ["ManyPolicy"]

log = logging.getLogger(__name__)

REST = 30.0
"""Seconds for which an engine that failed is left out."""
BEGINNING = 64  # tokens of a prompt that say which engine its tree's draws go to
AHEAD = 4  # draws under way by which an engine may have more to do than the least busy one


@dataclass(slots=True, eq=False)
class _Engine:
    policy: Any
    busy: int = 0
    out_until: float = 0.0


class ManyPolicy:
    """`policies` of one model, each with an engine of its own. Raises TreewrightError for none."""

    def __init__(self, policies: Sequence[Any], rest: float = REST) -> None:
        if not policies:
            raise TreewrightError("no engine is named; write vllm:MODEL@http://HOST:PORT/v1,http://HOST:PORT/v1")
        self._engines, self._rest = [_Engine(policy) for policy in policies], rest
        self._folder: str | Path | None = None  # of the newest weights
        self._first = policies[0]
        self.name = f"{self._first.name} on {len(policies)} engines"
        self._version: str = self._first.version

    @property
    def policies(self) -> list[Any]:
        return [engine.policy for engine in self._engines]

    # what all engines have alike

    @property
    def version(self) -> str:
        return self._version

    @property
    def sampling(self) -> dict[str, Any]:
        found: dict[str, Any] = self._first.sampling
        return found

    @property
    def template(self) -> Any:
        return self._first.template

    @property
    def colocated(self) -> bool:
        return any(engine.policy.colocated for engine in self._engines)

    @property
    def sure(self) -> bool:
        return all(engine.policy.sure for engine in self._engines)

    @property
    def stats(self) -> PolicyStats:
        """The counters of all engines together; seconds are those of the busiest."""
        every = [engine.policy.stats for engine in self._engines]
        total = {f.name: sum(getattr(s, f.name) for s in every) for f in fields(PolicyStats)}
        return PolicyStats(**{**total, "seconds": max(s.seconds for s in every)})

    def dearest(self, max_tokens: int) -> float:
        return max(float(engine.policy.dearest(max_tokens)) for engine in self._engines)

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange], base: Sequence[int]
    ) -> Context:
        found: Context = self._first.context(task, tools, first, turns, base)
        return found

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        """One completion for each seed, of one engine. Raises PolicyFault where none of them answers."""
        tried: list[_Engine] = []
        last: PolicyFault | None = None
        while (engine := self._pick(context, tried)) is not None:
            tried.append(engine)
            engine.busy += len(seeds)
            try:
                if engine.policy.version != self._version:
                    await self._bring_up(engine)
                drawn: list[Completion] = list(await engine.policy.draw(context, seeds, max_tokens))
                return drawn
            except PolicyFault as fault:
                last = fault
                self._leave_out(engine, fault)
            finally:
                engine.busy -= len(seeds)
        raise PolicyFault(f"{self.name}: none of them answers; last: {last}")

    def _pick(self, context: Context, tried: Sequence[_Engine]) -> _Engine | None:
        """The engine to ask next: those that are left out only where nobody else is left."""
        left = [engine for engine in self._engines if engine not in tried]
        if not left:
            return None
        now = time.monotonic()
        ready = [engine for engine in left if engine.out_until <= now] or left
        digits = hashlib.blake2b(repr(tuple(context.ids[:BEGINNING])).encode(), digest_size=8).digest()
        wanted = ready[int.from_bytes(digits) % len(ready)]
        least = min(ready, key=lambda engine: engine.busy)
        return wanted if wanted.busy <= least.busy + AHEAD else least

    def _leave_out(self, engine: _Engine, why: Exception) -> None:
        if engine.out_until <= time.monotonic():
            log.warning("%s is left out for %.0f s: %s", engine.policy.name, self._rest, why)
        engine.out_until = time.monotonic() + self._rest

    async def _bring_up(self, engine: _Engine) -> None:
        """Gives an engine that was away the newest weights. Raises PolicyFault where it cannot take them."""
        if self._folder is None:
            raise PolicyFault(f"{engine.policy.name} has the weights {engine.policy.version}, not {self._version}")
        try:
            await engine.policy.load_weights(self._folder, self._version)
        except TreewrightError as error:
            raise PolicyFault(f"{engine.policy.name} does not take the newest weights: {error}") from error

    # -- weights and memory -------------------------------------------------------------------------------------------

    async def load_weights(self, path: str | Path, version: str = "") -> str:
        """Gives all engines the weights of a folder; who cannot take them is left out until it can.

        Raises TreewrightError where none takes them.
        """
        return await self._exchange("load_weights", path, version, path)

    async def load_pushed(self, push: Pusher, path: str | Path, version: str) -> str:
        """The same from the trainer's memory; engines that `push` does not reach get the folder."""
        took = await push.send(self.policies, version)
        return await self._exchange("load_weights", path, version, path, took)

    async def load_adapter(self, path: str | Path, version: str = "") -> str:
        """The same for an adapter. Raises TreewrightError where an engine does not take it."""
        return await self._exchange("load_adapter", path, version, None)

    async def _exchange(
        self, what: str, path: str | Path, version: str, folder: str | Path | None, took: Sequence[Any] = ()
    ) -> str:
        """took: policies whose engines have the weights already."""
        left = [engine for engine in self._engines if engine.policy not in took]
        found = await asyncio.gather(
            *(getattr(engine.policy, what)(path, version) for engine in left), return_exceptions=True
        )
        good = [version] * len(took) + [name for name in found if isinstance(name, str)]
        for engine, result in zip(left, found, strict=True):
            if isinstance(result, BaseException):
                if not isinstance(result, TreewrightError) or not good or folder is None:
                    raise result
                self._leave_out(engine, result)
        self._version, self._folder = good[0], folder
        return self._version

    def given(self, version: str) -> None:
        """Another process has handed all engines the weights that go by this name."""
        self._version = version
        for engine in self._engines:
            engine.policy.given(version)

    async def sleep(self) -> bool:
        """All give their accelerators back; False where one has none to give."""
        return all(await asyncio.gather(*(engine.policy.sleep() for engine in self._engines)))

    async def wake(self) -> None:
        await asyncio.gather(*(engine.policy.wake() for engine in self._engines))

    async def close(self) -> None:
        await asyncio.gather(*(engine.policy.close() for engine in self._engines), return_exceptions=True)
