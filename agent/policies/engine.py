"""A policy on an inference engine in this program: token ids in, token ids and log-probs out.

What an engine must do is `Engine`: one draw at a time, weights exchanged, memory given back. What every engine needs
is here once: prompts, the line of waiting draws, deadlines, versions, counters. `clients/vllm_engine.py` is vLLM's.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from treewright.agent.policies.actions import cached_grammar
from treewright.agent.policies.line import PrefixLine
from treewright.agent.policies.policy import PolicyStats
from treewright.agent.policies.prompts import Template
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, Task, ToolSpec
from treewright.search.types import Completion, Context, Exchange, PolicyFault

__all__ = [
    "Ask",
    "Engine",
    "EngineDead",
    "EnginePolicy",
    "Told",
    "ToolContext",
    "folder_version",
    "served_folder",
    "together",
    "weights_in",
    "with_tools",
]


log = logging.getLogger("treewright.agent")
OPTIMIZER = "optimizer.safetensors"  # what a checkpoint holds beside the weights
SETTLED = 256  # draws after which an engine that was started again counts as well


class EngineDead(PolicyFault):
    """The engine's process is gone, and with it the draws that were under way."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One draw. temperature 0 is greedy; grammar is a Lark grammar in llguidance's dialect, or None."""

    ids: tuple[int, ...]
    seed: int
    max_tokens: int
    temperature: float
    stop_ids: tuple[int, ...]
    grammar: str | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """[T] sampled ids with the stop id, and their natural log-probs under the distribution they were sampled from.

    finish  'stop' or 'length';  cached  prompt tokens whose keys and values were taken from the engine's cache
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str
    cached: int = 0


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


def folder_version(folder: str | Path) -> str:
    """32 hex digits that name the weights in a folder; the name itself for a model that is not a folder."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        return str(folder)
    h = hashlib.blake2b(digest_size=16)
    for file in files:
        if file.name == OPTIMIZER:
            continue
        with file.open("rb") as opened:
            while block := opened.read(1 << 22):
                h.update(block)
    return h.hexdigest()


def served_folder(folder: str | Path) -> str:
    """A folder that vLLM can load: it reads every safetensors file that it finds, the optimizer's too.

    The folder itself where it holds weights alone; else its subfolder `served`, with links to all but the optimizer.
    """
    path = Path(folder)
    if not (path / OPTIMIZER).exists():
        return str(folder)
    made = path / "served"
    made.mkdir(exist_ok=True)
    for file in path.iterdir():
        link = made / file.name
        if file.is_file() and file.name != OPTIMIZER and not link.exists():
            link.symlink_to(Path("..") / file.name)
    return str(made)


def weights_in(folder: str | Path) -> str:
    """The version of the weights in a folder. Raises TreewrightError where there are none."""
    if not any(Path(folder).glob("*.safetensors")):
        raise TreewrightError(f"cannot load weights from {str(folder)!r}: it holds no *.safetensors")
    return folder_version(folder)


class EnginePolicy:
    """Draws from `engine`; prompts are built with the model's own tokenizer and nothing is tokenised twice.

    concurrency  draws under way at once; the rest waits here, in the order of `order` (see PrefixLine), so that the
                 engine is never flooded and its prefix cache stays warm
    deadline     seconds for one draw() with its waiting; then the draws are cancelled and it is a PolicyFault
    restarts     times that an engine that died is started again with the weights it had; counted anew after SETTLED
                 draws. The draws that died with it are made once more, with their seeds; beyond that they are faults
    grammar      True: every draw is an action of the node's tools, see clients/actions.py
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
    ) -> None:
        if temperature < 0:
            raise TreewrightError(f"temperature = {temperature} is negative; give 0 for greedy, 1 to sample")
        self.engine, self.template, self.name = engine, template, name
        self.temperature, self.deadline = float(temperature), deadline
        self.grammar, self.masked_exact = grammar, masked_exact
        self.stop_ids = tuple(sorted(template.stop_ids | set(stop_ids)))
        self.line = PrefixLine(concurrency, order)
        self.stats = PolicyStats()
        self._version, self._busy, self._since = version, 0, 0.0
        self._closed = self._asleep = False
        self.restarts = restarts
        self._swap = asyncio.Lock()  # held while weights are exchanged, memory is given back or the engine restarts
        self._deaths = self._settled = 0
        self._revival: asyncio.Task[None] | None = None

    @property
    def version(self) -> str:
        return self._version

    @property
    def sampling(self) -> dict[str, Any]:
        """What differs from plain sampling at temperature 1; kept in the header of every tree."""
        out: dict[str, Any] = {} if self.temperature == 1.0 else {"temperature": self.temperature}
        return out | ({"grammar": "actions of the node's tools"} if self.grammar else {})

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
        grammar = cached_grammar(getattr(context, "tools", ())) if self.grammar else None
        asks = [Ask(context.ids, s, max_tokens, self.temperature, self.stop_ids, grammar) for s in seeds]
        try:
            async with asyncio.timeout(self.deadline):
                return await together([self._one(ask) for ask in asks])
        except TimeoutError as error:
            self.stats.faults += 1
            raise PolicyFault(f"{self.name}: no answer within {self.deadline:g} s") from error
        except PolicyFault:
            self.stats.faults += 1
            raise

    async def _one(self, ask: Ask) -> Completion:
        try:
            return await self._drawn(ask)
        except EngineDead as dead:
            await self._revived(dead)
            self.stats.retries += 1
            return await self._drawn(ask)

    async def _drawn(self, ask: Ask) -> Completion:
        async with self.line.place(ask.ids):
            if not self._busy:
                self._since = time.monotonic()
            self._busy += 1
            try:
                told = await self.engine.generate(ask)
            finally:
                self._busy -= 1
                if not self._busy:
                    self.stats.seconds += time.monotonic() - self._since
            return self._completion(ask, told)

    def _completion(self, ask: Ask, told: Told) -> Completion:
        if not told.ids or len(told.ids) != len(told.logprobs):
            raise PolicyFault(f"{self.name} gave {len(told.ids)} token ids with {len(told.logprobs)} log-probs")
        self._settled += 1
        self.stats.requests += 1
        self.stats.draws += 1
        self.stats.sampled_tokens += len(told.ids)
        self.stats.cached_tokens += told.cached
        self.stats.prompt_tokens += len(ask.ids) - told.cached
        stopped = told.ids[-1] in self.stop_ids
        return Completion(
            self.template.encoder.text(told.ids[:-1] if stopped else told.ids),
            told.ids,
            told.logprobs,
            told.finish,
            self._version,
            trainable=self.temperature == 1.0 and (ask.grammar is None or self.masked_exact),
            temperature=self.temperature,
        )

    # -- weights and memory -----------------------------------------------------------------------------------------

    async def load_weights(self, path: str | Path, version: str = "") -> str:
        """Takes the weights of a folder once the draws under way are done; returns the new version."""
        name = version or await asyncio.to_thread(weights_in, path)
        folder = await asyncio.to_thread(served_folder, path)
        async with self._exchange():
            await self._surely(lambda: self.engine.load_weights(folder))
            self._version = name
        return name

    async def load_state(self, state: Mapping[str, Any], version: str) -> str:
        """Takes tensors by name (as in a `state_dict`) without a detour over files."""
        async with self._exchange():
            await self._surely(lambda: self.engine.load_state(state))
            self._version = version
        return version

    async def load_adapter(self, path: str | Path, version: str = "") -> str:
        """Draws from now on with the LoRA adapter in a `peft` folder; returns the new version."""
        name = version or f"{self._version.partition('+')[0]}+{await asyncio.to_thread(weights_in, path)}"
        async with self._exchange():
            await self._surely(lambda: self.engine.load_adapter(str(path)))
            self._version = name
        return name

    @asynccontextmanager
    async def _exchange(self) -> AsyncIterator[None]:
        """Nobody draws meanwhile; a model that sleeps is woken, and who waited for that draws with the new weights."""
        async with self._swap:
            if self._asleep:
                await self._surely(self.engine.wake)
                self._asleep = False
            else:
                await self.line.shut()
            try:
                yield
            finally:
                self.line.reopen()

    async def sleep(self) -> bool:
        """Gives the accelerator to the trainer; draws wait until `wake`. False where there is nothing to give."""
        async with self._swap:
            await self.line.shut()
            try:
                self._asleep = await self._surely(self.engine.sleep)
            finally:
                if not self._asleep:
                    self.line.reopen()
            return self._asleep

    async def wake(self) -> None:
        """The end of `sleep`; does nothing where that did nothing."""
        async with self._swap:
            if self._asleep:
                await self._surely(self.engine.wake)
                self._asleep = False
                self.line.reopen()

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


@dataclass(frozen=True, slots=True)
class ToolContext(Context):
    """A context that remembers which tools there are: for grammars, and for servers that take schemas."""

    tools: tuple[ToolSpec, ...] = ()


def with_tools(context: Context, tools: Sequence[ToolSpec]) -> ToolContext:
    return ToolContext(context.keep, context.delta, context.ids, context.messages, tuple(tools))


async def together(coroutines: Sequence[Any]) -> list[Any]:
    """Results in order; the first failure cancels the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(c) for c in coroutines]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
