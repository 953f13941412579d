"""OpenAI's preference rows as trees: one conversation that ends in two answers, the better one rewarded.

    {"input": {"messages": […], "tools": […]}, "preferred_output": [{…}], "non_preferred_output": [{…}]}

A row becomes a tree whose last turn has two children, rewarded 1 and 0: that one is better is all that a row says, so
such trees serve preferences (`export --formats dpo`, `train dpo`) and never a policy gradient.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.training.export.messages import Conversation, parse_conversation

__all__ = ["is_preference", "preference_of"]

BETTER, WORSE = "preferred_output", "non_preferred_output"
BESIDE = ("id", "suite", "split", "goal", "model")


def is_preference(row: Any) -> bool:
    """The row has the fields of the format."""
    return isinstance(row, Mapping) and BETTER in row and WORSE in row


def preference_of(row: Mapping[str, Any]) -> tuple[Conversation, Conversation]:
    """The conversation with the better answer, and with the worse. Raises TreewrightError naming the field."""
    asked = row.get("input")
    if not isinstance(asked, Mapping) or not isinstance(asked.get("messages"), list):
        raise TreewrightError("input: expected an object with messages")
    if not asked["messages"]:
        raise TreewrightError("input.messages: expected the messages that are answered, found none")
    return _ended(row, asked, BETTER, 1.0), _ended(row, asked, WORSE, 0.0)


def _ended(row: Mapping[str, Any], asked: Mapping[str, Any], name: str, reward: float) -> Conversation:
    said = row[name]
    alone = isinstance(said, list) and len(said) == 1 and isinstance(said[0], Mapping)
    if not alone or said[0].get("role") != "assistant":
        raise TreewrightError(f"{name}: expected one message of the assistant; write the turns before it in input")
    beside = {key: row[key] for key in BESIDE if key in row}
    talk = {**beside, "messages": [*asked["messages"], said[0]], "tools": asked.get("tools"), "reward": reward}
    try:
        return parse_conversation(talk)
    except TreewrightError as error:
        own = f"messages[{len(asked['messages'])}]"
        where = (
            str(error).replace(own, f"{name}[0]")
            if own in str(error)
            else re.sub(r"^(messages|tools)", r"input.\1", str(error))
        )
        raise TreewrightError(where) from None
