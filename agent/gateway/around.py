"""The policy of a search over an agent: its prompts are the agent's requests, and its draws are answers to them."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from treewright.agent.gateway.asked import SAY, Asked, Spoken, keys_of, to_action
from treewright.agent.gateway.prompts import Prompts, Said, kept
from treewright.agent.gateway.record import request_of
from treewright.agent.gateway.replies import answer_of, decoder_of, spoken_action
from treewright.agent.gateway.world import messages_at
from treewright.agent.policies.policy import Policy
from treewright.envs.types import Action, Observation, Task, ToolSpec, digest
from treewright.search.types import Completion, Context, Exchange

__all__ = ["AgentPolicy"]

HELD = 4096  # prompts whose beginnings are remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class _Requested(Context):
    """A prompt with the request that it shows, and the policy's own context."""

    asked: Asked | None = None
    own: Context | None = None


@dataclass(frozen=True, slots=True)
class _Path:
    """Prompt and tokens of every answer on a path that a request may go on from."""

    wholes: Mapping[str, tuple[int, ...]]
    answers: Mapping[str, Said]

    def whole(self, key: str) -> tuple[int, ...] | None:
        return self.wholes.get(key)

    def answer(self, spoken: Spoken) -> Said | None:
        return self.answers.get(spoken.canonical())


class AgentPolicy:
    """`inner` as the model that an agent asks. Contexts of other worlds pass through unchanged."""

    def __init__(self, inner: Policy) -> None:
        self.inner, self.name, self.stats = inner, inner.name, inner.stats
        self._prompts, self._decode = Prompts(inner), decoder_of(inner)
        self._paths: OrderedDict[tuple[int, ...], _Path] = OrderedDict()

    @property
    def version(self) -> str:
        return self.inner.version

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange], base: Sequence[int]
    ) -> Context:
        """The prompt of the newest request, whatever path led there."""
        seen = turns[-1].observation if turns else first
        request = request_of(seen)
        if request is None:
            return self.inner.context(task, tools, first, turns, base)
        asked, path = self._asked(request, first, turns), self._path(first, turns, tuple(base))
        own = self._prompts.of(asked, replace(task, goal="", truth={}), path)
        ids = own.context.ids
        if ids:
            self._paths[ids] = path
            self._paths.move_to_end(ids)
            if len(self._paths) > HELD:
                self._paths.popitem(last=False)
        keep, delta = kept(tuple(base), ids)
        return _Requested(keep=keep, delta=delta, ids=ids, messages=own.context.messages, asked=asked, own=own.context)

    def _asked(self, request: Mapping[str, Any], first: Observation, turns: Sequence[Exchange]) -> Asked:
        requests, answers = _told(first, turns)
        tools = json.loads(request["tools"])
        if request["link"] == "again":
            request = {**request, **{k: requests[-2][k] for k in ("stop", "no_calls") if k in requests[-2]}}
        return Asked(
            api=str(request["api"]), model=str(request["model"]), said=messages_at(requests, answers)[-1],
            tools=tuple(ToolSpec(t["name"], t["description"], t["parameters"]) for t in tools),
            max_tokens=request.get("max_tokens"), stop=tuple(request.get("stop", ())),
            no_calls=bool(request.get("no_calls")),
        )  # fmt: skip

    def _path(self, first: Observation, turns: Sequence[Exchange], base: tuple[int, ...]) -> _Path:
        """What is known at the parent, and its answer."""
        if not turns or not base:
            return _Path({}, {})
        requests, answers = _told(first, turns)
        asked = self._asked(requests[-2], first, turns[:-1])
        above = self._above(base)
        before = self._paths[above] if above is not None else _Path({}, {})
        spoken = answers[-1]
        wholes = {**before.wholes, digest(keys_of(asked)[-1], spoken.canonical()): base}
        if above is None:
            return _Path(wholes, before.answers)
        said = Said(turns[-1].response, base[len(above) :])
        return _Path(wholes, {**before.answers, spoken.canonical(): said})

    def _above(self, base: tuple[int, ...]) -> tuple[int, ...] | None:
        """The longest remembered prompt that `base` begins with: that of the parent."""
        lengths = sorted({len(ids) for ids in self._paths if len(ids) < len(base)}, reverse=True)
        return next((base[:n] for n in lengths if base[:n] in self._paths), None)

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        """All draws of a request in one batch; what the request says of length and stop texts counts."""
        if not isinstance(context, _Requested) or context.own is None or context.asked is None:
            return list(await self.inner.draw(context, seeds, max_tokens))
        asked = context.asked
        limit = min(max_tokens, asked.max_tokens or max_tokens)
        own = replace(context.own, keep=context.keep, delta=context.delta, ids=context.ids)
        drawn = await self.inner.draw(own, seeds, limit)
        return [answer_of(done, asked, self._decode).completion for done in drawn]

    def read(self, done: Completion, tools: Sequence[ToolSpec]) -> Action:
        """Any draw is an answer: calls of the agent's tools, or words."""
        own = tuple(tool for tool in tools if tool.name != SAY)
        asked = Asked(api="", model="", said=(), tools=own)
        return to_action(answer_of(done, asked, self._decode))

    async def close(self) -> None:
        await self.inner.close()


def _told(first: Observation, turns: Sequence[Exchange]) -> tuple[list[Mapping[str, Any]], list[Spoken]]:
    """The requests of a path and the answer to each but the last."""
    seen = [first, *(turn.observation for turn in turns)]
    requests: list[Mapping[str, Any]] = [
        request_of(one) or {"link": "again", "messages": (), "start": 0, "of": 0} for one in seen
    ]
    answers = [
        spoken_action(turn.action, "").spoken if turn.action is not None else Spoken("assistant", turn.response)
        for turn in turns
    ]
    return requests, answers
