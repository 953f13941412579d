"""Any Gymnasium environment as a world: `--suites gym:FrozenLake-v1`, or `gym_suite` with words for its observations.

A reset with the task's seed and the same actions lead to the same state (Gymnasium's own rule), so REPLAY holds; where
the environment can be deep-copied, a copy is the snapshot. The fingerprint is a chain over actions and results, so two
ways to one state count as two. Environments that draw on screens or talk to simulators outside are replayed only.

That rule is Gymnasium's promise that steps may be taken any number of times, so these worlds count as sandboxed. One
that moves something real says `metadata = {"sandboxed": False}`: its steps are then of unknown effect, none is taken
while searching, and each waits for a commit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from treewright.envs.errors import InvalidAction, RestoreUnsupported, TreewrightError
from treewright.envs.tools.schema import check_action
from treewright.envs.types import (
    Action,
    BaseEnvironment,
    Effect,
    Observation,
    Restore,
    Snapshot,
    StepResult,
    Suite,
    Task,
    ToolSpec,
    digest,
)

__all__ = ["GymEnvironment", "action_schema", "gym_suite"]


@dataclass(frozen=True, slots=True)
class _At:
    """A state: the Gymnasium environment (never stepped while it is held here), its last words, whether it ended."""

    env: Any
    shown: Observation
    ended: bool


class GymEnvironment(BaseEnvironment):
    """One session. `describe(observation)` writes what the policy reads; default: the observation as a list."""

    def __init__(self, name: str, make: Callable[[], Any], describe: Callable[[Any], str] | None = None) -> None:
        self.name, self._env, self._describe = name, make(), describe or _words
        self._ended, self._shared, self._shown = True, False, Observation("")
        schema = action_schema(self._env.action_space)
        parameters = {"type": "object", "properties": {"action": schema}, "required": ["action"]}
        self.sandboxed = (getattr(self._env, "metadata", None) or {}).get("sandboxed", True) is True
        self._effect = Effect.REVERSIBLE if self.sandboxed else Effect.UNKNOWN
        self._specs = (ToolSpec("act", "takes one step", parameters, self._effect),)
        self.restore_ways = frozenset({Restore.REPLAY} | ({Restore.FORK} if _copies(self._env) else set()))

    async def reset(self, task: Task, key: int) -> Observation:
        self._own()
        seen, _ = self._env.reset(seed=task.seed % 2**31)
        self._ended = False
        return self._show(seen, digest(self.name, str(task.seed)))

    async def step(self, action: Action, key: int) -> StepResult:
        if self._ended:
            raise InvalidAction("the episode is over")
        check_action(action, self._specs)
        if len(action.calls) != 1:
            raise InvalidAction("act is called once a turn")
        value = _value(self._env.action_space, action.arguments["action"])
        self._own()
        seen, reward, terminated, truncated, _ = self._env.step(value)
        self._ended = bool(terminated or truncated)
        end = f"{float(reward)} {terminated} {truncated}"
        shown = self._show(seen, digest(self._shown.fingerprint, action.key, end, self._describe(seen)))
        return StepResult(shown, float(reward), bool(terminated), bool(truncated), self._effect)

    async def actions(self) -> Sequence[ToolSpec]:
        return self._specs

    async def snapshot(self) -> Snapshot:
        if Restore.FORK not in self.restore_ways:
            return await super().snapshot()
        self._shared = True
        return Snapshot(Restore.FORK, _At(self._env, self._shown, self._ended), self._shown.fingerprint, 1 << 14)

    async def restore(self, snapshot: Snapshot) -> Observation:
        if not isinstance(snapshot.data, _At):
            raise RestoreUnsupported(f"{self.name} cannot restore a {snapshot.kind} snapshot; it did not make it")
        self._env, self._shown, self._ended = snapshot.data.env, snapshot.data.shown, snapshot.data.ended
        self._shared = True
        return self._shown

    async def close(self) -> None:
        if not self._shared:
            self._env.close()

    def _own(self) -> None:
        if self._shared:
            self._env, self._shared = copy.deepcopy(self._env), False

    def _show(self, seen: Any, fingerprint: str) -> Observation:
        self._shown = Observation(self._describe(seen), fingerprint)
        return self._shown


def gym_suite(
    id: str,
    *,
    describe: Callable[[Any], str] | None = None,
    goal: str | None = None,
    horizon: int = 200,
    **options: Any,
) -> Suite:
    """A suite over `gymnasium.make(id, **options)`; the seed of a task is its index, even ones train, odd ones test.

    Raises TreewrightError where gymnasium is missing or does not know the environment.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise TreewrightError(f"gym:{id} needs gymnasium; type: pip install 'treewright[gym]'") from error
    try:
        gymnasium.spec(id)
    except gymnasium.error.Error as error:
        raise TreewrightError(f"gym:{id}: {error}") from error
    name = f"gym:{id}"

    async def open_session() -> GymEnvironment:
        return GymEnvironment(name, lambda: gymnasium.make(id, **options), describe)

    def tasks(split: str, count: int) -> Sequence[Task]:
        told = goal or f"act in {id} for as much reward as you can"
        odd = split == "test"
        return [Task(name, f"{split}-{i}", told, 2 * i + odd, split, horizon) for i in range(count)]

    return Suite(name, tasks, open_session, description=f"Gymnasium's {id}")


def action_schema(space: Any) -> dict[str, Any]:
    """The JSON schema of a space's members. Raises TreewrightError for kinds that JSON cannot say."""
    kind = type(space).__name__
    if kind == "Discrete":
        return {"type": "integer", "minimum": int(space.start), "maximum": int(space.start + space.n - 1)}
    if kind in ("Box", "MultiDiscrete", "MultiBinary"):
        inner: dict[str, Any] = {"type": "number" if np.issubdtype(space.dtype, np.floating) else "integer"}
        for size in reversed(space.shape):
            inner = {"type": "array", "items": inner, "minItems": int(size), "maxItems": int(size)}
        return inner
    if kind == "Text":
        return {"type": "string", "minLength": int(space.min_length), "maxLength": int(space.max_length)}
    if kind == "Dict":
        inner = {key: action_schema(value) for key, value in space.spaces.items()}
        return {"type": "object", "properties": inner, "required": list(inner), "additionalProperties": False}
    if kind == "Tuple":
        inner = {"type": "array", "prefixItems": [action_schema(value) for value in space.spaces]}
        return {**inner, "minItems": len(space.spaces), "maxItems": len(space.spaces)}
    raise TreewrightError(f"actions of a {kind} space cannot be written as JSON; wrap the environment")


def _value(space: Any, given: Any) -> Any:
    kind = type(space).__name__
    if kind == "Dict":
        return {key: _value(inner, given[key]) for key, inner in space.spaces.items()}
    if kind == "Tuple":
        return tuple(_value(inner, item) for inner, item in zip(space.spaces, given, strict=True))
    try:
        value = np.asarray(given, dtype=space.dtype) if kind not in ("Text", "Discrete") else given
    except OverflowError as error:
        raise InvalidAction(f"act action: {error}") from error
    value = int(value) if kind == "Discrete" else value
    if not space.contains(value):
        raise InvalidAction(f"act action: {given!r} is not in {space}")
    return value


def _copies(env: Any) -> bool:
    try:
        copy.deepcopy(env)
    except Exception:
        return False  # whatever an environment holds that cannot be copied: it is replayed instead
    return True


def _words(seen: Any) -> str:
    if isinstance(seen, dict):
        return ", ".join(f"{key}: {_words(value)}" for key, value in seen.items())
    if isinstance(seen, tuple):
        return " | ".join(map(_words, seen))
    if isinstance(seen, np.ndarray):
        return str(np.round(seen, 4).tolist())
    return str(seen)
