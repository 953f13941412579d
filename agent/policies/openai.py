"""Policies behind a server: any OpenAI-compatible chat endpoint. `vllm_client.py` is vLLM's, token ids in and out.

A chat server takes messages and hides its tokens: such draws act, but are not trained on. What a server does not take
is learnt from its refusals (`ways.py`) and said once. What may pass (429, 5xx, time-outs, broken, malformed or aborted
answers) is tried again with jitter until the deadline, which is told after two seconds; then the draw is a PolicyFault.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx

from treewright.agent.policies.actions import action_schema, repair_action
from treewright.agent.policies.answers import Choice, Malformed, Refused, Reply, Usage, read, refusal, whole
from treewright.agent.policies.pictures import message_json
from treewright.agent.policies.prompts import chat_messages, native_text
from treewright.agent.policies.served import ServedPolicy, ToolContext, amount, tools_of, with_tools
from treewright.agent.policies.transport import Outage, Transport, Untrusted, passing, retry_after
from treewright.agent.policies.ways import Ways
from treewright.envs.errors import InvalidAction, TreewrightError
from treewright.envs.types import Observation, Task, ToolSpec
from treewright.envs.waiting import together
from treewright.search.screen import parse_action
from treewright.search.types import Completion, Context, Exchange, Message, PolicyFault

__all__ = ["OpenAIPolicy"]

log = logging.getLogger(__name__)

LONGEST_WAIT = 20.0


@dataclass(slots=True)
class _Effort:
    """What one draw() may still try: until when, and what went wrong last."""

    until: float
    attempts: int = 0
    trouble: str = ""

    def last(self) -> str:
        return f"; last: {self.trouble}" if self.trouble else "; the server was silent"


class OpenAIPolicy(ServedPolicy):
    """A model behind `base_url`/chat/completions. Draws are never trainable: the prompt's token ids stay hidden.

    tools_as       'text' lists the tools in the system message; 'schema' sends them as tool schemas too
    together       True asks for all drafts of a node in one request (`n`, seeded by the first seed); False sends one
                   request for each seed, so that a seed gives the same draw wherever the server honours seeds
    window         how many of the newest observations are sent in full; None for all
    concurrency    requests under way at once; the rest waits in the order of `order`, see PrefixLine
    deadline       seconds for one draw() or question of a judge, retries and waiting in line included;
                   attempt_timeout for one request, its whole answer included
    api_key_env    environment variable that holds the key; no header is sent when it is not set. It goes into
                   `key_header`: Authorization as a bearer token, another one (api-key) as it is
    price_in, price_out  money for a million tokens of prompt and of answer; a search with a money budget reserves the
                   most that a draw can cost before it asks, and counts what the server reports
    longest_prompt tokens; longer prompts are refused, which bounds that reserve. Where a prompt is text, its bytes
                   count: a token has at least one
    grammar        asks the server to hold the answer to a JSON schema of the tools (response_format)
    images         the model sees pictures: those of observations are sent as image parts
    repair         reads an action out of answers that are none; such draws act, like all of these
    extra          further fields of the request body, e.g. {"top_p": 1}; sent as they are, whatever the server says
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
        key_header: str = "Authorization",
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
        self.model, self.name = model, name or f"openai:{model}"
        amount("attempt_timeout", attempt_timeout, above=0.0, hint="seconds for one request")
        amount("backoff", backoff, least=0.0, hint="seconds before the second attempt")
        self.wire = Transport(
            self.name, base_url, key_env=api_key_env, key_header=key_header, timeout=attempt_timeout,
            connections=concurrency,
        )  # fmt: skip
        super().__init__(
            name=self.name, version=version or f"{model}@{self.wire.base_url.host}", temperature=temperature,
            concurrency=concurrency, order=order, deadline=deadline, grammar=grammar,
        )  # fmt: skip
        self.tools_as, self.together, self.window, self.backoff = tools_as, together, window, backoff
        self.price_in, self.price_out, self.longest_prompt = price_in, price_out, longest_prompt
        self.logprobs, self.repair, self.images, self.extra = logprobs, repair, images, dict(extra or {})
        self.ways = Ways(limit=max_tokens_field, kept=frozenset(self.extra))
        self.outage = Outage()
        self._jitter = random.Random()
        self._told: set[str] = set()

    @property
    def sampling(self) -> dict[str, Any]:
        """What differs from plain sampling at temperature 1; kept in the header of every tree."""
        return super().sampling | ({"extra": self.extra} if self.extra else {})

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
        messages = tuple(Message(m.role, whole(m.content), m.images) for m in messages)
        return with_tools(Context(keep=0, delta=(), ids=(), messages=messages), tools)

    def _body(self, context: Context, max_tokens: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": _native(context.messages)
            if self.tools_as == "schema"
            else [message_json(m) for m in context.messages],
            "max_tokens": max_tokens,
            "temperature": self.temperature,
        }
        if self.logprobs:
            body["logprobs"] = True
        if self.tools_as == "schema" and tools_of(context):
            body["tools"] = [tool.to_openai() for tool in tools_of(context)]
        if self.grammar and isinstance(context, ToolContext):
            schema = {"name": "action", "schema": action_schema(context.tools), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body | self.extra

    # -- draws ------------------------------------------------------------------------------------------------------

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        """One completion for each seed. Raises PolicyFault when the server gives none before the deadline."""
        if max_tokens < 1:
            raise TreewrightError(f"a draw needs max_tokens >= 1, not {max_tokens}")
        body = self._body(context, max_tokens)
        size = len(context.ids) or len(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"))
        if size > self.longest_prompt:
            raise PolicyFault(
                f"{self.name}: a prompt of {size} {'tokens' if context.ids else 'bytes'} is longer than longest_prompt "
                f"= {self.longest_prompt}; raise that, or set window=N to shorten prompts"
            )
        effort = _Effort(time.monotonic() + self.deadline)
        done = await self._in_time(self._drafts(body, seeds, effort), effort.last)
        return [self._mended(one, context) for one in done]

    async def _drafts(self, body: dict[str, Any], seeds: Sequence[int], effort: _Effort) -> list[Completion]:
        """Drafts for `seeds` in as few requests as allowed: some servers give fewer than `n`, most only one."""
        done: list[Completion] = []
        while left := seeds[len(done) :]:
            most = (self.ways.choices or len(left)) if self.together else 1
            if most < len(left):
                groups = [left[i : i + most] for i in range(0, len(left), most)]
                for group in await together([self._drafts(body, group, effort) for group in groups]):
                    done += group
                continue
            reply = await self._ask({**body, "seed": left[0]} | ({"n": len(left)} if len(left) > 1 else {}), effort)
            if reply is None:
                continue  # one draw a request, from now on
            self._learnt(self.ways.gives(len(reply.choices), len(left)))
            done += self._counted([self._completion(choice) for choice in reply.choices[: len(left)]], reply, body)
        return done

    def _counted(self, done: list[Completion], reply: Reply, body: Mapping[str, Any]) -> list[Completion]:
        """The drafts with their share of what the server counted; of the most they can have cost if it did not."""
        usage, most = reply.usage or Usage(), int(body["max_tokens"])
        sampled = [len(c.token_ids) for c in done]
        if not all(sampled):
            counted = usage.completion_tokens
            total = counted if counted is not None else most * len(reply.choices)
            each, rest = divmod(total * len(done) // len(reply.choices), len(done))
            sampled = [each + (i < rest) for i in range(len(done))]
        read_tokens = usage.prompt_tokens if usage.prompt_tokens is not None else self.longest_prompt
        shares = [read_tokens if i == 0 else 0 for i in range(len(done))]
        return [
            replace(c, hidden=0 if c.token_ids else n, money=(p * self.price_in + n * self.price_out) / 1e6)
            for c, n, p in zip(done, sampled, shares, strict=True)
        ]

    def _completion(self, choice: Choice) -> Completion:
        self._tell("hidden", f"{self.name} does not show its prompts as token ids; its draws are not trained on")
        return Completion(
            choice.said(),
            tuple(choice.token_ids or ()),
            choice.chat_logprobs(),
            finish_reason=choice.finish_reason,
            policy_version=self._version,
            trainable=False,
            temperature=self.temperature,
        )

    def _mended(self, done: Completion, context: Context) -> Completion:
        if not self.repair or done.trainable:
            return done
        return replace(done, text=repair_action(done.text, tools_of(context)))

    # -- judging ----------------------------------------------------------------------------------------------------

    async def first_tokens(self, prompts: Sequence[str]) -> list[dict[str, float]]:
        """For each prompt, as a user's message, the likeliest first tokens of the answer and their log-probs.

        Raises PolicyFault where the server gives no alternatives.
        """
        return await together([self._first_tokens(prompt) for prompt in prompts])

    async def _first_tokens(self, prompt: str) -> dict[str, float]:
        body = self._message(prompt, 1) | {"logprobs": True, "top_logprobs": 20, "temperature": 0}
        logprobs = (await self._answer(body)).choices[0].logprobs
        if logprobs is None or not logprobs.content or not logprobs.content[0].top_logprobs:
            said = next((f": {why}" for what, why in self.ways.reasons.items() if "logprobs" in what), "")
            raise PolicyFault(f"{self.name} gives no log-probs of alternatives (top_logprobs); it cannot judge{said}")
        return {found.token: found.logprob for found in logprobs.content[0].top_logprobs}

    async def write(self, prompt: str, seed: int, max_tokens: int) -> str:
        """One answer to a user's message."""
        reply = await self._answer(self._message(prompt, max_tokens) | {"seed": seed})
        said = reply.choices[0].message
        return (said.content or "") if said is not None else ""

    async def _answer(self, body: dict[str, Any]) -> Reply:
        effort = _Effort(time.monotonic() + self.deadline)
        reply = await self._in_time(self._ask(body, effort), effort.last)
        assert reply is not None  # only `n` is taken back, and this asks for one
        return reply

    def _message(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        return {"model": self.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens}

    # -- the wire ---------------------------------------------------------------------------------------------------

    async def _ask(self, asked: Mapping[str, Any], effort: _Effort) -> Reply | None:
        """One request, repeated while it may still succeed; None where the server gives fewer draws a request."""
        for attempt in itertools.count():
            began = time.monotonic()
            reply, wait = await self._once(asked, effort)
            if reply is not None:
                self.outage.over()
                return reply
            if self._too_many(asked):
                return None
            effort.attempts += 1
            wait = max(wait, min(LONGEST_WAIT, self.backoff * 2**attempt) * self._jitter.uniform(0.5, 1.0))
            if time.monotonic() + wait >= effort.until:
                break
            self.stats.retries += 1
            self._note(began, wait, effort)
            await asyncio.sleep(wait)
        raise PolicyFault(
            f"{self.name}: given up after {effort.attempts} attempts; last: {effort.trouble}; a draw may take "
            f"{self.deadline:g} s, more with --set policy.options.deadline=N"
        )

    def _note(self, began: float, wait: float, effort: _Effort) -> None:
        told = f"{self.name}: {effort.trouble}; trying again in {wait:.1f} s"
        if self.outage.due(began, wait):
            left = max(effort.until - time.monotonic(), 0.0)
            log.warning("%s, for at most %.0f s more (--set policy.options.deadline=N)", told, left)
        else:
            log.info(told)

    async def _once(self, asked: Mapping[str, Any], effort: _Effort) -> tuple[Reply | None, float]:
        """The answer, or None and the seconds that the server wants to be left alone.

        Asks again at once in the server's own way where a refusal teaches one. Raises PolicyFault for a refusal that
        would be repeated.
        """
        while True:
            body = self.ways.spell(asked)
            try:
                response = await self._post(body)
                if response.status_code != 200:
                    if (moved := response.headers.get("location")) and 300 <= response.status_code < 400:
                        raise Refused(response.status_code, f"the server is at {moved}; give that address")
                    raise refusal(response.status_code, response.content)
                return self._heard(response), 0.0
            except httpx.RequestError as error:
                effort.trouble = f"{type(error).__name__}: {error or 'no more said'} ({self.wire.base_url})"
                return None, 0.0
            except Untrusted as error:
                raise PolicyFault(f"{self.name}: {error}") from error
            except Malformed as error:
                effort.trouble = f"malformed answer: {error}"
                return None, 0.0
            except Refused as refused:
                if self.ways.spell(asked) != body:
                    continue  # another request's refusal taught it meanwhile
                learnt = None if self._too_many(asked) else self.ways.learn(body, refused)
                self._learnt(learnt)
                if self._too_many(asked):
                    return None, 0.0
                if learnt is not None:
                    continue
                effort.trouble = self.wire.explain(refused.status, refused.reason)
                if not passing(refused.status):
                    raise PolicyFault(f"{self.name}: {effort.trouble}{self._hint(asked, refused)}") from None
                return None, retry_after(response.headers)

    def _too_many(self, asked: Mapping[str, Any]) -> bool:
        """More drafts than the server gives for one request."""
        return self.ways.choices is not None and asked.get("n", 1) > self.ways.choices

    def _hint(self, asked: Mapping[str, Any], refused: Refused) -> str:
        """What to type for a refusal of something that the user asked for."""
        if "tools" in asked and "tool" in refused.reason.lower():
            return "; list the tools as text: --set policy.options.tools_as=text"
        if "temperature" in refused.reason.lower() or "temperature" in refused.named:
            return "; it may take the usual one: --set policy.options.temperature=1"
        if named := sorted(refused.named & self.ways.kept):
            return f"; leave {', '.join(named)} out of policy.options.extra"
        return "; does the model's name fit the server?" if refused.status == 404 else ""

    async def _post(self, body: dict[str, Any]) -> httpx.Response:
        async with self._place(body.get("prompt", ())):
            self.stats.requests += 1
            return await self.wire.post(OpenAIPolicy.path if "messages" in body else self.path, body)

    def _heard(self, response: httpx.Response) -> Reply:
        """The answer, counted."""
        reply = read(response.content)
        usage = reply.usage or Usage()
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details is not None else None
        self.stats.draws += len(reply.choices)
        self.stats.cached_tokens += cached or 0
        self.stats.prompt_tokens += max(0, (usage.prompt_tokens or 0) - (cached or 0))
        self.stats.sampled_tokens += usage.completion_tokens or sum(len(c.token_ids or ()) for c in reply.choices)
        return reply

    def _learnt(self, what: str | None) -> None:
        if what is not None:
            log.warning("%s: %s", self.name, what)

    def _tell(self, what: str, line: str) -> None:
        """Warns once for each `what`."""
        if what not in self._told:
            self._told.add(what)
            log.warning(line)

    async def close(self) -> None:
        await self.wire.close()


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
