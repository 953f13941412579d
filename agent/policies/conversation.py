"""Whole conversations under a tokenizer's own chat template, around answers that stay as they were sampled.

`ChatTemplate` shows a task and its turns. An agent that asks by itself sends messages in roles of its own choice, with
tools and their results; they are shown here as the template writes them. Every text is put where the template put a
placeholder, so that a mark spelled in it stays text, and an answer that was sampled here is put in as its tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from treewright.agent.policies.chat_template import PROBE, SLOT, ChatTemplate
from treewright.agent.policies.encoder import BEHIND_TEXT, Foreign, Ids
from treewright.agent.policies.prompt_text import system_text
from treewright.envs.errors import TreewrightError
from treewright.envs.types import ToolSpec

__all__ = ["Conversation"]


class Conversation:
    """A conversation as `template` writes it.

    Messages are {"role", "content"} with role system, user, assistant or tool; an assistant's may have "tool_calls", a
    list of {"name", "arguments"} with arguments as JSON text.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self.template, self.encoder = template, template.encoder
        self.stop_ids = template.stop_ids
        probe = [{"role": "user", "content": "x"}]
        self.shows_tools = PROBE.name in self._taken(probe, (PROBE,))
        results = [{"role": "assistant", "content": "y"}, {"role": "tool", "content": "z"}]
        self.has_tool_role = bool(self._taken([*probe, *results], ()))

    def ids(self, said: Sequence[Mapping[str, Any]], tools: Sequence[ToolSpec], sampled: Mapping[int, Ids]) -> Ids:
        """The whole prompt; message i is put in as `sampled[i]` where it is given.

        Raises TreewrightError where the template leaves messages out or shows them in another order.
        """
        parts, order = self._cut(said, tools, sampled)
        ids: Ids = ()
        block: list[str] = [parts[0]]
        for slot, after in zip(order, parts[1:], strict=True):
            if slot in sampled:
                ids += self._encoded(block, ids) + tuple(sampled[slot])
                block = [self._unclosed(after, ids)]
            else:
                block += [Foreign(str(said[slot]["content"])), after]
        return ids + self._encoded(block, ids)

    def after(self, said: Sequence[Mapping[str, Any]], tools: Sequence[ToolSpec], answered: int, base: Ids) -> Ids:
        """What follows `base`, the prompt and answer that end with message `answered`, up to where the next answer
        begins."""
        parts, order = self._cut(said, tools, {answered: base})
        at = order.index(answered)
        block: list[str] = [self._unclosed(parts[at + 1], base)]
        for slot, after in zip(order[at + 1 :], parts[at + 2 :], strict=True):
            block += [Foreign(str(said[slot]["content"])), after]
        return self._encoded(block, base)

    def _encoded(self, block: Sequence[str], before: Ids) -> Ids:
        return self.encoder.encode(block, BEHIND_TEXT if before else ())

    def _unclosed(self, text: str, ids: Ids) -> str:
        """What stands behind an answer, without the end of its turn if the policy has written it."""
        if not ids or ids[-1] not in self.stop_ids:
            return text
        mark = self.encoder.first_mark(text)
        return text[mark[2] :] if mark is not None and mark[0] in self.stop_ids else text

    def _cut(
        self, said: Sequence[Mapping[str, Any]], tools: Sequence[ToolSpec], sampled: Mapping[int, Ids]
    ) -> tuple[list[str], list[int]]:
        """What the template writes around the messages, and which message stands in each gap."""
        held = [i for i, one in enumerate(said) if one["content"] or i in sampled or not one.get("tool_calls")]
        rows = [self._row(i, one, i in held, i in sampled) for i, one in enumerate(said)]
        if tools and not self.shows_tools:
            words = self.template._harmless(system_text(tools))
            if rows and rows[0]["role"] == "system":
                rows[0]["content"] = f"{rows[0]['content']}\n\n{words}"
            else:
                rows.insert(0, {"role": "system", "content": words})
        if self.template.system_in_user and rows and rows[0]["role"] == "system":
            first = next((row for row in rows if row["role"] == "user"), None)
            if first is not None:
                first["content"] = f"{rows[0]['content']}\n\n{first['content']}"
                del rows[0]
        try:
            text = self._render(rows, tools if self.shows_tools else ())
        except TreewrightError:
            raise
        except Exception as error:  # a template raises what it likes where it does not know a role or an order
            raise TreewrightError(f"the chat template does not take this conversation: {error}") from error
        parts = SLOT.split(text)
        order = [int(i) for i in parts[1::2]]
        if order != held:
            raise TreewrightError(
                "the chat template leaves messages out, or shows them in another order; "
                "take a model with another template"
            )
        return parts[::2], order

    def _row(self, i: int, one: Mapping[str, Any], held: bool, sampled: bool) -> dict[str, Any]:
        role = str(one["role"])
        if role == "tool" and not self.has_tool_role:
            role = "user"
        row: dict[str, Any] = {"role": role, "content": f"@slot{i}@7f3a@" if held else ""}
        if one.get("tool_calls") and not sampled:
            row["tool_calls"] = [
                {"type": "function", "id": f"call{k:05d}", "function": {"name": c["name"], "arguments": _object(c)}}
                for k, c in enumerate(self.template._harmless(list(one["tool_calls"])))
            ]
        return row

    def _taken(self, rows: list[dict[str, Any]], tools: Sequence[ToolSpec]) -> str:
        """What the template makes of a conversation; "" where it refuses it, by whatever error."""
        try:
            return self._render(rows, tools)
        except Exception:
            return ""

    def _render(self, rows: list[dict[str, Any]], tools: Sequence[ToolSpec]) -> str:
        more: dict[str, Any] = dict(self.template.options)
        if tools:
            more["tools"] = [self.template._harmless(tool.to_openai()) for tool in tools]
        apply = self.encoder.tokenizer.apply_chat_template
        return str(apply(rows, tokenize=False, add_generation_prompt=True, **more))


def _object(call: Mapping[str, Any]) -> Any:
    """The arguments as an object, as templates expect them; text that is none as it is."""
    try:
        return json.loads(call["arguments"] or "{}")
    except ValueError:
        return call["arguments"]
