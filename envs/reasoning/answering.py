"""A world of one question: the answer ends the episode, and a checker says what it is worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from treewright.envs.errors import InvalidAction
from treewright.envs.types import (
    Action,
    BaseEnvironment,
    Effect,
    Observation,
    Restore,
    Snapshot,
    StepResult,
    Task,
    ToolSpec,
    digest,
)

__all__ = ["ANSWER", "Answering", "answer"]

ANSWER = ToolSpec(
    "answer",
    "give the answer; ends the episode",
    {
        "type": "object",
        "properties": {"text": {"type": "string"}},
        "required": ["text"],
        "additionalProperties": False,
    },
    Effect.READ,
    terminal=True,
)


def answer(text: str) -> Action:
    """The action that gives an answer."""
    return Action.of("answer", text=text)


class Answering(BaseEnvironment):
    """Shows the question; `answer` ends the episode with what `worth(task, text)`, in [0, 1], gives for it."""

    name = "reasoning"
    restore_ways = frozenset({Restore.STATE, Restore.REPLAY})
    tools = (ANSWER,)
    sandboxed = True
    asked: ClassVar[dict[str, Task]] = {}  # by name: a session restores what another one saw of another task

    def __init__(self, worth: Callable[[Task, str], float]) -> None:
        self._worth = worth
        self._said: str | None = None

    async def reset(self, task: Task, key: int) -> Observation:
        self._task, self._said = task, None
        self.asked[self._name()] = task
        return self._seen()

    async def step(self, action: Action, key: int) -> StepResult:
        if self._said is not None:
            raise InvalidAction("the episode is over; reset to begin again")
        text = action.calls[0].arguments.get("text") if len(action.calls) == 1 else None
        if not isinstance(text, str) or action.calls[0].name != "answer":
            raise InvalidAction('write one line: answer {"text": "..."}')
        self._said = text
        return StepResult(self._seen(), self._worth(self._task, text), terminated=True)

    async def snapshot(self) -> Snapshot:
        said = "" if self._said is None else f"={self._said}"
        data = f"{self._name()}\0{said}".encode("utf-8", "surrogatepass")
        return Snapshot(Restore.STATE, data, self._seen().fingerprint, size=len(data))

    async def restore(self, snapshot: Snapshot) -> Observation:
        name, _, said = snapshot.data.decode("utf-8", "surrogatepass").partition("\0")
        self._task, self._said = self.asked[name], said[1:] if said else None
        return self._seen()

    def _name(self) -> str:
        return f"{self._task.suite}/{self._task.id}"

    def _seen(self) -> Observation:
        text = "think, then answer" if self._said is None else "answered"
        return Observation(text, digest("answering", self._task.id, repr(self._said)))
