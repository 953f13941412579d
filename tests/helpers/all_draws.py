"""Every tree that a search can give in the world of three choices, each with its probability."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from choices import p_a
from not_none import not_none

from treewright.envs.types import Observation, Task, ToolSpec
from treewright.search.types import Completion, Context, Exchange


class Forced:
    """Draws what `bits` say (0 = a), then a's; `taken` is what was drawn and `chance` its probability."""

    version = "softmax"

    def __init__(self, bits: list[int]) -> None:
        self.bits, self.chance = bits, 1.0
        self.taken: list[int] = []

    def context(
        self, task: Task, tools: Sequence[ToolSpec], first: Observation, turns: Sequence[Exchange], base: Sequence[int]
    ) -> Context:
        state = "".join(not_none(t.action).name for t in turns)
        return Context(keep=0, delta=tuple(state.encode()), ids=tuple(state.encode()))

    async def draw(self, context: Context, seeds: Sequence[int], max_tokens: int) -> list[Completion]:
        p, out = p_a(bytes(context.ids).decode()), []
        for _ in seeds:
            bit = self.bits[len(self.taken)] if len(self.taken) < len(self.bits) else 0
            chance = 1 - p if bit else p
            self.taken.append(bit)
            self.chance *= chance
            out.append(Completion("b {}" if bit else "a {}", (2 if bit else 1,), (math.log(chance),)))
        return out


async def outcomes(grow: Callable[[Forced], Awaitable[Any]]) -> list[tuple[float, Any]]:
    """[(probability, tree)] over everything that `grow(policy)` can give; the probabilities sum to 1."""
    out: list[tuple[float, Any]] = []
    bits: list[int] | None = []
    while bits is not None:
        policy = Forced(bits)
        tree = await grow(policy)
        out.append((policy.chance, tree))
        taken = policy.taken
        while taken and taken[-1]:
            taken.pop()
        bits = [*taken[:-1], 1] if taken else None
    return out
