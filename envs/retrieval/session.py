"""What all retrieval worlds share: evidence is gathered call by call, and an answer ends the episode.

The state of a session is the task, the evidence seen so far in order, and the answer if one was given. It is a few
hundred bytes, so a snapshot is the state itself; restoring it into a second session is the fork.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, ClassVar

from treewright.envs.errors import InvalidAction, RestoreUnsupported
from treewright.envs.retrieval.rows import clean
from treewright.envs.types import (
    Action,
    BaseEnvironment,
    Call,
    Effect,
    Observation,
    Restore,
    Snapshot,
    StepResult,
    Task,
    ToolSpec,
    digest,
    seed_of,
)

__all__ = ["ANSWER", "EvidenceWorld", "did_you_mean", "tool"]

READY = "ready"
"""What a session shows before anything was looked up."""


def tool(
    name: str, description: str, *, terminal: bool = False, optional: Iterable[str] = (), **arguments: str | int
) -> ToolSpec:
    """A read-only tool; all its arguments are required but the `optional` ones.

    A string argument is given as name=description, a whole number from 1 on as name=default.
    """
    optional = frozenset(optional)
    schema = {
        "type": "object",
        "properties": {
            key: {"type": "string", "description": value}
            if isinstance(value, str)
            else {"type": "integer", "minimum": 1, "default": value}
            for key, value in arguments.items()
        },
        "required": [key for key in arguments if key not in optional],
        "additionalProperties": False,
    }
    return ToolSpec(name, description, schema, Effect.READ, terminal=terminal)


ANSWER = tool("answer", "give the final answer", terminal=True, text="the answer")


def did_you_mean(kind: str, word: str, known: Iterable[str]) -> str:
    """One short line for the policy: what is unknown, and the nearest known word if one is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"no {kind} {word!r}, did you mean {near[0]!r}?" if near else f"no {kind} {word!r}"


class EvidenceWorld(BaseEnvironment):
    """A session that looks things up and then answers.

    A subclass names its `tools`, of which `answer` is the terminal one, and writes `look` and `grade`. Several
    look-ups may be made in one composite action; an answer stands alone. The fingerprint is a hash of the task's id,
    the evidence in order, and the answer. Actions are not counted here: whoever runs the episode stops at
    `task.horizon`.
    """

    restore_ways = frozenset({Restore.FORK, Restore.STATE, Restore.REPLAY})
    sandboxed = True
    stochastic = False
    tools: ClassVar[tuple[ToolSpec, ...]] = ()

    def __init__(self) -> None:
        self._task: Task | None = None
        self._evidence: list[str] = []
        self._answer: str | None = None
        self._specs = {spec.name: spec for spec in self.tools}

    async def look(self, call: Call, key: int) -> str:
        """What one look-up shows; must depend on nothing but the task, the call and the key.

        Raises InvalidAction with a message for the policy.
        """
        raise NotImplementedError(f"{type(self).__name__} must define look(call, key)")

    def grade(self, answer: str, key: int) -> float:
        """The truth reward of an answer."""
        raise NotImplementedError(f"{type(self).__name__} must define grade(answer, key)")

    @property
    def task(self) -> Task:
        """The task of this session. Raises RuntimeError before the first reset or restore."""
        if self._task is None:
            raise RuntimeError(f"{self.name}: no task yet; call reset(task, key) first")
        return self._task

    @property
    def fingerprint(self) -> str:
        """Equal exactly when task, evidence in order, and answer are."""
        parts = (self.task.id, *self._evidence)
        return digest(*parts) if self._answer is None else digest(*parts, "answer", self._answer)

    async def reset(self, task: Task, key: int) -> Observation:
        self._task, self._evidence, self._answer = task, [], None
        return self._observe(READY, "environment")

    async def step(self, action: Action, key: int) -> StepResult:
        if self._answer is not None:
            raise InvalidAction("the answer was given, the episode is over")
        if not action.calls:
            raise InvalidAction(f"no action, use {' or '.join(self._specs)}")
        for call in action.calls:
            self._check(call)
        action = Action(tuple(map(_storable, action.calls)))
        if any(self._specs[call.name].terminal for call in action.calls):
            return self._finish(action, key)
        # All calls are looked up before any is kept, so that an invalid one leaves the state as it was.
        shown = [await self.look(call, seed_of(key, i) if i else key) for i, call in enumerate(action.calls)]
        self._evidence += shown
        return StepResult(self._observe("\n".join(shown), "tool"))

    async def snapshot(self) -> Snapshot:
        state = {"task": _task_to_json(self.task), "evidence": self._evidence, "answer": self._answer}
        raw = json.dumps(state, ensure_ascii=False, separators=(",", ":")).encode()
        return Snapshot(Restore.STATE, raw, self.fingerprint, size=len(raw))

    async def restore(self, snapshot: Snapshot) -> Observation:
        if not isinstance(snapshot.data, bytes):
            raise RestoreUnsupported(
                f"{self.name} restores the bytes that its snapshot() made, not {type(snapshot.data).__name__}"
            )
        state = json.loads(snapshot.data)
        self._task, self._evidence, self._answer = Task(**state["task"]), state["evidence"], state["answer"]
        return self._observe(*self._last())

    def _observe(self, text: str, provenance: str) -> Observation:
        return Observation(text, self.fingerprint, provenance=provenance)

    def _last(self) -> tuple[str, str]:
        """Text and provenance of what the session showed last."""
        if self._answer is not None:
            return "done", "environment"
        return (self._evidence[-1], "tool") if self._evidence else (READY, "environment")

    def _finish(self, action: Action, key: int) -> StepResult:
        if len(action.calls) != 1:
            raise InvalidAction("answer must be the only call")
        answer = action.arguments["text"]
        reward = self.grade(answer, key)
        self._answer = answer
        return StepResult(self._observe("done", "environment"), reward, terminated=True)

    def _check(self, call: Call) -> None:
        spec = self._specs.get(call.name)
        if spec is None:
            raise InvalidAction(did_you_mean("action", call.name, self._specs))
        known, required = spec.parameters["properties"], spec.parameters["required"]
        for name, value in call.arguments.items():
            if name not in known:
                raise InvalidAction(f"{call.name}: {did_you_mean('argument', name, known)}")
            wanted, article = (str, "a string") if known[name]["type"] == "string" else (int, "a whole number")
            if not isinstance(value, wanted) or isinstance(value, bool):
                raise InvalidAction(f"{call.name}: {name} must be {article}")
        missing = [name for name in required if name not in call.arguments]
        if missing:
            raise InvalidAction(f"{call.name} needs {' and '.join(missing)}")


def _storable(call: Call) -> Call:
    """The call without half characters in its texts, which could be neither searched for nor stored."""
    given = call.arguments.items()
    return Call(call.name, {name: clean(value) if isinstance(value, str) else value for name, value in given})


def _task_to_json(task: Task) -> dict[str, Any]:
    """The task's fields by name; several times faster than dataclasses.asdict, which copies deeply."""
    values = {field.name: getattr(task, field.name) for field in fields(task)}
    return {**values, "data": dict(task.data), "truth": dict(task.truth)}
