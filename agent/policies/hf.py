"""Any transformers causal language model as a policy, on CPU or GPU, in this process.

Requests that wait when the worker gets to run are drawn in one batch; the model runs in a thread of its own, so the
event loop goes on. What is computed for a prompt is shared by its draws and kept for the prompts that continue it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from treewright.agent.policies.batches import Waiting, all_have_asked, fitting
from treewright.agent.policies.light import LightModel, LightTokenizer, is_light
from treewright.agent.policies.policy import PolicyStats
from treewright.agent.policies.prefixes import PrefixCache
from treewright.agent.policies.prompts import Template, Window, template_for
from treewright.agent.policies.reading import read, read_all
from treewright.agent.policies.room import batch_tokens, tidy
from treewright.agent.policies.runners import runner_for
from treewright.agent.policies.sampling import Cut, Drawn, Request, generate
from treewright.agent.policies.weights import folder_version
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, Task, ToolSpec
from treewright.search.segments import Segments, ended
from treewright.search.types import SEGMENT, Completion, Context, Exchange, PolicyFault
from treewright.training.flops import work_of_config
from treewright.training.lora import load_model
from treewright.training.manifest import is_adapter_folder
from treewright.training.versions import weights_version

__all__ = ["HFPolicy", "weights_version"]

Result = TypeVar("Result")
SMALL = 20_000_000  # parameters up to which one CPU thread beats several


class HFPolicy:
    """Draws from `model`, a transformers causal language model in eval mode.

    window            how many of the newest observations a prompt shows: a number, or one by suite; None: template's
    temperature       1 for training; 0 (greedy) and others act but are marked untrainable
    batch_requests    False runs each request alone: its draws then do not depend, even in the last bit, on who else
                      asks; True is faster, and draws differ only where a random number falls within the rounding of
                      the distribution's edges. A batch begins when nobody in this process is about to ask, so that it
                      holds the same requests in every run of worlds that answer within it, however busy the machine;
                      of worlds in other processes it holds those that have answered
    max_batch_tokens  prompt and new tokens of all rows that run together; None: see `room.batch_tokens`
    cache_bytes       for the keys and values of earlier prompts; 0 turns reuse between batches off, as does
                      batch_requests=False
    threads           CPU threads of the worker; None: 1 for small models, else torch's default
    shared            the model belongs to a trainer that changes it in place: there is no other copy of the weights,
                      and what `load_weights` is given is in the model already
    """

    tempers = True
    """Draws at the temperature of a prompt have exact log-probs of the policy at that temperature."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str = "hf",
        version: str | None = None,
        template: Template | str | None = None,
        window: Window = None,
        temperature: float = 1.0,
        batch_requests: bool = True,
        max_batch_tokens: int | None = None,
        cache_bytes: int = 256 << 20,
        threads: int | None = None,
        template_options: dict[str, Any] | None = None,
        shared: bool = False,
    ) -> None:
        if temperature < 0:
            raise TreewrightError(f"temperature = {temperature} is negative; give 0 for greedy, 1 to sample")
        self._model, self.tokenizer, self.name = model, tokenizer, name
        if not shared:  # a trainer's layers that run again in the backward pass are in training mode
            model.eval()
        self.base: str | None = None
        self.template = template_for(tokenizer, window, template, **(template_options or {}))
        self.runner = runner_for(model)
        self.temperature, self.batch_requests = float(temperature), batch_requests
        self.max_batch_tokens = max_batch_tokens or batch_tokens(model, self.runner.device.type == "cpu")
        self.stats, self.work = PolicyStats(), work_of_config(model.config)
        self._folder = ""
        self._version = version or weights_version(model)
        self._cache = PrefixCache(cache_bytes if batch_requests else 0)
        ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        also = [ends] if isinstance(ends, int) else list(ends or ())
        self.stop_ids = sorted(self.template.stop_ids | set(also))
        self.longest = int(getattr(model.config, "max_position_embeddings", None) or 1 << 30)
        if threads is None and self.runner.device.type == "cpu" and model.num_parameters() <= SMALL:
            threads = 1
        self._executor = ThreadPoolExecutor(
            1, thread_name_prefix=f"policy-{name}", initializer=_use_threads, initargs=(threads,)
        )
        self.shared = shared
        self._lock = threading.Lock()
        self._awake = asyncio.Event()
        self._awake.set()
        self._waiting: list[Waiting] = []
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    def load(
        cls, path: str, *, device: str | None = None, dtype: str = "float32", base: str | None = None,
        model: Any = None, **options: Any,
    ) -> Self:  # fmt: skip
        """Opens a folder in `save_pretrained` layout, a model by name, or an adapter's folder, merged into its base.

        base   where the base of adapters lies, if not where they were trained
        model  a trainer's model, made of that folder, to draw from in place of a copy

        Raises TreewrightError if there is no such model, or no tokenizer beside it.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if cls is HFPolicy and model is None and is_light(path, dtype):
            light = LightModel.from_pretrained(path).to(device)
            made = cls(light, LightTokenizer(path), **{"name": f"hf:{path}", **options})
            made._folder, made.base = path, base
            return made
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
            options["shared"] = model is not None
            if model is None:
                model = load_model(path, getattr(torch, dtype), base).to(device)
        except (OSError, ValueError) as error:
            raise TreewrightError(
                f"cannot load a model from {path!r}: {_first_line(error)}; name its folder, or one of the hub"
            ) from error
        if not tokenizer.encode("a", add_special_tokens=False):
            # Without tokenizer files transformers makes up an empty one for some architectures.
            raise TreewrightError(f"{path!r} holds no tokenizer; save one beside the weights with save_pretrained")
        named = {"version": folder_version(path)} if is_adapter_folder(path) else {}
        made = cls(model, tokenizer, **{"name": f"hf:{path}", **named, **options})
        made.base = base
        return made

    @property
    def model(self) -> Any:
        """The transformers model; one that was opened without transformers is loaded now."""
        if isinstance(self._model, LightModel):
            from transformers import AutoModelForCausalLM

            whole = AutoModelForCausalLM.from_pretrained(self._folder, dtype=torch.float32).to(self._model.device)
            with self._lock:
                whole.load_state_dict(self._model.state_dict())
                self._model = whole.eval()
                self.runner = runner_for(whole)
        return self._model

    @property
    def version(self) -> str:
        return self._version

    @property
    def sampling(self) -> dict[str, Any]:
        """What differs from plain sampling at temperature 1; kept in the header of every tree."""
        return {} if self.temperature == 1.0 else {"temperature": self.temperature}

    def context(
        self,
        task: Task,
        tools: Sequence[ToolSpec],
        first: Observation,
        turns: Sequence[Exchange],
        base: Sequence[int],
    ) -> Context:
        return self.template.context(task, tools, first, turns, base)

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        """One completion for each seed. Raises PolicyFault for a prompt the model has no room for."""
        return await self._asked_for(context, seeds, max_tokens, None)

    def said(self, ids: Sequence[int]) -> str:
        """The text of a response's tokens."""
        ended = bool(ids) and ids[-1] in self.stop_ids
        return self.template.encoder.text(tuple(ids[:-1] if ended else ids))

    async def draw_segment(
        self, context: Context, seeds: Sequence[int], max_tokens: int, head: Sequence[int], segments: Segments | None
    ) -> list[Completion]:
        """Draws on from a response under way, up to where a segment ends; see `Segmenting`."""
        if type(self)._run is not HFPolicy._run:
            raise TreewrightError(
                f"{self.name} draws under a grammar or from drafts, which begin with a response; leave grammar and "
                "draft out of policy.options to use search.segments"
            )
        if segments is None:
            return await self._asked_for(context, seeds, max_tokens, None)
        over = (lambda ids: segments.over(self.said(ids))) if segments.watched else None
        cut = Cut(segments.least, segments.unsure, segments.threshold, over)
        asked = min(segments.length, max_tokens)
        drawn = await self._asked_for(context, seeds, asked, cut if segments.by != "length" else None)
        return [ended(done, asked, max_tokens) for done in drawn]

    async def _asked_for(
        self, context: Context, seeds: Sequence[int], max_tokens: int, cut: Cut | None
    ) -> list[Completion]:
        if self._closed:
            raise PolicyFault(f"policy {self.name} is closed")
        if max_tokens < 1 or not context.ids:
            raise TreewrightError(f"a draw needs a prompt and max_tokens >= 1, not {max_tokens}")
        if len(context.ids) + max_tokens > self.longest:
            raise PolicyFault(
                f"a prompt of {len(context.ids)} tokens and {max_tokens} new ones do not fit the {self.longest} "
                f"positions of {self.name}; set window=N to shorten prompts"
            )
        if not seeds:
            return []
        loop = asyncio.get_running_loop()
        request = self._request(context, tuple(seeds), max_tokens)
        waiting = Waiting(replace(request, cut=cut) if cut is not None else request, loop.create_future())
        self._waiting.append(waiting)
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._work())
        return await waiting.future

    async def entropies(self, contexts: Sequence[Sequence[int]]) -> list[float]:
        """Entropy in nats of the next token after each prompt. What is computed is kept for draws from the same one."""
        if self._closed:
            raise PolicyFault(f"policy {self.name} is closed")
        return await self._worked(self._entropies, [tuple(ids) for ids in contexts])

    async def _worked(self, job: Callable[..., Result], *given: Any) -> Result:
        """What the job gives, done in the worker's thread, once the policy is awake."""
        await self._awake.wait()
        return await asyncio.get_running_loop().run_in_executor(self._executor, job, *given)

    def _entropies(self, contexts: Sequence[tuple[int, ...]]) -> list[float]:
        with self._lock:
            try:
                with torch.inference_mode():
                    logps = [self._prefill(ids).float().log_softmax(-1) for ids in contexts]
            finally:
                self._cache.trim()
            return [float(-(p.exp() * p).sum()) for p in logps]

    @property
    def vocabulary(self) -> int:
        """How many tokens a draw chooses from."""
        return int(self._model.config.get_text_config().vocab_size)

    def _request(self, context: Context, seeds: tuple[int, ...], max_tokens: int) -> Request:
        return Request(context.ids, seeds, max_tokens, **self._heat(context))

    def _heat(self, context: Context) -> dict[str, Any]:
        """Temperature of a request: what the prompt asks for, else the policy's own."""
        asked = context.temperature
        return {"temperature": self.temperature if asked is None else asked, "tempered": asked is not None}

    async def _work(self) -> None:
        """Runs what waits, batch after batch, until nothing does."""
        while self._waiting:
            if self.batch_requests:
                await all_have_asked(self._waiting, self.max_batch_tokens, self.runner.shares)
            batch = self._batch()
            if not batch:
                continue
            try:
                done = await self._worked(self._run, [w.request for w in batch])
            except Exception as error:
                self.stats.faults += 1
                if isinstance(error, RuntimeError):
                    error = PolicyFault(f"{self.name}: {type(error).__name__}: {error}")
                for waiting in batch:
                    if not waiting.future.done():
                        waiting.future.set_exception(error)
                continue
            for waiting, completions in zip(batch, done, strict=True):
                if not waiting.future.done():
                    waiting.future.set_result(completions)

    def _batch(self) -> list[Waiting]:
        """Takes from the front of the queue what runs together; cancelled requests are dropped."""
        self._waiting = [w for w in self._waiting if not w.future.done()]
        taken = self._waiting if self.batch_requests else self._waiting[:1]
        batch = fitting(taken, self.max_batch_tokens, self.runner.shares)
        del self._waiting[: len(batch)]
        return batch

    def _run(self, requests: Sequence[Request]) -> list[list[Completion]]:
        # Neighbours in alphabetical order are neighbours in the tree of prompts: what they share is read once.
        order = sorted(range(len(requests)), key=lambda i: requests[i].ids)
        asked = [requests[i] for i in order]
        with self._lock:
            began = time.monotonic()
            try:
                drawn = self._drawn(asked)
            finally:
                self._cache.trim()
                tidy(self._model, sum(request.cost(self.runner.shares) for request in asked))
            self.stats.seconds += time.monotonic() - began
            self.stats.requests += len(requests)
            place = {i: draws for i, draws in zip(order, drawn, strict=True)}
            return [[self._completion(one, asked) for one in place[i]] for i, asked in enumerate(requests)]

    @torch.inference_mode()
    def _drawn(self, asked: Sequence[Request]) -> list[list[Drawn]]:
        logits = read_all(self.runner, self._cache, [request.ids for request in asked], self.stats)
        paths = [self._cache.path(request.ids) for request in asked]
        return generate(self.runner, asked, list(zip(paths, logits, strict=True)), self.stop_ids)

    def _prefill(self, ids: tuple[int, ...]) -> Tensor:
        """The logits after `ids`, whose keys and values the cache holds then."""
        return read(self.runner, self._cache, ids, self.stats)

    def _completion(self, drawn: Drawn, asked: Request) -> Completion:
        stopped = drawn.ids[-1] in self.stop_ids
        self.stats.draws += 1
        self.stats.sampled_tokens += len(drawn.ids)
        return Completion(
            self.template.encoder.text(drawn.ids[:-1] if stopped else drawn.ids),
            drawn.ids,
            drawn.logprobs,
            finish_reason=SEGMENT if drawn.cut else "stop" if stopped else "length",
            policy_version=self._version,
            trainable=asked.temperature == 1.0 or (asked.tempered and self.tempers),
            temperature=asked.temperature,
        )

    async def first_tokens(self, prompts: Sequence[str]) -> list[dict[str, float]]:
        """For each prompt, as a user's message, the likeliest first tokens of the answer and their log-probs."""
        return await self._worked(self._first_tokens, [self._asked(p) for p in prompts])

    def _first_tokens(self, prompts: Sequence[tuple[int, ...]]) -> list[dict[str, float]]:
        found = []
        with self._lock, torch.inference_mode():
            try:
                for ids in prompts:
                    best = self._prefill(ids).float().log_softmax(-1).topk(20)
                    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                    found.append({self.tokenizer.decode([i]): value for i, value in rows})
            finally:
                self._cache.trim()
        return found

    async def write(self, prompt: str, seed: int, max_tokens: int) -> str:
        """One answer to a user's message."""
        (done,) = await self.draw(Context(keep=0, delta=(), ids=self._asked(prompt)), [seed], max_tokens)
        return done.text

    def _asked(self, prompt: str) -> tuple[int, ...]:
        if getattr(self.tokenizer, "chat_template", None):
            said = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
            return tuple(self.tokenizer.encode(text, add_special_tokens=False))
        return tuple(self.tokenizer.encode(prompt))

    def load_weights(self, path: str | Path, version: str = "") -> str:
        """Takes the weights of a `save_pretrained` folder of the same shape, or an adapter's; returns the new version.

        Waits for the batch that runs; draws that wait get the new weights. A shared model has them already: only what
        was computed with the old ones is forgotten. Raises TreewrightError where the folder does not fit the model.
        """
        if self.shared:
            with self._lock:
                return self.refresh(version)
        try:
            if is_adapter_folder(path):
                state = load_model(path, self.model.dtype, self.base).state_dict()
                version = version or folder_version(path)
            else:
                model = self._model if is_light(path) else self.model
                state = type(model).from_pretrained(str(path), dtype=model.dtype).state_dict()
        except (OSError, ValueError) as error:
            raise TreewrightError(f"cannot load weights from '{path}': {_first_line(error)}; name another") from error
        with self._lock:
            try:
                self._model.load_state_dict(state)
            except RuntimeError as error:
                raise TreewrightError(f"the weights in {str(path)!r} do not fit {self.name}: {error}") from error
            return self.refresh(version)

    def refresh(self, version: str = "") -> str:
        """To be called after the model's tensors were changed in place; returns the new version."""
        self.runner.refresh()
        self._cache.clear()
        self._version = version or weights_version(self._model)
        self._awake.set()
        return self._version

    async def sleep(self) -> bool:
        """Frees the sampler's keys, values and copies of weights, behind the batch that runs; draws wait until `wake`,
        or until there are new weights."""
        self._awake.clear()
        await asyncio.get_running_loop().run_in_executor(self._executor, self._release)
        return True

    def _release(self) -> None:
        with self._lock:
            self.runner.release()
            self._cache.clear()

    async def wake(self) -> None:
        """Draws go on, with the weights as they are."""
        with self._lock:
            self.runner.refresh()
        self._awake.set()

    async def close(self) -> None:
        """Ends the worker after its batch; requests that wait fail."""
        self._closed = True
        self._awake.set()
        for waiting in self._waiting:
            if not waiting.future.done():
                waiting.future.set_exception(PolicyFault(f"policy {self.name} was closed"))
        self._waiting.clear()
        await asyncio.to_thread(self._executor.shutdown)
        self._cache.clear()


def _use_threads(count: int | None) -> None:
    if count is not None:
        torch.set_num_threads(count)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
