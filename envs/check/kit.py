"""What all clauses share: one task with the script once played on it, sessions, and comparisons in words."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from treewright.envs.check.differ import differing, fields_of, text_difference
from treewright.envs.types import (
    Action,
    Effect,
    Environment,
    Observation,
    Oracle,
    Restore,
    Snapshot,
    StepResult,
    Task,
    ToolSpec,
)

__all__ = [
    "BLOCK_LIMIT",
    "CLAUSES",
    "UNKNOWN_TOOL",
    "Clause",
    "Kit",
    "Move",
    "Open",
    "Skip",
    "Violated",
    "Watched",
    "clause",
    "play",
    "play_as_recorded",
]

BLOCK_LIMIT = 2.0  # seconds that one call may keep the event loop; generous, since test machines are busy
UNKNOWN_TOOL = Action.of("no_such_tool_anywhere", x=1)

Open = Callable[[], Awaitable[Environment]]


class Violated(Exception):
    """The clause does not hold."""


class Skip(Exception):
    """The clause does not apply to this world."""


@dataclass(frozen=True, slots=True)
class Move:
    """One action of the script, its key, what it showed and the effect judged before it."""

    action: Action
    key: int
    result: StepResult
    effect: Effect


@dataclass(slots=True)
class Kit:
    """One task with the script that was once played on it; clauses play it again in other ways."""

    open: Open
    task: Task
    key: int
    sandboxed: bool = True
    stochastic: bool = False
    ways: frozenset[Restore] = frozenset()
    live: bool = False
    oracle: Oracle | None = None
    first: Observation = field(default_factory=lambda: Observation(""))
    script: list[Move] = field(default_factory=list)
    specs: list[Sequence[ToolSpec]] = field(default_factory=list)
    kept: list[tuple[Snapshot, Observation]] = field(default_factory=list)
    longest_block: float = 0.0
    fields: dict[str, dict[str, str]] = field(default_factory=dict)  # of the session, by the fingerprint shown
    restless: set[str] = field(default_factory=set)  # fields that differ between sessions of one fingerprint

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Environment]:
        env = await self.open()
        try:
            yield env
        finally:
            with contextlib.suppress(Exception):  # close has a clause of its own
                await env.close()

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator[tuple[Watched, Observation]]:
        async with self.session() as env:
            watched = Watched(env, self)
            yield watched, await watched.reset(self.task, self.key)

    def remember(self, env: Environment, shown: Observation) -> None:
        """Keeps the session's fields beside the fingerprint that it shows, for the day when another one is found."""
        found = fields_of(env)
        known = self.fields.setdefault(shown.fingerprint, found)
        self.restless.update(differing(found, known))

    def same(self, env: Environment, found: Observation, expected: Observation, where: str) -> None:
        """Raises Violated, with the field of the session or the place in the text that differs."""
        if found == expected:
            return
        if found.fingerprint != expected.fingerprint:
            raise Violated(f"{where}: {self._fingerprints(env, found.fingerprint, expected.fingerprint)}")
        for name in ("text", "provenance", "parts"):
            if getattr(found, name) != getattr(expected, name):
                seen = text_difference(str(getattr(found, name)), str(getattr(expected, name)))
                raise Violated(f"{where}: {name} {seen}")

    def same_result(self, env: Environment, found: StepResult, expected: StepResult, where: str) -> None:
        self.same(env, found.observation, expected.observation, where)
        for name in ("reward", "terminated", "truncated", "effect"):
            a, b = getattr(found, name), getattr(expected, name)
            if a != b and not (name == "reward" and math.isnan(a) and math.isnan(b)):
                raise Violated(f"{where}: {name} is {a!r}, expected {b!r}")

    def _fingerprints(self, env: Environment, found: str, expected: str) -> str:
        session = env._env if isinstance(env, Watched) else env
        now, then = fields_of(session), self.fields.get(expected, {})
        paths = differing(now, then) if then else []
        named = [path for path in paths if path not in self.restless] or paths
        if not named:
            seen = f"fingerprint is {found!r}, expected {expected!r}"
            return f"{seen}; no field of the session differs: look outside it, or at how the fingerprint is made"
        more = f"; {len(named) - 3} more fields differ" if len(named) > 3 else ""
        first = "; ".join(f"{path} {_versus(now.get(path), then.get(path))}" for path in named[:3])
        return f"another fingerprint, since the field {first}{more}"

    @property
    def repeatable(self) -> list[Move]:
        """The part of the script that is surely valid a second time: a stochastic world may answer otherwise."""
        return self.script[:1] if self.stochastic else self.script

    def may_execute(self, effect: Effect) -> bool:
        return self.sandboxed or self.live or not effect.needs_commit

    def needs_snapshots(self) -> None:
        if not self.ways & {Restore.FORK, Restore.STATE}:
            raise Skip("neither FORK nor STATE is declared")

    def needs_repeatable_steps(self) -> None:
        if self.stochastic:
            raise Skip("the world is stochastic")
        if not self.script:
            raise Skip("no action could be taken")


Clause = Callable[[Kit], Awaitable[None]]
CLAUSES: dict[str, tuple[str, Clause]] = {}
"""Every clause by name: its promise in words, and the check, which raises where the promise is broken."""


def clause(promise: str) -> Callable[[Clause], Clause]:
    def register(check: Clause) -> Clause:
        CLAUSES[getattr(check, "__name__", "").lstrip("_")] = (promise, check)
        return check

    return register


class Watched:
    """A session whose fields are kept after every call that shows something."""

    def __init__(self, env: Environment, kit: Kit) -> None:
        self._env, self._kit = env, kit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    async def reset(self, task: Task, key: int) -> Observation:
        shown = await self._env.reset(task, key)
        self._kit.remember(self._env, shown)
        return shown

    async def step(self, action: Action, key: int) -> StepResult:
        result = await self._env.step(action, key)
        self._kit.remember(self._env, result.observation)
        return result


def _versus(found: str | None, expected: str | None) -> str:
    if found is None or expected is None:
        return f"is missing, expected {expected}" if found is None else f"is {found}, and was not there before"
    return text_difference(found, expected)


async def play(env: Environment, moves: Sequence[Move]) -> list[StepResult]:
    return [await env.step(move.action, move.key) for move in moves]


async def play_as_recorded(kit: Kit, env: Environment, moves: Sequence[Move], where: str) -> None:
    for move in moves:
        kit.same_result(env, await env.step(move.action, move.key), move.result, f"{where}, {move.action}")
