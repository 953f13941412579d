"""Any Gymnasium environment as a world: `--suites gym:FrozenLake-v1`, or `gym_suite` with words for its observations.

    gym:CartPole-v1    gym:FrozenLake-v1?is_slippery=false    gym:mymodule:my/Game-v0    gym:minigrid:MiniGrid-Fetch-v0

A reset with the task's seed and the same actions lead to the same state (Gymnasium's own rule), so REPLAY holds; where
the environment can be deep-copied, FORK does too. The fingerprint is a chain over actions and results, so two ways to
one state count as two. What an environment raises on an action is shown to the policy as an error, and the episode
goes on. Every session has a thread of its own, so a slow environment holds up nothing else.

That rule is Gymnasium's promise that steps may be taken any number of times, so these worlds count as sandboxed. One
that moves something real says `metadata = {"sandboxed": False}`: its steps are then of unknown effect, none is taken
while searching, and each waits for a commit.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from treewright.envs.errors import InvalidAction, RestoreUnsupported, TreewrightError
from treewright.envs.lines import json_value
from treewright.envs.naming import import_named, modules_here
from treewright.envs.tools.gym_game import Game, Place
from treewright.envs.tools.gym_spaces import action_schema
from treewright.envs.tools.lane import Lane
from treewright.envs.tools.schema import check_action
from treewright.envs.types import (
    Action,
    BaseEnvironment,
    Observation,
    Restore,
    Snapshot,
    StepResult,
    Suite,
    Task,
    ToolSpec,
)

__all__ = ["GymEnvironment", "action_schema", "gym_suite"]

FORM = re.compile(r"(?:(?P<module>[^:?/]+):)?(?P<id>[^?]*)(?:\?(?P<options>.*))?", re.DOTALL)


class GymEnvironment(BaseEnvironment):
    """One session. `describe(observation)` writes what the policy reads; default: the observation as a list.

    The actions are those of the action space, narrowed to what the present state allows where the environment's
    `info` says it (`action_mask`, `admissible_commands`). Restore ways are known once it is opened.
    """

    def __init__(self, name: str, make: Callable[[], Any], describe: Callable[[Any], str] | None = None) -> None:
        self.name, self._opened = name, False
        self._lane, self._game = Lane(name), Game(name, make, describe)

    async def opened(self) -> GymEnvironment:
        """Makes the Gymnasium environment, once."""
        if not self._opened:
            await self._lane.run(self._game.open)
            self._opened, self.sandboxed = True, self._game.sandboxed
            self.restore_ways = frozenset({Restore.REPLAY} | ({Restore.FORK} if self._game.copies else set()))
        return self

    @property
    def object(self) -> Any:
        """The environment itself, without Gymnasium's wrappers; for a reward to read."""
        return self._game.env.unwrapped

    async def reset(self, task: Task, key: int) -> Observation:
        await self.opened()
        return await self._lane.run(self._game.reset, task.seed % 2**31, dict(task.data) or None)

    async def step(self, action: Action, key: int) -> StepResult:
        if self._game.ended:
            raise InvalidAction("the episode is over")
        check_action(action, self._game.specs)
        if len(action.calls) != 1:
            raise InvalidAction("act is called once a turn")
        return await self._lane.run(self._game.step, action)

    async def actions(self) -> Sequence[ToolSpec]:
        return (await self.opened())._game.specs

    async def snapshot(self) -> Snapshot:
        if Restore.FORK not in self.restore_ways:
            return await super().snapshot()
        place, size = await self._lane.run(self._game.hold)
        return Snapshot(Restore.FORK, place, place.shown.fingerprint, size=size)

    async def restore(self, snapshot: Snapshot) -> Observation:
        if not isinstance(snapshot.data, Place):
            raise RestoreUnsupported(f"{self.name} cannot restore a {snapshot.kind} snapshot; it did not make it")
        await self.opened()
        return await self._lane.run(self._game.go, snapshot.data)

    async def close(self) -> None:
        if self._opened:
            await self._lane.run(self._game.close)


def gym_suite(
    id: str,
    *,
    describe: Callable[[Any], str] | None = None,
    goal: str | None = None,
    horizon: int = 200,
    **options: Any,
) -> Suite:
    """A suite over `gymnasium.make(id, **options)`; the seed of a task is its index, even ones train, odd ones test.

    id  as gymnasium.make takes it: 'module:Id-v0' imports the module that registers it first, one in the working
        directory too; options may follow, `FrozenLake-v1?is_slippery=false&map_name=8x8`, as JSON or plain text

    A task's `data` is given to reset as its options. Raises TreewrightError where gymnasium or the module is missing,
    for an id that nobody registered and for options that the environment does not take.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise TreewrightError(f"gym:{id} needs gymnasium; type: pip install 'treewright[gym]'") from error
    found = FORM.fullmatch(id)
    module, known, told = (found["module"], found["id"], found["options"]) if found else (None, id, None)
    options = {**_read_options(id, told), **options}
    if module is not None:
        _import(id, module)
    spec = _spec(gymnasium, id, module, known)
    _check_options(id, spec, options)
    name = f"gym:{id}"

    async def open_session() -> GymEnvironment:
        return await GymEnvironment(name, lambda: gymnasium.make(spec, **options), describe).opened()

    def tasks(split: str, count: int) -> Sequence[Task]:
        told = goal or f"act in {known} for as much reward as you can"
        odd = split == "test"
        return [Task(name, f"{split}-{i}", told, seed=2 * i + odd, split=split, horizon=horizon) for i in range(count)]

    return Suite(name, tasks, open_session, description=f"Gymnasium's {known}")


def _read_options(id: str, told: str | None) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for part in filter(None, (told or "").split("&")):
        key, equals, text = part.partition("=")
        if not equals or not key.isidentifier():
            raise TreewrightError(f"gym:{id}: {part!r} is no option; write gym:ID?name=value&other=value")
        try:
            out[key] = json_value(text)
        except json.JSONDecodeError:
            out[key] = text
    return out


def _import(id: str, module: str) -> None:
    try:
        import_named(module)
    except ImportError as error:
        raise TreewrightError(
            f"gym:{id}: cannot import {module!r}, which should register it: {error}; install it"
        ) from error


def _spec(gymnasium: Any, id: str, module: str | None, known: str) -> Any:
    """The registered description of an environment; the newest where the id has no version, as gymnasium.make does."""
    from gymnasium.envs.registration import find_highest_version, get_env_id, parse_env_id

    try:
        space, name, version = parse_env_id(known)
        newest = find_highest_version(space, name) if version is None else None
        return gymnasium.spec(known if newest is None else get_env_id(space, name, newest))
    except gymnasium.error.Error as error:
        near = difflib.get_close_matches(known, list(gymnasium.registry), n=1)
        hint = f"did you mean gym:{near[0]}?" if near else "`gymnasium.pprint_registry()` lists what is registered"
        if module is None and ("/" in known or not near):
            hint = f"if a module registers it, name that one too: gym:MODULE:{known}"
        raise TreewrightError(f"gym:{id}: {str(error).rstrip('.')}; {hint}") from error


def _check_options(id: str, spec: Any, options: dict[str, Any]) -> None:
    """Refuses what neither gymnasium.make nor the environment takes, before any session is opened."""
    from gymnasium.envs.registration import load_env_creator, make

    try:
        with modules_here():
            creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    except Exception as error:  # a simulator that is not installed, say
        raise TreewrightError(f"gym:{id} cannot be loaded: {type(error).__name__}: {error}") from error
    try:
        taken = inspect.signature(creator).parameters.values()
    except (TypeError, ValueError):
        return  # what cannot be looked into is judged by gymnasium.make, when a session is opened
    names = [p.name for p in taken] + [p.name for p in inspect.signature(make).parameters.values()][1:]
    unknown = [key for key in options if key not in names]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in taken):
        near = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(p.name for p in taken) or 'none'}"
        raise TreewrightError(f"gym:{id}: no option {unknown[0]!r}; {hint}")
