"""A policy on an inference engine in this program: token ids in, token ids and log-probs out.

What an engine must do is `Engine`: one draw at a time, weights exchanged, memory given back. What every engine needs
is here once: prompts, the line of waiting draws, deadlines, versions, counters. `vllm_engine.py` is vLLM's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from treewright.agent.policies.actions import cached_grammar
from treewright.agent.policies.cutting import CutAfterwards
from treewright.agent.policies.prompts import Template
from treewright.agent.policies.served import ExchangingPolicy, tools_of, with_tools
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, Task, ToolSpec
from treewright.envs.waiting import together
from treewright.search.meter import Work
from treewright.search.routes import fresh_routes
from treewright.search.types import Completion, Context, Exchange, PolicyFault

__all__ = ["Ask", "Engine", "EngineDead", "EnginePolicy", "Told"]

log = logging.getLogger("treewright.agent")
SETTLED = 256  # draws after which an engine that was started again counts as well


class EngineDead(PolicyFault):
    """The engine's process is gone, and with it the draws that were under way."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One draw. temperature 0 is greedy; grammar is a Lark grammar in llguidance's dialect, or None.

    added  how many of the last of `ids` no draw had in its prompt before
    tempered  the temperature is what the prompt asked for, so that the draw may be trained on
    """

    ids: tuple[int, ...]
    seed: int
    max_tokens: int
    temperature: float
    stop_ids: tuple[int, ...]
    grammar: str | None = None
    added: int = 0
    tempered: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """[T] sampled ids with the stop id, and their natural log-probs under the distribution they were sampled from.

    finish  'stop' or 'length';  cached  prompt tokens whose keys and values were taken from the engine's cache
    routes  whole numbers [n, L, K], the experts of the last n tokens of prompt and ids without the last one; or None
    again   tokens before those that `Ask.added` counts which were computed anew for this draw, and so routed anew
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str
    cached: int = 0
    routes: NDArray[np.generic] | None = None
    again: int = 0


class Engine(Protocol):
    """What `EnginePolicy` needs. All calls but `generate` are made while no draw is under way.

    All but `restart` and `close` raise EngineDead where the engine's process is gone.
    """

    longest: int

    @property
    def dead(self) -> bool:
        """The engine's process is gone; only `restart` and `close` do anything."""

    async def generate(self, ask: Ask) -> Told:
        """One draw; cancelling it frees what it holds."""

    async def load_weights(self, folder: str) -> None:
        """Takes the weights of a `save_pretrained` folder of the same shape and forgets cached prompts."""

    async def load_state(self, state: Mapping[str, Any]) -> None:
        """The same from tensors by name."""

    async def load_adapter(self, folder: str) -> None:
        """Draws from now on with a LoRA adapter; a second call replaces the first."""

    async def sleep(self) -> bool:
        """Gives the accelerator's memory back; False where there is none to give."""

    async def wake(self) -> None:
        """Takes the memory again."""

    async def restart(self) -> None:
        """Starts again after a death, awake, with the weights and the adapter that it had.

        Raises TreewrightError where that fails.
        """

    async def close(self) -> None: ...


class EnginePolicy(ExchangingPolicy, CutAfterwards):
    """Draws from `engine`; prompts are built with the model's own tokenizer and nothing is tokenised twice.

    concurrency  draws under way at once; the rest waits here, in the order of `order` (see PrefixLine), so that the
                 engine is never flooded and its prefix cache stays warm
    deadline     seconds for one draw() with its waiting; then the draws are cancelled and it is a PolicyFault
    drafts       how the engine itself drafts, kept in the header of every tree; {} for not at all
    restarts     times that an engine that died is started again with the weights it had; counted anew after SETTLED
                 draws. The draws that died with it are made once more, with their seeds; beyond that they are faults
    grammar      True: every draw is an action of the node's tools, see actions.py
    masked_exact True if the engine's log-probs are those of the masked distribution, so that such draws may be
                 trained on
    """

    def __init__(
        self,
        engine: Engine,
        template: Template,
        *,
        name: str,
        version: str,
        stop_ids: Sequence[int] = (),
        temperature: float = 1.0,
        concurrency: int = 64,
        order: str = "prefix",
        deadline: float = 300.0,
        restarts: int = 2,
        grammar: bool = False,
        masked_exact: bool = False,
        drafts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            name=name, version=version, temperature=temperature, concurrency=concurrency, order=order,
            deadline=deadline, grammar=grammar,
        )  # fmt: skip
        self.engine, self.template, self.masked_exact = engine, template, masked_exact
        self.stop_ids = tuple(sorted(template.stop_ids | set(stop_ids)))
        self.restarts, self._closed, self.drafts = restarts, False, dict(drafts or {})
        self.work: Work | None = None
        self._deaths = self._settled = 0
        self._revival: asyncio.Task[None] | None = None

    @property
    def sampling(self) -> dict[str, Any]:
        return super().sampling | ({"drafted_by": self.drafts} if self.drafts else {})

    def context(
        self,
        task: Task,
        tools: Sequence[ToolSpec],
        first: Observation,
        turns: Sequence[Exchange],
        base: Sequence[int],
    ) -> Context:
        context = self.template.context(task, tools, first, turns, base)
        return with_tools(context, tools) if self.grammar else context

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        """One completion for each seed. Raises PolicyFault for a dead engine, a prompt too long, or a late answer."""
        if self._closed:
            raise PolicyFault(f"policy {self.name} is closed")
        if max_tokens < 1 or not context.ids:
            raise TreewrightError(f"a draw needs a prompt and max_tokens >= 1, not {max_tokens}")
        if len(context.ids) + max_tokens > self.engine.longest:
            raise PolicyFault(
                f"a prompt of {len(context.ids)} tokens and {max_tokens} new ones do not fit the {self.engine.longest} "
                f"positions of {self.name}; set window=N to shorten prompts"
            )
        grammar = cached_grammar(tools_of(context)) if self.grammar else None
        warm = context.temperature is not None
        heat = self.temperature if context.temperature is None else context.temperature
        asks = [Ask(context.ids, s, max_tokens, heat, self.stop_ids, grammar, len(context.delta), warm) for s in seeds]
        return await self._in_time(together([self._one(ask) for ask in asks]), lambda: "")

    async def _one(self, ask: Ask) -> Completion:
        try:
            return await self._drawn(ask)
        except EngineDead as dead:
            await self._revived(dead)
            self.stats.retries += 1
            return await self._drawn(ask)

    async def _drawn(self, ask: Ask) -> Completion:
        async with self._place(ask.ids):
            told = await self.engine.generate(ask)
        return self._completion(ask, told)

    def _completion(self, ask: Ask, told: Told) -> Completion:
        if not told.ids or len(told.ids) != len(told.logprobs):
            raise PolicyFault(f"{self.name} gave {len(told.ids)} token ids with {len(told.logprobs)} log-probs")
        if told.finish not in ("stop", "length"):
            raise PolicyFault(f"{self.name} broke a draw off ({told.finish})")
        read = len(ask.ids) + len(told.ids) - 1
        if told.routes is not None and len(told.routes) > read:
            raise PolicyFault(f"{self.name} gave the experts of {len(told.routes)} tokens, but {read} were read")
        self._settled += 1
        self.stats.requests += 1
        self.stats.draws += 1
        self.stats.sampled_tokens += len(told.ids)
        self.stats.cached_tokens += told.cached
        self.stats.prompt_tokens += len(ask.ids) - told.cached
        stopped = told.ids[-1] in self.stop_ids
        plain = ask.grammar is None or (self.masked_exact and ask.temperature == 1.0)
        return Completion(
            self.template.encoder.text(told.ids[:-1] if stopped else told.ids),
            told.ids,
            told.logprobs,
            finish_reason=told.finish,
            policy_version=self._version,
            trainable=plain and (ask.tempered or ask.temperature == 1.0),
            temperature=ask.temperature,
            routes=fresh_routes(told.routes, ask.added + told.again, len(told.ids)),
        )

    # -- weights and memory -----------------------------------------------------------------------------------------

    async def load_state(self, state: Mapping[str, Any], version: str) -> str:
        """Takes tensors by name (as in a `state_dict`) without a detour over files."""
        async with self.held():
            await self._surely(lambda: self.engine.load_state(state))
            self._version = version
        return version

    async def _take_weights(self, folder: str) -> None:
        await self._surely(lambda: self.engine.load_weights(folder))

    async def _take_adapter(self, mark: str, folder: str) -> None:
        await self._surely(lambda: self.engine.load_adapter(folder))

    async def _fall_asleep(self) -> bool:
        return bool(await self._surely(self.engine.sleep))

    async def _wake_up(self) -> None:
        await self._surely(self.engine.wake)

    # -- deaths -----------------------------------------------------------------------------------------------------

    async def _surely(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """What `call` does with the engine, once more after a restart; nobody draws meanwhile."""
        try:
            return await call()
        except EngineDead as dead:
            await self._restart(dead)
            return await call()

    async def _revived(self, dead: EngineDead) -> None:
        """Waits for the one restart that all draws share that died together; it outlives their cancellation.

        Raises PolicyFault where the engine stays dead.
        """
        if self._revival is None or self._revival.done():
            self._revival = asyncio.create_task(self._revive(dead))
        await asyncio.shield(self._revival)

    async def _revive(self, dead: EngineDead) -> None:
        async with self._swap:
            if self._closed or not self.engine.dead:  # somebody else saw to it
                return
            await self.line.shut()
            try:
                await self._restart(dead)
            finally:
                self.line.reopen()

    async def _restart(self, dead: EngineDead) -> None:
        self._deaths = 0 if self._settled >= SETTLED else self._deaths
        if self._deaths >= self.restarts:
            raise PolicyFault(f"{self.name}: {dead}; it was started again {self._deaths} times, no more") from dead
        self._deaths, self._settled = self._deaths + 1, 0
        log.warning("%s: %s; starting it again", self.name, dead)
        try:
            await self.engine.restart()
        except PolicyFault:
            raise
        except TreewrightError as error:
            raise PolicyFault(f"{self.name}: {dead}, and it could not be started again: {error}") from error
        self.stats.restarts += 1

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._revival is not None:
                await asyncio.gather(self._revival, return_exceptions=True)
            await self.engine.close()
