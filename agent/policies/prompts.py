"""Prompts of the policies: the words of the rules and tools, and templates that turn a task and its turns into ids."""

from __future__ import annotations

from typing import Any

from treewright.agent.policies.chat_template import ChatTemplate
from treewright.agent.policies.prompt_text import LEFT_OUT, chat_messages, native_text, system_text
from treewright.agent.policies.template import MARKS, WINDOWS, CompactTemplate, Template, Window

__all__ = [
    "LEFT_OUT",
    "MARKS",
    "WINDOWS",
    "ChatTemplate",
    "CompactTemplate",
    "Template",
    "Window",
    "chat_messages",
    "native_text",
    "system_text",
    "template_for",
]


def template_for(tokenizer: Any, window: Window = None, **options: Any) -> Template:
    """The compact template if the tokenizer has its marks or no chat template, else the tokenizer's own.

    `options` go to ChatTemplate: tools_as, system, and variables of the template, e.g. enable_thinking=False.
    """
    compact = set(MARKS) <= {str(token.content) for token in tokenizer.added_tokens_decoder.values()}
    if compact or not tokenizer.chat_template:
        return CompactTemplate(tokenizer, window)
    return ChatTemplate(tokenizer, window, **options)
