"""A policy whose responses begin with given text: a safety prefix that was searched and trained with (PING)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, Task, ToolSpec, seed_of
from treewright.search.types import Completion, Context, Exchange

__all__ = ["HeadedPolicy", "head_ids"]


class HeadedPolicy:
    """The policy with `head` put at the front of each of its responses. For acting: its draws are not trained on."""

    def __init__(self, policy: Any, head: str) -> None:
        self._policy, self.head = policy, tuple(head_ids(policy, head))
        self.name = f"{getattr(policy, 'name', 'policy')} headed {head!r}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    @property
    def version(self) -> str:
        return f"{self._policy.version}+{seed_of(*self.head):x}" if self.head else str(self._policy.version)

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange], base: Sequence[int]
    ) -> Context:
        context: Context = self._policy.context(task, tools, first, turns, base)
        return context

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        ids = context.ids + self.head
        drawn = await self._policy.draw(Context(0, ids, ids), seeds, max_tokens)
        return [replace(d, trainable=d.trainable and not self.head) for d in drawn]


def head_ids(policy: Any, head: str) -> Sequence[int]:
    """The tokens of a prefix as the policy would have written them, without the end of a turn."""
    if not head:
        return ()
    template = getattr(policy, "template", None)
    if template is None:
        raise TreewrightError("a prefix needs a policy that takes token ids; use seedling or hf:FOLDER")
    ids: Sequence[int] = template.encoder.plain(head + " ")
    return ids
