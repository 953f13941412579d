"""From what a policy sampled to what an agent gets: text, calls of tools, why it ended."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from jsonschema import Draft202012Validator, SchemaError

from treewright.agent.gateway.asked import SAY, Answer, Asked, Use
from treewright.agent.policies.policy import Templated
from treewright.agent.policies.scripted import ScriptedPolicy
from treewright.envs.errors import InvalidAction
from treewright.envs.types import Action
from treewright.search.routes import routes_before
from treewright.search.screen import OPEN, parse_action
from treewright.search.types import Completion, Proposer, layers

__all__ = ["Decode", "answer_of", "decoder_of", "fits", "spoken_action"]

Decode = Callable[[Sequence[int]], str]
THOUGHT = re.compile(r"^.*?</think>\s*", re.DOTALL)


def decoder_of(policy: Proposer) -> Decode | None:
    """Text of token ids, where the policy lets itself be asked."""
    for one in layers(policy):
        if isinstance(one, Templated):
            return one.template.encoder.text
        if isinstance(one, ScriptedPolicy):
            return lambda ids: bytes(i for i in ids if i < 256).decode("utf-8", "replace")
    return None


def answer_of(done: Completion, asked: Asked, decode: Decode | None, label: str = "") -> Answer:
    """The draw as an answer to the request.

    Calls are read where the request declares tools, in the spellings of `parse_action`; what is no call of a declared
    tool is text, for the agent to judge. A stop text ends the answer, and the tokens behind it are dropped.
    label  goes into the ids of the calls
    """
    done, stopped = _stopped(done, asked.stop, decode)
    text, uses = _read(done.text, asked, label)
    finish = "tool_calls" if uses else "length" if done.finish_reason == "length" and not stopped else "stop"
    pieces = tuple(decode([i]) for i in done.token_ids) if decode is not None and asked.logprobs else ()
    return Answer(text=text, uses=uses, finish=finish, stopped=stopped, completion=done, pieces=pieces)


def _read(text: str, asked: Asked, label: str) -> tuple[str, tuple[Use, ...]]:
    visible = THOUGHT.sub("", text, count=1)
    if asked.tools and not asked.no_calls:
        try:
            action = parse_action(visible, asked.tools)
        except InvalidAction:
            return visible, ()
        known = {tool.name for tool in asked.tools}
        if all(call.name in known for call in action.calls):
            before = visible.partition(OPEN)[0].strip() if OPEN in visible else ""
            uses = (
                Use(call.name, json.dumps(dict(call.arguments), ensure_ascii=False), f"call_{label}_{i}")
                for i, call in enumerate(action.calls)
            )
            return before, tuple(uses)
    return visible, ()


def _stopped(done: Completion, stops: Sequence[str], decode: Decode | None) -> tuple[Completion, str]:
    """The draw up to the first stop text, and that text. The tokens are those that were sampled, up to the one that
    completes it; where tokens cannot be read the draw acts and is not trained on."""
    found = min(((at, stop) for stop in stops if (at := done.text.find(stop)) >= 0), default=None)
    if found is None:
        return done, ""
    at, stop = found
    cut = replace(done, text=done.text[:at], finish_reason="stop")
    if not done.token_ids:
        return cut, stop
    if decode is None:
        return replace(cut, trainable=False), stop
    low, high = 1, len(done.token_ids)
    while low < high:  # the shortest front that holds the stop text
        middle = (low + high) // 2
        low, high = (low, middle) if stop in decode(done.token_ids[:middle]) else (middle + 1, high)
    routes = routes_before(done.routes, len(done.token_ids) - low)
    return replace(cut, token_ids=done.token_ids[:low], logprobs=done.logprobs[:low], routes=routes), stop


def fits(answer: Answer, asked: Asked) -> bool:
    """The answer is what the request insists on: a call of a tool, or text of a JSON schema."""
    if asked.must_call and not asked.no_calls:
        names = [use.name for use in answer.uses]
        return bool(names) and (asked.must_call == "*" or names == [asked.must_call] * len(names))
    if asked.form is None or answer.uses:
        return True
    try:
        value = json.loads(answer.text)
        return bool(Draft202012Validator(dict(asked.form)).is_valid(value))
    except (ValueError, RecursionError, SchemaError):
        return False


def spoken_action(action: Action, label: str) -> Answer:
    """The answer that an action stands for, see `asked.to_action`: what a replay serves."""
    text, uses = "", list[Use]()
    for i, call in enumerate(action.calls):
        if call.name == SAY and i == 0:
            text = str(call.arguments.get("text", ""))
        else:
            given = dict(call.arguments)
            raw = str(given[""]) if set(given) == {""} else json.dumps(given, ensure_ascii=False)
            uses.append(Use(call.name, raw, f"call_{label}_{len(uses)}"))
    return Answer(text=text, uses=tuple(uses), finish="tool_calls" if uses else "stop")
