"""A policy on vLLM's OpenAI server: prompts as token ids, sampled ids with their log-probs back, weights exchanged.

Such draws are as exact as local ones. `vllm_server.py` starts such a server; `vllm_engine.py` is vLLM in this program.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from treewright.agent.policies.actions import cached_grammar
from treewright.agent.policies.answers import Choice, Logprobs, Malformed, Reply, refusal
from treewright.agent.policies.cutting import CutAfterwards
from treewright.agent.policies.openai import OpenAIPolicy
from treewright.agent.policies.policy import Pusher
from treewright.agent.policies.prompts import Template, template_for
from treewright.agent.policies.routed import routes_in
from treewright.agent.policies.served import ExchangingPolicy, tools_of, with_tools
from treewright.agent.policies.transport import Untrusted
from treewright.agent.policies.weights import folder_version
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, Task, ToolSpec
from treewright.search.routes import decode_routes, encode_routes
from treewright.search.types import Completion, Context, Exchange, PolicyFault

__all__ = ["SENDING", "Unknown", "VLLMPolicy"]

log = logging.getLogger(__name__)

SENDING = "being sent: "
"""What a server's weights are called while they are sent: one that still says so later holds a mixture."""
BLOCK = 16
"""Tokens of a block of the server's cache, by default: what stood in one that was not full may be routed once more."""


class Unknown(TreewrightError):
    """A place that the server does not have."""


class VLLMPolicy(OpenAIPolicy, ExchangingPolicy, CutAfterwards):
    """vLLM's OpenAI server at `base_url`/completions: prompts as token ids, sampled ids and log-probs back.

    Prompts are built here with the model's own tokenizer, so nothing is tokenised twice. Sampling parameters that a
    server would take from the model's generation settings are sent as neutral. `tokenizer` is a folder or name for
    transformers, or a tokenizer; None takes the model's name. Draws are trainable at temperature 1.
    A model that is named by its folder has the version of the weights in it, so that its trees are known to a trainer
    on that folder. That the server still has these weights is taken on trust until `load_weights` gives it some.
    With `grammar` every draw is an action of the node's tools; masked_exact says that the server was started with
    --logprobs-mode processed_logprobs, so that such draws have exact log-probs and may be trained on.
    With `routes` draws tell which experts their tokens took, of a server started with --enable-return-routed-experts.
    With `colocated` the server sleeps while the trainer works. `extended` is for servers started with
    --worker-extension-cls treewright.agent.policies.vllm_engine.WeightTaker, as vllm_server does: on a CPU, a model
    with tied embeddings takes new weights rightly only so.
    """

    path = "completions"
    sure = False

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        tokenizer: Any = None,
        template: Template | str | None = None,
        template_options: dict[str, Any] | None = None,
        masked_exact: bool = False,
        colocated: bool = False,
        extended: bool = False,
        routes: bool = False,
        **options: Any,
    ) -> None:
        if isinstance(tokenizer, str) or tokenizer is None:
            tokenizer = _tokenizer(tokenizer or model)
        given = {"name": f"vllm:{model}", "version": folder_version(model), "together": False}
        super().__init__(model, base_url, **{**given, **options})
        self.masked_exact, self.colocated, self.extended = masked_exact, colocated, extended
        self.routes = routes
        self.group: object = None  # whose group for transfers it is in
        self._doubt = False
        self.template = template_for(tokenizer, self.window, template, **(template_options or {}))
        self.stop_ids = tuple(sorted(self.template.stop_ids))

    # -- weights and memory: needs a server started with VLLM_SERVER_DEV_MODE=1 ---------------------------------------

    async def _take_weights(self, folder: str) -> None:
        await self.mend()
        self.group = None
        order = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
        if self.extended:
            order = {"method": "take_folder", "kwargs": {"folder": folder}}
        await self.order("/collective_rpc", order)
        await self.order("/reset_prefix_cache")

    async def _take_adapter(self, mark: str, folder: str) -> None:
        """The server must be started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1."""
        await self.order("/v1/load_lora_adapter", {"lora_name": mark, "lora_path": folder})
        self.model = mark

    async def load_weights(self, path: str | Path, version: str = "") -> str:
        return await self._named(await super().load_weights(path, version))

    async def load_adapter(self, path: str | Path, version: str = "") -> str:
        return await self._named(await super().load_adapter(path, version))

    async def _named(self, version: str) -> str:
        """Tells the server what its weights are called now, for others that draw from it."""
        self._doubt = False
        with contextlib.suppress(Unknown):  # an older vLLM, which names none
            await self.order("/update_weight_version", {"new_version": version})
        return version

    def given(self, version: str) -> None:
        super().given(version)
        self._doubt = True  # until the server says the same

    async def _believe(self) -> None:
        """Raises PolicyFault where a server to which others give weights has not got the ones that it should have."""
        try:
            said = await self.ask("/weight_info")
        except Unknown:
            said = {}
        except TreewrightError as error:
            raise PolicyFault(str(error)) from error
        found = said.get("weight_version", self._version)
        if found != self._version:
            raise PolicyFault(f"{self.name} has the weights {found}, not {self._version}")
        self._doubt = False

    # from a trainer's memory, see push.py

    @property
    def policies(self) -> list[VLLMPolicy]:
        return [self]

    async def load_pushed(self, push: Pusher, path: str | Path, version: str) -> str:
        """The weights that `push` sends; where it cannot, those of the folder."""
        return version if await push.send([self], version) else await self.load_weights(path, version)

    def took(self, version: str) -> None:
        """The server has said that it has these weights."""
        self._version, self.sure, self._doubt = version, True, False

    async def mend(self) -> None:
        """Brings a server back to order in which a transfer was broken off, by whomever: its weights stay a mixture
        until it is given others, but are taken whole again. Raises TreewrightError where it does not come back."""
        try:
            said = str((await self.ask("/weight_info", self.deadline)).get("weight_version"))
        except Unknown:
            return
        if not said.startswith(SENDING):
            return
        try:
            await self.order("/start_weight_update")
        except TreewrightError as error:
            log.debug("%s: %s", self.name, error)  # that update is under way still
        await self.order("/finish_weight_update")
        await self.order("/resume")

    async def sleep(self) -> bool:
        """Gives the accelerator back until `wake`, if the server shares it with the trainer (`colocated`)."""
        return self.colocated and await super().sleep()

    async def _fall_asleep(self) -> bool:
        await self.order("/sleep?level=1")
        return True

    async def _wake_up(self) -> None:
        await self.order("/wake_up")

    async def order(self, path: str, body: dict[str, Any] | None = None, deadline: float | None = None) -> None:
        """One order to the server, at its root and not under /v1. Raises TreewrightError where it is not obeyed."""
        await self._obeyed(path, self.wire.post(path, body, deadline or self.deadline))

    async def ask(self, path: str, deadline: float = 30.0) -> dict[str, Any]:
        """What the server says at a place of its root. Raises as `order`."""
        reply = await self._obeyed(path, self.wire.get(path, deadline))
        try:
            found = reply.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise TreewrightError(f"{self.name}: {path} gave no JSON object; is this vLLM's server?")
        return found

    async def _obeyed(self, path: str, asked: Awaitable[httpx.Response]) -> httpx.Response:
        try:
            reply = await asked
        except (httpx.RequestError, Untrusted) as error:
            raise TreewrightError(f"{self.name}: {path} failed: {type(error).__name__}: {error}") from error
        if reply.status_code in (404, 405):
            raise Unknown(
                f"{self.name}: the server does not know {path}; start it with VLLM_SERVER_DEV_MODE=1 "
                "(and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 for adapters)"
            )
        if reply.status_code != 200:
            told = refusal(reply.status_code, reply.content)
            raise TreewrightError(f"{self.name}: {path} failed: {self.wire.explain(told.status, told.reason)}")
        return reply

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
            masked["structured_outputs"] = {"grammar": cached_grammar(tools_of(context))}
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
            **({"routed_experts_prompt_start": max(_old(context) - BLOCK, 0)} if self.routes else {}),
            **self.extra,
        }

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        if self._doubt:
            await self._believe()
        return [self._fresh(done, context) for done in await super().draw(context, seeds, max_tokens)]

    def _fresh(self, done: Completion, context: Context) -> Completion:
        """The draw with the experts of what it added, and of a block of tokens before."""
        if not done.routes:
            if self.routes and done.token_ids:
                self._tell("routes", f"{self.name} names no experts; start it with --enable-return-routed-experts")
            return done
        found, read = decode_routes(done.routes), len(context.ids) + len(done.token_ids) - 1
        if len(found) > read:
            raise PolicyFault(f"{self.name} gave the experts of {len(found)} tokens, but {read} were read")
        old = max(_old(context) - BLOCK, 0)
        return replace(done, routes=encode_routes(found[max(len(found) - read + old, 0) :]))

    def _completion(self, choice: Choice) -> Completion:
        ids = tuple(choice.token_ids or ())
        if not ids:
            self._tell("ids", f"{self.name} returned no token ids (is it vLLM?); its draws are not trained on")
            return Completion(
                choice.text or "",
                (),
                (),
                finish_reason=choice.finish_reason,
                policy_version=self._version,
                trainable=False,
                temperature=self.temperature,
            )
        logprobs = tuple((choice.logprobs.token_logprobs or ()) if choice.logprobs else ())
        routes = routes_in(choice.routed_experts) if choice.routed_experts and self.routes else None
        stopped = ids[-1] in self.template.stop_ids
        plain = self.temperature == 1.0 and not self.extra and (self.masked_exact or not self.grammar)
        return Completion(
            self.template.encoder.text(ids[:-1] if stopped else ids),
            ids,
            logprobs,
            finish_reason=choice.finish_reason,
            policy_version=self._version,
            trainable=plain and bool(logprobs),
            temperature=self.temperature,
            routes="" if routes is None else encode_routes(routes),
        )

    def _heard(self, response: httpx.Response) -> Reply:
        reply = super()._heard(response)
        for choice in reply.choices:
            ids, logprobs = choice.token_ids or [], (choice.logprobs or Logprobs()).token_logprobs or []
            if ids and logprobs and len(ids) != len(logprobs):
                raise Malformed(f"{len(ids)} token ids with {len(logprobs)} log-probs")
            if self.routes and choice.routed_experts:
                try:
                    routes_in(choice.routed_experts)
                except ValueError as error:
                    raise Malformed(str(error)) from error
        return reply


def _old(context: Context) -> int:
    """How many tokens of a prompt draws before had read."""
    return max(len(context.ids) - len(context.delta) - 1, 0)


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(Path(name).expanduser() if name.startswith("~") else name)
    except (OSError, ValueError) as error:
        raise TreewrightError(
            f"no tokenizer for {name!r}; pass tokenizer=FOLDER, the folder that the server was started with"
        ) from error
