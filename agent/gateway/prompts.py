"""From a request to the token ids that the policy receives: what was sampled stays as it was sampled.

A request that goes on from an answer given here begins with that answer's prompt and tokens, and only what is new is
encoded. A request that shows the past otherwise is encoded anew, around every answer in it that is known by its words.

Policies with a tokenizer's own chat template get the messages in its roles. Any other policy (scripts, the compact
template, chat servers) gets them as a task with turns: the first user message is the goal, what else stands before the
first answer the first observation, and what stands between answers the observations.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Protocol

from treewright.agent.gateway.asked import Asked, Spoken, keys_of, shown
from treewright.agent.policies.chat_template import ChatTemplate
from treewright.agent.policies.conversation import Conversation
from treewright.agent.policies.policy import Templated
from treewright.agent.policies.scripted import END
from treewright.envs.errors import InvalidAction
from treewright.envs.types import Observation, Task
from treewright.search.screen import parse_action
from treewright.search.types import Context, Exchange, Proposer, layers

__all__ = ["Known", "Nothing", "Prompts", "Said", "Shown", "kept", "request_json"]

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Said:
    """An answer as it was drawn: its text with everything the policy wrote, and its tokens."""

    text: str
    ids: Ids


class Known(Protocol):
    """What was answered before and may be gone on from."""

    def whole(self, key: str) -> Ids | None:
        """Prompt and answer, where a request begins as `key` says (see keys_of) and that beginning ends with an answer
        given here; () for a policy without token ids; None where it is not known."""

    def answer(self, spoken: Spoken) -> Said | None:
        """The newest answer with this content."""


class Nothing:
    """Nothing was answered before."""

    def whole(self, key: str) -> Ids | None:
        return None

    def answer(self, spoken: Spoken) -> Said | None:
        return None


@dataclass(frozen=True, slots=True)
class Shown:
    """The prompt of a request.

    context   as the policy receives it; keep and delta are relative to nothing (keep = 0)
    covered   how many of the request's messages are covered by a known prompt and answer, which the prompt begins with;
              0 where it was encoded anew
    keys      names of the request's beginnings, see keys_of
    """

    context: Context
    covered: int
    keys: Sequence[str]


@dataclass(slots=True)
class Prompts:
    """Prompts of one policy."""

    policy: Proposer
    _conversation: Conversation | None = field(init=False, default=None)
    _looked: bool = field(init=False, default=False)

    def of(self, asked: Asked, task: Task, known: Known | None = None) -> Shown:
        """The prompt of a request. `task` is what a script is told beside the messages; its goal is not shown.

        Raises TreewrightError for a conversation that the policy's template does not take.
        """
        known = known or Nothing()
        keys = keys_of(asked)
        ends = [i for i in range(len(asked.said), 0, -1) if asked.said[i - 1].role == "assistant"]
        covered, base = next(((i, ids) for i in ends if (ids := known.whole(keys[i])) is not None), (0, ()))
        if covered == len(asked.said):
            covered, base = 0, ()  # the agent wants the answer itself gone on with: shown as any other message
        own = self._own()
        if own is not None:
            return Shown(self._by_template(own, asked, known, covered, base), covered, keys)
        return Shown(self._by_turns(asked, task, known, covered, base), covered, keys)

    def _own(self) -> Conversation | None:
        if not self._looked:
            templated = next((p for p in layers(self.policy) if isinstance(p, Templated)), None)
            if templated is not None and isinstance(templated.template, ChatTemplate):
                self._conversation = Conversation(templated.template)
            self._looked = True
        return self._conversation

    def _by_template(self, own: Conversation, asked: Asked, known: Known, covered: int, base: Ids) -> Context:
        rows = [one.to_json() for one in asked.said]
        if covered and not any(one.role == "assistant" for one in asked.said[covered:]):
            ids = base + own.after(rows, asked.tools, covered - 1, base)
        else:
            found = {i: said for i, one in enumerate(asked.said) if (said := _answered(one, known)) is not None}
            ids = own.ids(rows, asked.tools, {i: said.ids for i, said in found.items()})
        return Context(keep=0, delta=ids, ids=ids)

    def _by_turns(self, asked: Asked, task: Task, known: Known, covered: int, base: Ids) -> Context:
        opening, rounds = _rounds(asked.said)
        at = next((i for i, one in enumerate(opening) if one.role == "user"), 0)
        goal = shown(opening[at : at + 1])
        first = Observation(shown([*opening[:at], *opening[at + 1 :]]), provenance="agent")
        told = replace(task, suite=asked.model, goal=goal)
        turns: list[Exchange] = []
        context, reached = None, len(opening)
        for answer, seen in rounds:
            said = _answered(answer, known) or self._written(answer)
            turns.append(_exchange(said.text, Observation(shown(seen), provenance="agent")))
            reached += 1 + len(seen)
            if reached - len(seen) < covered:
                continue  # inside the known prompt
            if reached - len(seen) == covered:
                before = base
            else:
                if context is None:
                    context = self.policy.context(told, asked.tools, first, turns[:-1], ())
                before = context.ids + said.ids if context.ids else ()
            context = self.policy.context(told, asked.tools, first, turns, before)
        if context is None:
            context = self.policy.context(told, asked.tools, first, (), ())
        return replace(context, keep=0, delta=context.ids)

    def _written(self, answer: Spoken) -> Said:
        """An answer that was not drawn here, as this policy would have written it."""
        text = "\n".join(filter(None, [answer.text, " ".join(f"{u.name} {u.arguments}" for u in answer.uses)]))
        templated = next((p for p in layers(self.policy) if isinstance(p, Templated)), None)
        if templated is not None:
            return Said(text, templated.template.response(text))
        return Said(text, (*text.encode("utf-8", "replace"), END))


def _answered(one: Spoken, known: Known) -> Said | None:
    said = known.answer(one) if one.role == "assistant" else None
    return said if said is not None and said.ids else None


def _rounds(said: Sequence[Spoken]) -> tuple[list[Spoken], list[tuple[Spoken, list[Spoken]]]]:
    """What stands before the first answer, and each answer with what follows it."""
    opening: list[Spoken] = []
    rounds: list[tuple[Spoken, list[Spoken]]] = []
    for one in said:
        if one.role == "assistant":
            rounds.append((one, []))
        else:
            (rounds[-1][1] if rounds else opening).append(one)
    return opening, rounds


def _exchange(text: str, seen: Observation) -> Exchange:
    try:
        action = parse_action(text)
    except InvalidAction:
        action = None
    return Exchange(text, action, seen)


def kept(base: Ids, ids: Ids) -> tuple[int, Ids]:
    """How much of `base` the prompt `ids` begins with, and the rest of it."""
    if ids[: len(base)] == base:
        return len(base), ids[len(base) :]
    keep = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(base, ids, strict=False)))
    return keep, ids[keep:]


def request_json(asked: Asked, start: int, link: str) -> dict[str, object]:
    """What a tree keeps of a request beside its text: new messages, tools, and how it follows from the one before.

    start  how many of its messages are those of an earlier request and its answer. Whoever keeps it adds `of`, the
           depth of that answer's node, 0 without one
    """
    tools = [{"name": t.name, "description": t.description, "parameters": dict(t.parameters)} for t in asked.tools]
    return {
        "type": "request", "api": asked.api, "model": asked.model, "link": link, "start": start,
        "messages": [one.to_json() for one in asked.said[start:]], "tools": json.dumps(tools, ensure_ascii=False),
    }  # fmt: skip
