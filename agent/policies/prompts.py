"""Prompts of the policies: the words of the rules and tools, and templates that turn a task and its turns into ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from treewright.agent.policies.chat_template import ChatTemplate
from treewright.agent.policies.prompt_text import LEFT_OUT, chat_messages, native_text, system_text
from treewright.agent.policies.template import MARKS, WINDOWS, CompactTemplate, Template, Window
from treewright.envs.doors import Door, call
from treewright.envs.errors import TreewrightError

__all__ = [
    "DOOR",
    "LEFT_OUT",
    "MARKS",
    "WINDOWS",
    "ChatTemplate",
    "CompactTemplate",
    "Template",
    "Window",
    "chat_messages",
    "native_text",
    "prompt_options",
    "system_text",
    "template_for",
]


BUILT_IN: dict[str, type[Template]] = {"compact": CompactTemplate, "chat": ChatTemplate}
DOOR = Door(kind="template", group="treewright.templates", built_in=lambda: BUILT_IN)
"""Templates by name: a built-in one, `module:Template` (a class, or a function that makes one), or an entry point."""


def template_for(
    tokenizer: Any, window: Window = None, template: Template | str | None = None, **options: Any
) -> Template:
    """The template named, or a Template as it is; None: the compact one if the tokenizer has its marks or no chat
    template, else the tokenizer's own.

    options  of the template; of ChatTemplate: tools_as, system, and variables of the tokenizer's own template, e.g.
             enable_thinking=False. A class or function of one's own is given `tokenizer` and `window` too, if it asks

    Raises TreewrightError for an unknown name, an option that is not taken, or what makes no template.
    """
    if isinstance(template, Template):
        if options:
            raise TreewrightError("a finished template takes no template_options; give its name, or make it with them")
        return template
    if template is None:
        marked = set(MARKS) <= {str(token.content) for token in tokenizer.added_tokens_decoder.values()}
        template = "compact" if marked or not tokenizer.chat_template else "chat"
    found = DOOR.find(template)
    if not callable(found):
        raise TreewrightError(f"template {template!r} is a {type(found).__name__}; name a class, or what makes one")
    made = call(found, options, f"template {template!r}", tokenizer=tokenizer, window=window)
    if not isinstance(made, Template):
        raise TreewrightError(
            f"template {template!r} gave a {type(made).__name__}, not a treewright.agent.policies.prompts.Template"
        )
    return made


def prompt_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a policy's options that say what its prompts look like: weights trained under them act under them."""
    return {name: options[name] for name in ("template", "window", "template_options") if name in options}
