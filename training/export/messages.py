"""Trajectories in OpenAI's message format as trees: a conversation is a chain.

One JSON object a line:

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "tool_calls": […]}, {"role": "tool", …}, …],
     "id": "task-7", "suite": "support", "split": "train", "reward": 1.0, "model": "gpt-x", "tools": […]}

Only `messages` is needed; fields that are null or empty count as not given. Messages may come in the forms of other
APIs, see `forms`. Each assistant message becomes a node; what tools and users say until the next one is its
observation. Nothing is known of how the messages were drawn: nodes have origin demo or stored, no tokens and no
log-probs, are never trained on by policy gradients, and the tree is inexact and says so.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from treewright.envs.errors import InvalidAction, TreewrightError
from treewright.envs.lines import json_value, whole_text
from treewright.envs.types import Action, Call, Effect, Observation, Task, ToolSpec, seed_of
from treewright.search.screen import parse_action
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import Completion, Draft, Expansion, NodeStatus, Origin, Outcome, Spent
from treewright.training.export.forms import given_arguments, known_tools, openai_messages
from treewright.training.export.raw import Grown, where

__all__ = ["INEXACT", "Conversation", "conversation_tree", "parse_conversation"]

INEXACT = "imported messages: not drawn here, no log-probs, and the world was not replayed"


def _arguments(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = json_value(value or "{}")
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON: {error.msg}") from None
    if not isinstance(value, dict):
        raise ValueError("arguments must be a JSON object, or one written as a string")
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError("a number that JSON has not, such as NaN or 1e400") from None
    except RecursionError:
        raise ValueError("nested too deeply to be read") from None
    return value


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Function(_Model):
    name: str = Field(min_length=1)
    arguments: Annotated[Any, AfterValidator(_arguments)] = Field("{}", validate_default=True)


class _ToolCall(_Model):
    id: str | None = None
    function: _Function


class _Part(_Model):
    model_config = ConfigDict(extra="allow")

    type: str
    text: str | None = None


class _Message(_Model):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[_Part] | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    calls_in_content: bool = False
    at: int = 0

    @model_validator(mode="after")
    def _complete(self) -> _Message:
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls: only an assistant calls tools, not role {self.role!r}")
        if self.content is None and not self.tool_calls:
            raise ValueError("content: a message without tool_calls needs content")
        return self

    @property
    def text(self) -> str:
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text or "" for part in self.content)

    @property
    def images(self) -> tuple[Mapping[str, Any], ...]:
        if not isinstance(self.content, list):
            return ()
        return tuple(p.model_dump(exclude_none=True) for p in self.content if p.type != "text")


class Conversation(_Model):
    """One line of the file. `reward` is the return of the whole; `success` stands for a reward of 1 or 0."""

    messages: list[_Message] = Field(min_length=1)
    id: str | int | None = None
    suite: str | None = None
    split: str = "train"
    goal: str | None = None
    reward: float | None = None
    success: bool | None = None
    truncated: bool = False
    model: str | None = None
    tools: list[dict[str, Any]] | None = None

    @model_validator(mode="after")
    def _calls_are_answered(self) -> Conversation:
        if not any(m.role == "assistant" for m in self.messages):
            raise ValueError("messages: there is no assistant message, so there is nothing to import")
        open_calls: set[str] = set()
        for message in self.messages:
            if message.role == "assistant":
                open_calls = {call.id for call in message.tool_calls or () if call.id is not None}
            elif message.role == "tool" and message.tool_call_id is not None:
                if message.tool_call_id not in open_calls:
                    raise ValueError(
                        f"messages[{message.at}].tool_call_id: {message.tool_call_id!r} answers no call just before it"
                    )
                open_calls.discard(message.tool_call_id)
        return self


OPTIONAL = ("id", "suite", "split", "goal", "reward", "success", "truncated", "model", "tools")


def parse_conversation(row: Any) -> Conversation:
    """The conversation of one line. Raises TreewrightError naming the field."""
    if not isinstance(row, Mapping):
        raise TreewrightError(f'expected an object with "messages", found {type(row).__name__}')
    given = {k: v for k, v in whole_text(dict(row)).items() if k not in OPTIONAL or v not in (None, "", [])}
    messages = given.get("messages")
    if isinstance(messages, Sequence) and not isinstance(messages, str):
        given["messages"] = openai_messages(messages)
    if "tools" in given:
        given["tools"] = known_tools(given["tools"])
    try:
        talk = Conversation.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # A union names its branch in the place of an error; people did not write that branch.
        place = [p for p in first["loc"] if p not in ("str", "int") and not str(p).startswith("list[")]
        if len(place) > 1 and place[0] == "messages" and isinstance(place[1], int):
            place[1] = given["messages"][place[1]]["at"]
        said = first["msg"].removeprefix("Value error, ")
        if isinstance(first["input"], datetime.date):
            said = (
                "a time, not text: `datasets` reads strings that look like dates as times; import the JSON lines "
                "themselves, or load them with features that say string"
            )
        raise TreewrightError(f"{where(place)}: {said}" if place else said) from None
    if talk.reward is not None and math.isinf(talk.reward):
        raise TreewrightError(f"reward: {talk.reward} is no return; write a finite number, or leave it out")
    return talk


def conversation_tree(
    talk: Conversation, *, run: str, suite: str, task_id: str, attempt: int, origin: Origin, version: str,
    worse: Conversation | None = None,
) -> Grown:  # fmt: skip
    """The chain of a conversation, revealed and inexact.

    suite, task_id, version   what the tree gets where the conversation does not say
    worse    the same conversation with another last message, which becomes a second child of the last turn
    """
    start = next(i for i, m in enumerate(talk.messages) if m.role == "assistant")
    opening, said = talk.messages[:start], _joined(talk.messages[start:])
    asked = [m for m in opening if m.role == "user"]
    goal = talk.goal if talk.goal is not None else asked[0].text if asked else ""
    # A goal that the first message repeats is said once.
    shown = asked if talk.goal is not None and not (asked and asked[0].text.strip() == goal.strip()) else asked[1:]
    system = "\n\n".join(m.text for m in opening if m.role in ("system", "developer"))
    data: dict[str, Any] = {"system": system} if system else {}
    if talk.tools:
        data["tools"] = talk.tools
    task = Task(
        talk.suite or suite, str(task_id if talk.id is None else talk.id), goal, split=talk.split,
        horizon=sum(m.role == "assistant" for m in said), data=data,
    )  # fmt: skip
    root = Outcome(
        Observation(
            "\n\n".join(m.text for m in shown), "", provenance="user", parts=tuple(p for m in asked for p in m.images)
        ),
        NodeStatus.OPEN,
    )
    seed = seed_of("messages", run, task.suite, task.id, attempt)
    header = TreeHeader(
        run=run,
        task=task,
        attempt=attempt,
        seed=seed,
        policy_version=talk.model or version,
        settings={"imported": "messages"},
        root=root,
    )
    if worse is not None:
        worse = worse.model_copy(update={"messages": _joined(worse.messages[start:])})
    return _chain(Tree.start(header), talk, said, origin, worse)


def _joined(messages: Sequence[_Message]) -> list[_Message]:
    """The messages, each that an assistant says right after words of its own joined to them as one.

    Behind a call that nobody answered the next message stays apart: an empty observation stands for the answer.
    """
    out: list[_Message] = []
    for message in messages:
        before = out[-1] if out else None
        if before is None or not message.role == before.role == "assistant" or before.tool_calls:
            out.append(message)
            continue
        thoughts = "\n\n".join(t for t in (before.reasoning_content, message.reasoning_content) if t)
        words = "\n\n".join(t for t in (before.text, message.text) if t)
        out[-1] = message.model_copy(update={"content": words, "reasoning_content": thoughts or None})
    return out


def _chain(
    tree: Tree, talk: Conversation, messages: Sequence[_Message], origin: Origin, worse: Conversation | None
) -> Grown:
    turns: list[tuple[_Message, list[_Message]]] = []
    for message in messages:
        if message.role == "assistant":
            turns.append((message, []))
        else:
            turns[-1][1].append(message)
    grown, schemas, drafts = list[Expansion](), _schemas(talk), list[Draft]()
    for i, (said, answers) in enumerate(turns):
        last = i == len(turns) - 1
        status = NodeStatus.OPEN if not last else NodeStatus.TRUNCATED if talk.truncated else NodeStatus.TERMINAL
        text, action = _spoken(said, schemas)
        outcome = _outcome(answers, status, _reward(talk) if last else 0.0)
        drafts = [_draft(tree, i, text, action, outcome, origin)]
        if last and worse is not None:
            text, action = _spoken(worse.messages[-1], schemas)
            other = _draft(tree, i, text, action, _outcome((), status, _reward(worse)), origin)
            drafts = [replace(drafts[0], share=0.5), replace(other, slot=1, share=0.5)]
        expansion = Expansion(
            seq=i, node=len(tree) - 1, closing=False, drawn=len(drafts), outcome=None, drafts=tuple(drafts),
            spent=Spent(expansions=1),
        )  # fmt: skip
        tree.apply(expansion)
        grown.append(expansion)
    tree.chosen, tree.stopped_by = len(tree) - len(drafts), "imported"
    tree.inexact(INEXACT)
    tree.reveal()
    return Grown(tree, tuple(grown))


def _reward(talk: Conversation) -> float:
    if talk.reward is not None:
        return talk.reward
    return math.nan if talk.success is None else float(talk.success)


def _outcome(answers: Sequence[_Message], status: NodeStatus, reward: float) -> Outcome:
    text = "\n\n".join(m.text for m in answers)
    source = "tool" if answers and all(m.role in ("tool", "function") for m in answers) else "user"
    images = tuple(p for m in answers for p in m.images)
    return Outcome(Observation(text, "", provenance=source, parts=images), status, reward=reward, effect=Effect.UNKNOWN)


def _schemas(talk: Conversation) -> dict[str, Mapping[str, Any]]:
    return {tool["function"]["name"]: tool["function"]["parameters"] for tool in talk.tools or ()}


def _draft(tree: Tree, turn: int, text: str, action: Action | None, outcome: Outcome, origin: Origin) -> Draft:
    done = Completion(text, policy_version=tree.header.policy_version, trainable=False, origin=origin)
    seed = seed_of(tree.header.seed, "message", turn)
    return Draft(
        after=0,
        slot=0,
        mult=1,
        share=1.0,
        seed=seed,
        completion=done,
        action=action,
        error=None,
        effect=Effect.UNKNOWN,
        score=math.nan,
        outcome=outcome,
    )


def _spoken(said: _Message, schemas: Mapping[str, Mapping[str, Any]]) -> tuple[str, Action | None]:
    """The message as text and as an action; a message that only talks has none, which is no error."""
    thought = f"<think>\n{said.reasoning_content}\n</think>\n\n" if said.reasoning_content else ""
    text = thought + said.text
    if not said.tool_calls:
        try:
            return text, parse_action(text)
        except InvalidAction:
            return text, None
    action = _given([Call(c.function.name, c.function.arguments) for c in said.tool_calls], schemas)
    if said.calls_in_content or _spells(text, action, schemas):
        return text, action
    blocks = [
        f"<tool_call>{json.dumps({'name': c.name, 'arguments': dict(c.arguments)}, ensure_ascii=False)}</tool_call>"
        for c in action.calls
    ]
    return "\n".join([*([text.rstrip()] if text.strip() else []), *blocks]), action


def _given(calls: Sequence[Call], schemas: Mapping[str, Mapping[str, Any]]) -> Action:
    return Action(tuple(Call(c.name, given_arguments(c.arguments, schemas.get(c.name))) for c in calls))


def _spells(text: str, action: Action, schemas: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the text itself has the calls, as a policy wrote them: they are not to be written once more."""
    try:
        found = parse_action(text, [ToolSpec(call.name) for call in action.calls])
    except InvalidAction:
        return False
    return _given(found.calls, schemas).key == action.key
