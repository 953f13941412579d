"""One request of an agent, whichever API it came by, and one answer to it.

Three APIs (OpenAI Chat Completions, OpenAI Responses, Anthropic Messages) say the same things in different words. Here
they are said once: messages in order, the tools that may be called, how many answers and how long.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from treewright.envs.lines import json_value
from treewright.envs.types import Action, Call, ToolSpec, digest
from treewright.search.types import Completion

__all__ = ["SAY", "Answer", "Answered", "Asked", "Spoken", "Use", "keys_of", "shown", "to_action"]

SAY = "say"
"""The call that stands for plain text in an answer: `say {"text": …}`."""


@dataclass(frozen=True, slots=True)
class Use:
    """One call of a tool in an answer: `arguments` is JSON text, `id` relates the result to it."""

    name: str
    arguments: str
    id: str = ""

    def canonical(self) -> Any:
        """What the call means, without its id and however its JSON was spaced."""
        try:
            return [self.name, json_value(self.arguments or "{}", finite=True)]
        except ValueError:
            return [self.name, self.arguments]


@dataclass(frozen=True, slots=True)
class Spoken:
    """One message.

    role     system, user, assistant or tool
    uses     calls that an assistant's message makes;  answers  id of the call whose result a tool's message is
    """

    role: str
    text: str
    uses: tuple[Use, ...] = ()
    answers: str = ""

    def canonical(self) -> str:
        """Equal for messages that mean the same: ids of calls do not count, results do with their order."""
        return json.dumps([self.role, self.text, [use.canonical() for use in self.uses]], sort_keys=True)

    def to_json(self) -> dict[str, Any]:
        """The message as kept in a tree."""
        out: dict[str, Any] = {"role": self.role, "content": self.text}
        if self.uses:
            out["tool_calls"] = [{"id": u.id, "name": u.name, "arguments": u.arguments} for u in self.uses]
        if self.answers:
            out["tool_call_id"] = self.answers
        return out

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Spoken:
        """The inverse of `to_json`."""
        uses = tuple(Use(u["name"], u["arguments"], u["id"]) for u in row.get("tool_calls", ()))
        return cls(str(row["role"]), str(row["content"]), uses, str(row.get("tool_call_id", "")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What an agent asks for.

    api         chat, responses or messages
    n           answers wanted;  max_tokens  of one answer, None where the request does not say
    stop        texts at which an answer ends;  form  a JSON schema (or {} for any JSON) that its text must fit
    must_call   "" for may, "*" for some tool, else the name of the tool that must be called
    no_calls    tools are shown and may not be called
    logprobs    log-probs of the sampled tokens are wanted;  top_logprobs  how many others
    previous    id of the response that this one continues (Responses API)
    ignored     fields of the request that change the distribution and that a policy does not take by request
    """

    api: str
    model: str
    said: tuple[Spoken, ...]
    tools: tuple[ToolSpec, ...] = ()
    n: int = 1
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    usage_in_stream: bool = False
    logprobs: bool = False
    token_ids: bool = False
    form: Mapping[str, Any] | None = None
    must_call: str = ""
    no_calls: bool = False
    previous: str = ""
    seed: int | None = None
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer: text and calls as the agent gets them, and the draw that they were read from.

    finish   stop, length or tool_calls;  stopped  the stop text that ended it, "" for none
    pieces   text of each sampled token, empty where it is not known
    """

    text: str
    uses: tuple[Use, ...] = ()
    finish: str = "stop"
    stopped: str = ""
    completion: Completion = field(default_factory=lambda: Completion(""))
    pieces: tuple[str, ...] = ()

    @property
    def spoken(self) -> Spoken:
        """The message that the agent will send back with its next request."""
        return Spoken("assistant", self.text, self.uses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """All answers to a request.

    label    ends the ids of the response and its parts; the same for a replayed answer as for the recorded one
    created  seconds since 1970;  prompt  token ids of the prompt, empty where the policy has none
    headers  of the response
    """

    answers: tuple[Answer, ...]
    label: str
    created: int
    model: str
    prompt: tuple[int, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def sampled(self) -> int:
        """Tokens of all answers."""
        return sum(one.completion.tokens for one in self.answers)


def keys_of(asked: Asked) -> list[str]:
    """Names of the request's beginnings: entry i is that of its tools and first i messages.

    Two requests share an entry exactly if they agree so far, ids of calls aside.
    """
    tools = json.dumps([[t.name, t.description, dict(t.parameters)] for t in asked.tools], sort_keys=True)
    keys = [digest(tools)]
    for one in asked.said:
        keys.append(digest(keys[-1], one.canonical()))
    return keys


def shown(said: Sequence[Spoken]) -> str:
    """Messages as one text for people, scripts and policies without a chat template: the words alone where it is one
    message, else each with its role in front."""
    if not said:
        return ""
    if len(said) == 1 and not said[0].uses:
        return said[0].text
    return "\n".join(f"{one.role}: {_worded(one)}" for one in said)


def _worded(one: Spoken) -> str:
    return " ".join(filter(None, [one.text, *(f"{use.name} {use.arguments}" for use in one.uses)]))


def to_action(answer: Answer) -> Action:
    """The answer as an action: a call for each tool called, after `say` for its text, if it has any."""
    calls = [Call(SAY, {"text": answer.text})] if answer.text or not answer.uses else []
    for use in answer.uses:
        try:
            arguments = json_value(use.arguments or "{}", finite=True)
        except ValueError:
            arguments = None
        calls.append(Call(use.name, arguments if isinstance(arguments, dict) else {"": use.arguments}))
    return Action(tuple(calls))
