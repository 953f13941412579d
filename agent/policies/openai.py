"""Policies behind a server: any OpenAI-compatible chat endpoint, and vLLM's with token ids in and out.

A chat server takes messages and hides its tokens: such draws act, but are not trained on. vLLM's /v1/completions takes
the prompt as token ids and returns the sampled ids with their log-probabilities: such draws are as exact as local
ones. Both retry what may pass (429, 5xx, time-outs, broken or malformed answers) with jitter until their deadline; then
the draw is a PolicyFault.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel, ValidationError

from treewright.agent.policies.actions import action_schema, cached_grammar, repair_action
from treewright.agent.policies.engine import ToolContext, served_folder, together, weights_in, with_tools
from treewright.agent.policies.line import PrefixLine
from treewright.agent.policies.policy import PolicyStats
from treewright.agent.policies.prompts import Template, chat_messages, message_json, native_text, template_for
from treewright.envs.errors import InvalidAction, TreewrightError
from treewright.envs.types import Observation, Task, ToolSpec
from treewright.search.screen import parse_action
from treewright.search.types import Completion, Context, Exchange, Message, PolicyFault

__all__ = ["OpenAIPolicy", "VLLMPolicy"]

log = logging.getLogger(__name__)

PASSING = frozenset({408, 409, 425, 429})
LONGEST_WAIT = 20.0


class _Details(BaseModel):
    cached_tokens: int | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Function(BaseModel):
    name: str
    arguments: str = "{}"


class _ToolCall(BaseModel):
    function: _Function


class _Said(BaseModel):
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Alternative(BaseModel):
    token: str
    logprob: float


class _TokenLogprob(BaseModel):
    logprob: float
    top_logprobs: list[_Alternative] | None = None


class _Logprobs(BaseModel):
    content: list[_TokenLogprob] | None = None
    token_logprobs: list[float] | None = None


class _Choice(BaseModel):
    message: _Said | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None


class _Reply(BaseModel):
    choices: list[_Choice]
    usage: _Usage | None = None


@dataclass(slots=True)
class _Effort:
    """What one draw() may still try: until when, and what went wrong last."""

    until: float
    attempts: int = 0
    trouble: str = "the server was silent"


class _Malformed(Exception):
    """The server answered 200 with something that is not an answer."""


class OpenAIPolicy:
    """A model behind `base_url`/chat/completions. Draws are never trainable: the prompt's token ids stay hidden.

    tools_as       'text' lists the tools in the system message; 'schema' sends them as tool schemas too
    together       True asks for all drafts of a node in one request (`n`, seeded by the first seed); False sends one
                   request for each seed, so that a seed gives the same draw wherever the server honours seeds
    window         how many of the newest observations are sent in full; None for all
    concurrency    requests under way at once; the rest waits in the order of `order`, see PrefixLine
    deadline       seconds for one draw(), retries and waiting in line included; attempt_timeout for one request
    api_key_env    environment variable that holds the key; no header is sent when it is not set
    price_in, price_out  money for a million tokens of prompt and of answer; a search with a money budget reserves the
                   most that a draw can cost before it asks, and counts what the server reports
    longest_prompt tokens; longer prompts are refused, which bounds that reserve. Where a prompt is text, its bytes
                   count: a token has at least one
    grammar        asks the server to hold the answer to a JSON schema of the tools (response_format)
    images         the model sees pictures: those of observations are sent as image parts
    repair         reads an action out of answers that are none; such draws act, like all of these
    extra          further fields of the request body, e.g. {"top_p": 1}
    """

    path = "chat/completions"

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        name: str | None = None,
        version: str | None = None,
        temperature: float = 1.0,
        tools_as: str = "text",
        together: bool = True,
        window: int | None = None,
        logprobs: bool = True,
        concurrency: int = 16,
        order: str = "prefix",
        deadline: float = 120.0,
        attempt_timeout: float = 60.0,
        backoff: float = 0.5,
        api_key_env: str = "OPENAI_API_KEY",
        max_tokens_field: str = "max_tokens",
        price_in: float = 0.0,
        price_out: float = 0.0,
        longest_prompt: int = 32_768,
        grammar: bool = False,
        repair: bool = False,
        images: bool = False,
        extra: dict[str, Any] | None = None,
    ) -> None:
        if tools_as not in ("text", "schema"):
            raise TreewrightError(f"tools_as = {tools_as!r} is not known; write 'text' or 'schema'")
        self.model, self.base_url = model, httpx.URL(base_url.rstrip("/") + "/")
        self.name = name or f"openai:{model}"
        self.temperature, self.tools_as, self.together = temperature, tools_as, together
        self.window, self.logprobs = window, logprobs
        self.concurrency, self.deadline, self.attempt_timeout = concurrency, deadline, attempt_timeout
        self.backoff, self.max_tokens_field, self.extra = backoff, max_tokens_field, dict(extra or {})
        self.price_in, self.price_out, self.longest_prompt = price_in, price_out, longest_prompt
        self.api_key_env, self.grammar, self.repair, self.images = api_key_env, grammar, repair, images
        self.stats = PolicyStats()
        self._version = version or f"{model}@{self.base_url.host}"
        self._jitter = random.Random()
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.line = PrefixLine(concurrency, order)
        self._told: set[str] = set()
        self._busy, self._since = 0, 0.0

    @property
    def version(self) -> str:
        return self._version

    @property
    def sampling(self) -> dict[str, Any]:
        """What differs from plain sampling at temperature 1; kept in the header of every tree."""
        out: dict[str, Any] = {} if self.temperature == 1.0 else {"temperature": self.temperature}
        if self.grammar:
            out["grammar"] = "actions of the node's tools"
        return out | ({"extra": self.extra} if self.extra else {})

    def dearest(self, max_tokens: int) -> float:
        """The most money that one draw can cost."""
        return (self.longest_prompt * self.price_in + max_tokens * self.price_out) / 1e6

    # -- prompts ----------------------------------------------------------------------------------------------------

    def context(
        self,
        task: Task,
        tools: Sequence[ToolSpec],
        first: Observation,
        turns: Sequence[Exchange],
        base: Sequence[int],
    ) -> Context:
        """The conversation as messages; no token ids."""
        messages = chat_messages(task, tools, first, turns, self.window, self.images)
        if self.tools_as == "schema":
            messages = (Message("system", native_text("")), *messages[1:])
        return with_tools(Context(0, (), (), messages), tools)

    def _body(self, context: Context, max_tokens: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": _native(context.messages)
            if self.tools_as == "schema"
            else [message_json(m) for m in context.messages],
            self.max_tokens_field: max_tokens,
            "temperature": self.temperature,
        }
        if self.logprobs:
            body["logprobs"] = True
        if self.tools_as == "schema" and isinstance(context, ToolContext) and context.tools:
            body["tools"] = [tool.to_openai() for tool in context.tools]
        if self.grammar and isinstance(context, ToolContext):
            schema = {"name": "action", "schema": action_schema(context.tools), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body | self.extra

    # -- draws ------------------------------------------------------------------------------------------------------

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        """One completion for each seed. Raises PolicyFault when the server gives none before the deadline."""
        if max_tokens < 1:
            raise TreewrightError(f"a draw needs max_tokens >= 1, not {max_tokens}")
        effort = _Effort(time.monotonic() + self.deadline)
        body = self._body(context, max_tokens)
        size = len(context.ids) or len(json.dumps(body, ensure_ascii=False).encode())
        if size > self.longest_prompt:
            raise PolicyFault(
                f"{self.name}: a prompt of {size} {'tokens' if context.ids else 'bytes'} is longer than longest_prompt "
                f"= {self.longest_prompt}; raise that, or set window=N to shorten prompts"
            )
        try:
            async with asyncio.timeout(self.deadline):
                if self.together:
                    done = await self._batch(body, seeds, effort)
                else:
                    tasks = [self._batch(body, [seed], effort) for seed in seeds]
                    done = [one for [one] in await together(tasks)]
                return [self._mended(one, context) for one in done]
        except TimeoutError as error:
            self.stats.faults += 1
            raise PolicyFault(f"{self.name}: no answer within {self.deadline:g} s; last: {effort.trouble}") from error
        except PolicyFault:
            self.stats.faults += 1
            raise

    async def _batch(self, body: dict[str, Any], seeds: Sequence[int], effort: _Effort) -> list[Completion]:
        """Drafts for `seeds` in as few requests as the server allows: some give fewer than `n`."""
        done: list[Completion] = []
        while len(done) < len(seeds):
            left = len(seeds) - len(done)
            asked = {**body, "seed": seeds[len(done)]} | ({"n": left} if left > 1 else {})
            if not self.logprobs:
                asked.pop("logprobs", None)
            reply = await self._ask(asked, effort)
            done += self._counted([self._completion(choice) for choice in reply.choices[:left]], reply, body)
        return done

    def _counted(self, done: list[Completion], reply: _Reply, body: dict[str, Any]) -> list[Completion]:
        """The drafts with their share of what the server counted; of the most they can have cost if it did not."""
        usage, most = reply.usage or _Usage(), int(body.get(self.max_tokens_field) or body.get("max_tokens") or 0)
        sampled = [len(c.token_ids) for c in done]
        if not all(sampled):
            whole = usage.completion_tokens if usage.completion_tokens is not None else most * len(reply.choices)
            each, rest = divmod(whole * len(done) // len(reply.choices), len(done))
            sampled = [each + (i < rest) for i in range(len(done))]
        read = usage.prompt_tokens if usage.prompt_tokens is not None else self.longest_prompt
        shares = [read if i == 0 else 0 for i in range(len(done))]
        return [
            replace(c, hidden=0 if c.token_ids else n, money=(p * self.price_in + n * self.price_out) / 1e6)
            for c, n, p in zip(done, sampled, shares, strict=True)
        ]

    def _completion(self, choice: _Choice) -> Completion:
        self._tell("hidden", f"{self.name} does not show its prompts as token ids; its draws are not trained on")
        said = choice.message or _Said(content=choice.text)
        calls = [
            f'<tool_call>{{"name": {json.dumps(c.function.name)}, "arguments": {c.function.arguments}}}</tool_call>'
            for c in said.tool_calls or ()
        ]
        logprobs = tuple(t.logprob for t in choice.logprobs.content or ()) if choice.logprobs else ()
        return Completion(
            "\n".join(filter(None, [said.content, *calls])),
            tuple(choice.token_ids or ()),
            logprobs,
            choice.finish_reason or "stop",
            self._version,
            trainable=False,
            temperature=self.temperature,
        )

    def _mended(self, done: Completion, context: Context) -> Completion:
        if not self.repair or done.trainable:
            return done
        return replace(done, text=repair_action(done.text, getattr(context, "tools", ())))

    # -- judging ----------------------------------------------------------------------------------------------------

    async def first_tokens(self, prompts: Sequence[str]) -> list[dict[str, float]]:
        """For each prompt, as a user's message, the likeliest first tokens of the answer and their log-probs.

        Raises PolicyFault where the server gives no alternatives.
        """
        return await together([self._first_tokens(prompt) for prompt in prompts])

    async def _first_tokens(self, prompt: str) -> dict[str, float]:
        body = self._message(prompt, 1) | {"logprobs": True, "top_logprobs": 20, "temperature": 0}
        reply = await self._ask(body, _Effort(time.monotonic() + self.deadline))
        logprobs = reply.choices[0].logprobs
        if logprobs is None or not logprobs.content or not logprobs.content[0].top_logprobs:
            raise PolicyFault(f"{self.name} gives no log-probs of alternatives (top_logprobs); it cannot judge")
        return {found.token: found.logprob for found in logprobs.content[0].top_logprobs}

    async def write(self, prompt: str, seed: int, max_tokens: int) -> str:
        """One answer to a user's message."""
        body = self._message(prompt, max_tokens) | {"seed": seed}
        reply = await self._ask(body, _Effort(time.monotonic() + self.deadline))
        said = reply.choices[0].message
        return (said.content or "") if said is not None else ""

    def _message(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        said = [{"role": "user", "content": prompt}]
        return {"model": self.model, "messages": said, self.max_tokens_field: max_tokens}

    def _tell(self, what: str, line: str) -> None:
        """Warns once for each `what`."""
        if what not in self._told:
            self._told.add(what)
            log.warning(line)

    # -- the wire ---------------------------------------------------------------------------------------------------

    async def _ask(self, body: dict[str, Any], effort: _Effort) -> _Reply:
        """One request, repeated while it may still succeed."""
        for attempt in itertools.count():
            reply, wait = await self._once(body, effort)
            if reply is not None:
                return reply
            effort.attempts += 1
            wait = max(wait, min(LONGEST_WAIT, self.backoff * 2**attempt) * self._jitter.uniform(0.5, 1.0))
            if time.monotonic() + wait >= effort.until:
                break
            self.stats.retries += 1
            log.info("%s: %s; trying again in %.1f s", self.name, effort.trouble, wait)
            await asyncio.sleep(wait)
        raise PolicyFault(f"{self.name}: given up after {effort.attempts} attempts; last: {effort.trouble}")

    async def _once(self, body: dict[str, Any], effort: _Effort) -> tuple[_Reply | None, float]:
        """The answer, or None and the seconds that the server wants to be left alone.

        Raises PolicyFault for a refusal that would be repeated.
        """
        try:
            response = await self._post(body)
            if response.status_code == 200:
                return self._reply(response), 0.0
            effort.trouble = self._explain(response)
        except httpx.RequestError as error:
            effort.trouble = f"{type(error).__name__}: {error}"
            return None, 0.0
        except _Malformed as error:
            effort.trouble = f"malformed answer: {error}"
            return None, 0.0
        if response.status_code == 400 and "logprobs" in effort.trouble and "logprobs" in body:
            del body["logprobs"]
            self.logprobs = False
            self._tell("logprobs", f"{self.name} gives no log-probs; asking without them")
        elif response.status_code not in PASSING and response.status_code < 500:
            raise PolicyFault(f"{self.name}: {effort.trouble}")
        return None, _seconds(response.headers.get("retry-after"))

    async def _post(self, body: dict[str, Any]) -> httpx.Response:
        client = self._session()
        headers = self._headers()
        async with self.line.place(body.get("prompt", ())):
            if not self._busy:
                self._since = time.monotonic()
            self._busy += 1
            try:
                self.stats.requests += 1
                path = OpenAIPolicy.path if "messages" in body else self.path
                return await client.post(path, json=body, headers=headers)
            except httpx.InvalidURL as error:
                raise TreewrightError(f"{self.name}: {error}") from error
            finally:
                self._busy -= 1
                if not self._busy:
                    self.stats.seconds += time.monotonic() - self._since

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(self.api_key_env)
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _session(self) -> httpx.AsyncClient:
        """The client of this event loop; connections do not outlive the loop they were made in."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            local = self.base_url.host in ("localhost", "127.0.0.1", "::1")
            self._client = httpx.AsyncClient(
                base_url=self.base_url,
                timeout=httpx.Timeout(self.attempt_timeout, pool=None),
                limits=httpx.Limits(max_connections=self.concurrency),
                trust_env=not local,
            )
            if self._loop not in (None, loop):
                self._busy, self.line = 0, PrefixLine(self.concurrency, self.line.order)
            self._loop = loop
        return self._client

    def _reply(self, response: httpx.Response) -> _Reply:
        try:
            reply = _Reply.model_validate_json(response.content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise _Malformed(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        if not reply.choices:
            raise _Malformed("no choices")
        usage = reply.usage or _Usage()
        details = usage.prompt_tokens_details or _Details()
        ids = sum(len(choice.token_ids or ()) for choice in reply.choices)
        self.stats.draws += len(reply.choices)
        self.stats.cached_tokens += details.cached_tokens or 0
        self.stats.prompt_tokens += max(0, (usage.prompt_tokens or 0) - (details.cached_tokens or 0))
        self.stats.sampled_tokens += usage.completion_tokens or ids
        return reply

    def _explain(self, response: httpx.Response) -> str:
        """Status and the beginning of the server's message, the key blotted out wherever it is quoted."""
        text = response.text[:400]
        if key := os.environ.get(self.api_key_env):
            text = text.replace(key, "***")
        hint = f"; set {self.api_key_env}" if response.status_code in (401, 403) else ""
        return f"HTTP {response.status_code}: {text}{hint}"

    async def close(self) -> None:
        if self._client is not None and self._loop is asyncio.get_running_loop():
            await self._client.aclose()
        self._client = None


class VLLMPolicy(OpenAIPolicy):
    """vLLM's OpenAI server at `base_url`/completions: prompts as token ids, sampled ids and log-probs back.

    Prompts are built here with the model's own tokenizer, so nothing is tokenised twice. Sampling parameters that a
    server would take from the model's generation settings are sent as neutral. `tokenizer` is a folder or name for
    transformers, or a tokenizer; None takes the model's name. Draws are trainable at temperature 1.
    With `grammar` every draw is an action of the node's tools; masked_exact says that the server was started with
    --logprobs-mode processed_logprobs, so that such draws have exact log-probs and may be trained on.
    With `colocated` the server sleeps while the trainer works. `extended` is for servers started with
    --worker-extension-cls treewright.agent.policies.vllm_engine.WeightTaker, as vllm_server does: on a CPU, a model
    with tied embeddings takes new weights rightly only so.
    """

    path = "completions"

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        tokenizer: Any = None,
        template: Template | None = None,
        template_options: dict[str, Any] | None = None,
        masked_exact: bool = False,
        colocated: bool = False,
        extended: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, base_url, **{"name": f"vllm:{model}", "together": False, **options})
        self.masked_exact = masked_exact
        self.colocated, self.extended, self._asleep = colocated, extended, False
        if isinstance(tokenizer, str) or tokenizer is None:
            tokenizer = _tokenizer(tokenizer or model)
        self.template = template or template_for(tokenizer, self.window, **(template_options or {}))

    # -- weights and memory: needs a server started with VLLM_SERVER_DEV_MODE=1 ---------------------------------------

    async def load_weights(self, path: str | Path, version: str = "") -> str:
        """Makes the server take the weights of a folder that it can read; returns the new version.

        Waits for the requests under way; those that wait get the new weights. Raises TreewrightError where the server
        refuses: the weights it then has are unknown, so nothing should be drawn.
        """
        name = version or await asyncio.to_thread(weights_in, path)
        folder = await asyncio.to_thread(lambda: served_folder(Path(path).resolve()))
        async with self._exchange():
            order = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
            if self.extended:
                order = {"method": "take_folder", "kwargs": {"folder": folder}}
            await self._control("collective_rpc", order)
            await self._control("reset_prefix_cache")
            self._version = name
        return name

    async def load_adapter(self, path: str | Path, version: str = "") -> str:
        """Makes the server take a LoRA adapter and draws with it from now on; returns the new version.

        The server must be started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1.
        """
        mark = version or await asyncio.to_thread(weights_in, path)
        folder = str(await asyncio.to_thread(Path(path).resolve))
        async with self._exchange():
            await self._control("v1/load_lora_adapter", {"lora_name": mark, "lora_path": folder})
            self.model, self._version = mark, f"{self._version.partition('+')[0]}+{mark}"
        return self._version

    @asynccontextmanager
    async def _exchange(self) -> AsyncIterator[None]:
        """Nobody draws meanwhile; a server that sleeps is woken, and who waited for that draws with the new weights."""
        if self._asleep:
            await self._control("wake_up")
            self._asleep = False
        else:
            await self.line.shut()
        try:
            yield
        finally:
            self.line.reopen()

    async def sleep(self) -> bool:
        """Gives the accelerator back until `wake`, if the server shares it with the trainer (`colocated`)."""
        if not self.colocated:
            return False
        await self.line.shut()
        try:
            await self._control("sleep?level=1")
            self._asleep = True
        finally:
            if not self._asleep:
                self.line.reopen()
        return True

    async def wake(self) -> None:
        if self._asleep:
            await self._control("wake_up")
            self._asleep = False
            self.line.reopen()

    async def _control(self, path: str, body: dict[str, Any] | None = None) -> None:
        """One order to the server, at its root and not under /v1."""
        url = self.base_url.join("/" + path)
        try:
            reply = await self._session().post(url, json=body, headers=self._headers(), timeout=self.deadline)
        except httpx.RequestError as error:
            raise TreewrightError(f"{self.name}: {path} failed: {type(error).__name__}: {error}") from error
        if reply.status_code == 404:
            raise TreewrightError(
                f"{self.name}: the server does not know {path}; start it with VLLM_SERVER_DEV_MODE=1 "
                "(and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 for adapters)"
            )
        if reply.status_code != 200:
            raise TreewrightError(f"{self.name}: {path} failed: {self._explain(reply)}")

    # -- draws ------------------------------------------------------------------------------------------------------

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

    def _body(self, context: Context, max_tokens: int) -> dict[str, Any]:
        masked: dict[str, Any] = {}
        if self.grammar:
            masked["structured_outputs"] = {"grammar": cached_grammar(getattr(context, "tools", ()))}
        neutral = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
        return {
            "model": self.model,
            "prompt": list(context.ids),
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            "logprobs": 0,
            "return_token_ids": True,
            "stop_token_ids": sorted(self.template.stop_ids),
            "skip_special_tokens": False,
            **neutral,
            **masked,
            **self.extra,
        }

    def _completion(self, choice: _Choice) -> Completion:
        ids = tuple(choice.token_ids or ())
        if not ids:
            self._tell("ids", f"{self.name} returned no token ids (is it vLLM?); its draws are not trained on")
            return Completion(
                choice.text or "", (), (), choice.finish_reason or "stop", self._version, False,
                temperature=self.temperature,
            )  # fmt: skip
        logprobs = tuple((choice.logprobs.token_logprobs or ()) if choice.logprobs else ())
        stopped = ids[-1] in self.template.stop_ids
        return Completion(
            self.template.encoder.text(ids[:-1] if stopped else ids),
            ids,
            logprobs,
            choice.finish_reason or "stop",
            self._version,
            trainable=self.temperature == 1.0
            and bool(logprobs)
            and not self.extra
            and (self.masked_exact or not self.grammar),
            temperature=self.temperature,
        )

    def _reply(self, response: httpx.Response) -> _Reply:
        reply = super()._reply(response)
        for choice in reply.choices:
            ids, logprobs = choice.token_ids or [], (choice.logprobs or _Logprobs()).token_logprobs or []
            if ids and logprobs and len(ids) != len(logprobs):
                raise _Malformed(f"{len(ids)} token ids with {len(logprobs)} log-probs")
        return reply


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise TreewrightError(
            f"no tokenizer for {name!r}; pass tokenizer=FOLDER, the folder that the server was started with"
        ) from error


def _native(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages in which the assistant's calls are tool calls and what followed is their result."""
    out: list[dict[str, Any]] = []
    open_calls: list[str] = []
    for i, message in enumerate(messages):
        if message.role == "assistant":
            said, calls = _calls(message.content, i)
            out.append({"role": "assistant", "content": said, **({"tool_calls": calls} if calls else {})})
            open_calls = [call["id"] for call in calls]
        elif open_calls:
            shown = [message.content, *["(shown with the first call of this turn)"] * (len(open_calls) - 1)]
            out += [
                {"role": "tool", "tool_call_id": name, "content": text}
                for name, text in zip(open_calls, shown, strict=True)
            ]
            open_calls = []
            if message.images:  # servers take none in the result of a tool
                out.append(message_json(replace(message, content="(what it showed)")))
        else:
            out.append(message_json(message))
    return out


def _calls(text: str, turn: int) -> tuple[str, list[dict[str, Any]]]:
    """What was said before the calls, and the calls; no calls where the text is no action."""
    try:
        action = parse_action(text)
    except InvalidAction:
        return text, []
    calls = [
        {
            "id": f"call_{turn}_{i}",
            "type": "function",
            "function": {"name": c.name, "arguments": json.dumps(dict(c.arguments), ensure_ascii=False)},
        }
        for i, c in enumerate(action.calls)
    ]
    return text.partition("<tool_call>")[0].strip() if "<tool_call>" in text else "", calls


def _seconds(retry_after: str | None) -> float:
    """Seconds of a Retry-After header; dates and nonsense count as 0."""
    try:
        return min(max(float(retry_after or 0), 0.0), 3600.0)
    except ValueError:
        return 0.0
