"""Conversations with a simulated user, as a world: `say` is the action, the user's reply the observation.

A user that computes its reply from `rng` alone repeats itself for the same key and is an ordinary world. One that asks
a language model answers differently each time: the world is then stochastic, is never replayed, and comes back by its
transcript, which is its whole state. Since the user is simulated, the world counts as sandboxed: whatever is said may
be said again. Do not put a person there.
"""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Callable
from typing import Any

from treewright.envs.tools.world import Ending, ToolWorld
from treewright.envs.types import Task

__all__ = ["Conversation", "User", "conversation"]

User = Callable[[Task, list[tuple[str, str]], random.Random], Any]
"""(task, transcript of ('agent' | 'user', text), random numbers) -> what the user says next; may be a coroutine."""


class Conversation:
    """What was said so far. Tools for the agent beside `say` can be given to the world as functions of this object."""

    def __init__(self, task: Task, user: User) -> None:
        self.task, self.user = task, user
        self.transcript: list[tuple[str, str]] = []

    async def say(self, text: str, rng: random.Random) -> str:
        """says something to the user; shows the reply"""
        said = [*self.transcript, ("agent", text)]
        reply = self.user(self.task, said, rng)
        reply = str(await reply if inspect.isawaitable(reply) else reply)
        self.transcript = [*said, ("user", reply)]
        return reply

    def snapshot(self) -> bytes:
        return json.dumps(self.transcript).encode()

    def restore(self, kept: bytes) -> None:
        self.transcript = [(who, text) for who, text in json.loads(kept)]


def conversation(
    user: User, *, judge: Callable[[Ending], Any] | None = None, stochastic: bool = True,
    first: str = "the user is here", name: str = "conversation", end: str = "hang_up",
) -> ToolWorld:  # fmt: skip
    """A world in which the agent talks to `user`; `judge` reads the transcript from `ending.object.transcript`."""

    class Talk(Conversation):
        def __init__(self, task: Task) -> None:
            super().__init__(task, user)

    return ToolWorld.of(
        Talk, ["say"], {"say": "reversible"}, judge=judge, stochastic=stochastic, first=first, name=name, end=end,
        fingerprint=lambda talk: json.dumps(talk.transcript), sandboxed=True,
    )  # fmt: skip
