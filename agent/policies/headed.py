"""A policy whose responses begin with given text: a safety prefix that was searched and trained with (PING)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from treewright.agent.policies.policy import Policy, PolicyStats, Templated
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Observation, Task, ToolSpec, seed_of
from treewright.search.types import Completion, Context, Exchange, layers

__all__ = ["HeadedPolicy", "head_ids"]


class HeadedPolicy:
    """The policy with `head` put at the front of each of its responses. For acting: its draws are not trained on."""

    def __init__(self, policy: Policy, head: str) -> None:
        self.inner, self.head = policy, tuple(head_ids(policy, head))
        self._shown = repr(head)

    @property
    def name(self) -> str:
        return f"{self.inner.name} headed {self._shown}"

    @property
    def stats(self) -> PolicyStats:
        return self.inner.stats

    @property
    def version(self) -> str:
        return f"{self.inner.version}+{seed_of(*self.head):x}" if self.head else self.inner.version

    async def close(self) -> None:
        await self.inner.close()

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange], base: Sequence[int]
    ) -> Context:
        return self.inner.context(task, tools, first, turns, base)

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        ids = context.ids + self.head
        drawn = await self.inner.draw(Context(keep=0, delta=ids, ids=ids), seeds, max_tokens)
        return [replace(d, trainable=d.trainable and not self.head) for d in drawn]


def head_ids(policy: object, head: str) -> Sequence[int]:
    """The tokens of a prefix as the policy would have written them, without the end of a turn."""
    if not head:
        return ()
    templated = next((p for p in layers(policy) if isinstance(p, Templated)), None)
    if templated is None:
        raise TreewrightError("a prefix needs a policy that takes token ids; use seedling or hf:FOLDER")
    return templated.template.encoder.plain(head + " ")
