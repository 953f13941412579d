"""A tokenizer's own chat template, taken apart so that a new turn costs the encoding of one observation."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from treewright.agent.policies.bounded import bounded, refuse_products
from treewright.agent.policies.encoder import BEHIND_TEXT, Foreign, Ids
from treewright.agent.policies.prompt_text import THOUGHT, native_text, system_text
from treewright.agent.policies.template import Template, Window
from treewright.agent.policies.worked import load_worked
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action, Call, Task, ToolSpec
from treewright.search.screen import CLOSE, OPEN, parse_action

__all__ = ["ChatTemplate"]

log = logging.getLogger(__name__)

PROBE = ToolSpec("probe_7f3a", "", {"type": "object", "properties": {}})
SLOT = re.compile(r"@slot(\d+)@7f3a@")
THINK = "<think>"
EDGE = '\n \n"é\\'  # what templates strip or escape at the edge of a message


def _slot(i: int) -> str:
    return f"@slot{i}@7f3a@"


@dataclass(frozen=True, slots=True)
class _Way:
    """What a template does to the text of a message: strips its ends of some characters, writes it as JSON."""

    left: str | None = ""
    right: str | None = ""
    quoted: bool = False

    def __call__(self, text: str) -> str:
        text = text.lstrip(self.left) if self.left != "" else text
        text = text.rstrip(self.right) if self.right != "" else text
        return json.dumps(text, ensure_ascii=False)[1:-1] if self.quoted else text


WAYS = [
    _Way(left, right, quoted) for quoted in (False, True) for left in ("", None, "\n") for right in ("", None, "\n")
]


class ChatTemplate(Template):
    """A tokenizer's own chat template, taken apart once by rendering a conversation of placeholders.

    The texts of a turn are put in the place of placeholders as the template itself would write them (some strip
    messages, some write results as JSON). Where a template shows a message differently depending on later ones, every
    prompt is rendered anew around the tokens that were sampled.

    tools_as  'text' lists the tools in the system message, to be called as `name {…}`; 'schema' gives the template
              their schemas, which it shows in the form that the model was trained on, and observations as tool results
    system    stands before the rules
    examples  a file of worked examples (`treewright model examples`): those of a task's suite stand before the task, as
              turns of the same conversation; with tools_as='text', under a template that shows earlier turns as they
              were
    options   variables of the template, e.g. enable_thinking=False
    Raises TreewrightError for a template that leaves messages out, that ignores schemas when asked to show them, or
    that ends no turn.
    """

    def __init__(
        self, tokenizer: Any, window: Window = None, *, tools_as: str = "text", system: str = "",
        examples: str | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(tokenizer, window)
        for source in _sources(tokenizer):
            refuse_products(source)
        if tools_as not in ("text", "schema"):
            raise TreewrightError(f"tools_as = {tools_as!r} is not known; write 'text' or 'schema'")
        self.options, self.tools_as, self.system = options, tools_as, system
        self.results_as = "tool" if tools_as == "schema" else "user"
        self.system_in_user = False
        self._openings: dict[str, list[str]] = {}
        if tools_as == "schema" and PROBE.name not in self._render(self._messages(2), (PROBE,)):
            raise TreewrightError("the chat template does not show tool schemas; use tools_as='text'")
        try:
            opening, order = self._cut(2)
        except Exception:  # templates raise errors of their own where they have no system role
            self.system_in_user = True
            opening, order = self._cut(2)
        long, long_order = self._cut(6)
        thinking = self._messages(4, {2: f"<think>aside{THOUGHT}{_slot(2)}"})
        self.drops_thinking = "aside" not in self._render(thinking)
        self._learn(opening, long, long_order)
        self.local = order == [0, 1] and long_order == [0, 1, 2, 3, 4, 5]
        self.local = self.local and opening == [*long[:2], long[6]] and long[2:4] == long[4:6]
        self.before_system, self.before_goal = opening[:2]
        self.append_only = self.local and self.prompt == self.header
        self._ways = [self._way(slot, long, long_order) for slot in range(4)]
        self._worked = load_worked(examples) if examples is not None else {}
        if self._worked and (tools_as != "text" or not self.local):
            why = "tools_as = 'schema'" if tools_as != "text" else "this chat template, which changes earlier turns"
            raise TreewrightError(f"worked examples do not go with {why}; leave template_options.examples out")

    def _learn(self, opening: Sequence[str], long: Sequence[str], order: Sequence[int]) -> None:
        """How a turn begins and ends.

        prompt, header  what stands before a response that is drawn now, and before an earlier one
        lead            what a policy writes first, as earlier responses show: a space, a channel, empty thinking
        between         what stands behind a response; `_mark` and `_rest` are its end-of-turn mark and what follows
        """
        at = order.index(2)
        self.prompt, self.header, self.between = opening[-1], long[at], long[at + 1]
        self.lead = self.header.removeprefix(self.prompt) if self.header.startswith(self.prompt) else ""
        self._kept_lead = self.drops_thinking and THOUGHT in self.lead  # dropped with the thinking, so not repeated
        if not self._kept_lead:
            self.header = self.header.removesuffix(self.lead)
        if self.prompt.rstrip().endswith(THINK) and THOUGHT not in self.lead:
            self.lead = f"{THOUGHT}\n\n"
        encode, eos = self.encoder.encode, self.encoder.tokenizer.eos_token_id
        mark = self.encoder.first_mark(self.between)
        ended = mark is not None and not self.between[: mark[1]].strip()
        self._tail = self._mark = ""
        if mark is not None and ended:
            self._tail, self._mark = self.between[: mark[1]], self.between[mark[1] : mark[2]]
            self.closing = encode([self._tail, self._mark], BEHIND_TEXT)
        self._rest = self.between[len(self._tail + self._mark) :]
        self.end = self.closing[-1] if self.closing else eos
        if self.end is None:
            raise TreewrightError(
                "the chat template writes no mark behind a response, and the tokenizer has no end-of-sequence token; "
                "set tokenizer.eos_token to the token that ends the model's turns"
            )
        self.stop_ids = frozenset(i for i in (self.end, eos) if i is not None)

    def _way(self, slot: int, parts: Sequence[str], order: Sequence[int]) -> _Way:
        """What the template does to the message in `slot`, seen by what is left of its edges."""
        content = f"{EDGE}{_slot(slot)}{EDGE[::-1]}"
        rendered = SLOT.split(self._render(self._messages(6, {slot: content})))[::2]
        at = order.index(slot)
        before, after = rendered[at], rendered[at + 1]
        for way in WAYS:
            left, right = way(EDGE + "x")[:-1], way("x" + EDGE[::-1])[1:]
            if (before, after) == (parts[at] + left, right + parts[at + 1]):
                return way
        log.warning("the chat template changes the text of a message in a way that is not followed; prompts may differ")
        return _Way()

    # -- blocks -------------------------------------------------------------------------------------------------------

    def opening(self, task: Task, tools: Sequence[ToolSpec], seen: str, last: bool) -> Ids:
        if not self.local:
            return self._blocks(task, tools, [seen])[0]
        asked = f"{task.goal}\n\n{seen}"
        worked = self._worked.get(task.suite, ())
        if not worked:
            return self._first(tools, asked, last)
        ids = self._first(tools, f"{worked[0].goal}\n\n{worked[0].first}", False)
        for i, one in enumerate(worked):
            for j, step in enumerate(one.steps):
                ids += self.response(step.action)
                if j + 1 < len(one.steps):
                    ids += self._after(ids, self.turn(step.observation, False))
            if i + 1 < len(worked):
                ids += self._after(ids, self.turn(f"{worked[i + 1].goal}\n\n{worked[i + 1].first}", False))
        return ids + self._after(ids, self.turn(asked, last))

    def _first(self, tools: Sequence[ToolSpec], asked: str, last: bool) -> Ids:
        """The rules, then the first message of the user."""
        system, goal = self._opening(tools)
        texts = (self._foreign(0, self._rules(tools)), self._foreign(1, asked))
        return self.encoder.encode([system, texts[0], goal, texts[1], self.prompt if last else self.header])

    def _rules(self, tools: Sequence[ToolSpec]) -> str:
        if self.tools_as == "schema":
            return native_text(self.system)
        return f"{self.system}\n\n{system_text(tools)}" if self.system else system_text(tools)

    def _opening(self, tools: Sequence[ToolSpec]) -> Sequence[str]:
        """What the template writes before the rules and before the goal, where it shows these tools."""
        if self.tools_as == "text" or not tools:
            return self.before_system, self.before_goal
        key = repr([(tool.name, tool.description, tool.parameters) for tool in tools])
        if key not in self._openings:
            parts, order = self._cut(2, tools)
            if order != [0, 1]:
                raise TreewrightError("the chat template moves the system message when it shows tools; use 'text'")
            self._openings[key] = parts[:2]
        return self._openings[key]

    def turn(self, seen: str, last: bool) -> Ids:
        return self._turn([self._rest, self._foreign(3, seen), self.prompt if last else self.header])

    def _turn(self, parts: Sequence[str]) -> Ids:
        """What ends a response, then the parts."""
        if not self._mark:
            return self.encoder.encode(parts, BEHIND_TEXT)
        return self.closing + self.encoder.encode(parts, (self._mark,))

    def response(self, text: str) -> Ids:
        lead = "" if THOUGHT in text and THOUGHT in self.lead else self.lead
        parts = [lead, Foreign(self._ways[2](text)), self._tail + self._mark]
        ids = self.encoder.encode(parts, (self.prompt, *BEHIND_TEXT), written=True)
        return ids if self._mark else (*ids, self.end)

    def says(self, text: str, action: Action | None) -> str:
        if action is None or self.tools_as == "text":
            return super().says(text, action)
        talk = text.partition(OPEN)[0].rstrip()
        return self._called(talk, action) or "\n".join([*([talk] if talk else []), *map(_block, action.calls)])

    def _called(self, talk: str, action: Action) -> str:
        """The calls as the template writes them; empty if that cannot be read back as the same action."""
        calls = [
            {"type": "function", "id": f"call{i:05d}", "function": {"name": c.name, "arguments": dict(c.arguments)}}
            for i, c in enumerate(action.calls)
        ]
        messages = self._messages(4)
        messages[-2] = {"role": "assistant", "content": talk, "tool_calls": calls}
        try:
            rendered = self._render(messages, [ToolSpec(c.name) for c in action.calls])
            said = rendered.partition(_slot(1))[2].removeprefix(self.header).removeprefix(self.lead)
            said = said.partition(self._mark)[0] if self._mark else ""
            return said if parse_action(said) == action else ""
        except Exception:  # an InvalidAction, or an error of the template's own about calls that it cannot show
            return ""

    def _foreign(self, slot: int, text: str) -> Foreign:
        return Foreign(self._ways[min(slot, 3)](text))

    def _blocks(self, task: Task, tools: Sequence[ToolSpec], shown: Sequence[str]) -> list[Ids]:
        if self.local:
            return super()._blocks(task, tools, shown)
        texts = [self._rules(tools), f"{task.goal}\n\n{shown[0]}", *shown[1:]]
        between, order = self._cut(2 * len(shown), tools)
        blocks: list[list[str]] = [[between[0]]]
        for slot, after in zip(order, between[1:], strict=True):
            at = _response_at(slot)
            if at < 0:
                blocks[-1] += [self._foreign(slot, texts[_text_at(slot)]), after]
            elif at != len(blocks) - 1:
                raise TreewrightError("the chat template shows the responses in another order; pass another one")
            else:
                if not self._kept_lead:
                    blocks[-1][-1] = blocks[-1][-1].removesuffix(self.lead)
                blocks.append([after.removeprefix(self._tail + self._mark)])
        return [self.encoder.encode(blocks[0]), *map(self._turn, blocks[1:])]

    # -- rendering ----------------------------------------------------------------------------------------------------

    def _messages(self, slots: int, contents: Mapping[int, str] | None = None) -> list[dict[str, Any]]:
        """system, user, assistant, user, … with a placeholder in each, or what `contents` gives."""
        roles = ["system", "user", *(["assistant", self.results_as] * slots)][:slots]
        texts = [(contents or {}).get(i, _slot(i)) for i in range(slots)]
        messages: list[dict[str, Any]] = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]
        if self.system_in_user:
            messages[1]["content"] = f"{texts[0]}\n\n{texts[1]}"
            del messages[0]
        return messages

    def _render(self, messages: list[dict[str, Any]], tools: Sequence[ToolSpec] = ()) -> str:
        apply = self.encoder.tokenizer.apply_chat_template
        more: dict[str, Any] = dict(self.options)
        if self.tools_as == "schema" and tools:
            more["tools"] = [self._harmless(tool.to_openai()) for tool in tools]
        return bounded(apply, messages, tokenize=False, add_generation_prompt=True, **more)

    def _harmless(self, value: Any) -> Any:
        """Tool schemas may come from others: a mark or placeholder spelled in them is broken up."""
        if isinstance(value, Mapping):
            return {self._harmless(k): self._harmless(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._harmless(v) for v in value]
        if isinstance(value, str):
            for mark in self.encoder.marks.values():
                if len(mark) > 1:
                    value = value.replace(mark, mark[0] + " " + mark[1:])
            return SLOT.sub(lambda found: found[0].replace("@", "@ "), value)
        return value

    def _cut(self, slots: int, tools: Sequence[ToolSpec] = ()) -> tuple[list[str], list[int]]:
        """What the template writes around `slots` messages, and the order in which it shows them."""
        parts = SLOT.split(self._render(self._messages(slots), tools))
        order = [int(i) for i in parts[1::2]]
        if sorted(set(order)) != list(range(slots)):
            missing = sorted(set(range(slots)) - set(order))
            raise TreewrightError(f"the chat template leaves out message {missing} of {slots}; pass another one")
        return parts[::2], order


def _sources(tokenizer: Any) -> list[str]:
    found = getattr(tokenizer, "chat_template", None)
    return [found] if isinstance(found, str) else [*found.values()] if isinstance(found, dict) else []


def _response_at(slot: int) -> int:
    """Which response the message in `slot` is; −1 for rules, goal and observations. Slots: rules, goal, then turns."""
    return (slot - 2) // 2 if slot >= 2 and slot % 2 == 0 else -1


def _text_at(slot: int) -> int:
    """Which of (rules, goal, observations …) the message in `slot` is."""
    return slot if slot < 2 else (slot + 1) // 2


def _block(call: Call) -> str:
    return f"{OPEN}{json.dumps({'name': call.name, 'arguments': dict(call.arguments)}, ensure_ascii=False)}{CLOSE}"
