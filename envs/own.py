"""Worlds of one's own, named 'module:thing': a class, an object, a suite, a ToolWorld, or a function that opens one.

    class Desk:                                  # nothing of ours in it: its public methods become tools
        effects = {"find": "read"}               # optional, as is `sandboxed`
        def find(self, word: str) -> str: ...

A class or object with `reset` and `step` is an environment and used as it is. Everything else is wrapped by ToolWorld.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import warnings
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.envs.naming import load_named, place_of
from treewright.envs.tools.state import copy_state
from treewright.envs.tools.world import ToolWorld
from treewright.envs.types import Environment, Suite, Task

__all__ = ["NoTasks", "Open", "bare_suite", "opener_of", "own_world", "suite_of"]

Open = Callable[[], Awaitable[Environment]]
log = logging.getLogger("treewright")

ENDS = ("done", "finish", "end_task")


def own_world(spec: str, what: str = "suite") -> Suite | Open:
    """What 'module:thing' names, as a suite or as an opener of sessions. Raises TreewrightError for what is neither."""
    return opener_of(load_named(spec, what), spec)


def opener_of(made: Any, spec: str) -> Suite | Open:
    """A suite as it is; of everything else a function that opens sessions.

    made  a class (called without arguments, or, where it is no environment, with the task), an object (each session
          gets a copy), a ToolWorld, a Suite, or a function that gives one of these; a coroutine function works too

    Raises TreewrightError for what cannot be opened so, and for methods that cannot be tools.
    """
    if isinstance(made, Suite):
        return made
    if isinstance(made, ToolWorld):
        return made.open
    if isinstance(made, ModuleType) or made is None or isinstance(made, (str, bytes, int, float, list, dict, tuple)):
        raise TreewrightError(
            f"{spec} is of type {type(made).__name__}; name a class, an object, a suite or a function"
        )
    if isinstance(made, type):
        return _of_class(made, spec)
    if is_environment(made):
        return _copies_of(made, spec)
    if inspect.isroutine(made) or isinstance(made, functools.partial):
        return _of_function(made, spec)
    return tool_world(made, spec).open


def bare_suite(spec: str) -> Suite:
    """The suite that 'module:thing' is, or gives; anything else has no tasks yet.

    Its `tasks` then raise TreewrightError saying how tasks are given.
    """
    return suite_of(load_named(spec, "suite"), spec)


def suite_of(made: Any, spec: str) -> Suite:
    """`bare_suite` of something that was loaded already; `spec` names it."""
    if inspect.isfunction(made) and not inspect.iscoroutinefunction(made) and not _required(made, spec):
        made = given if isinstance(given := _called(made, spec), Suite) else made
    found = opener_of(made, spec)
    if isinstance(found, Suite):
        return found
    return Suite(spec, NoTasks(spec), found)


@dataclass(frozen=True, slots=True)
class NoTasks:
    """The tasks of a world of one's own that brings none."""

    spec: str

    def __call__(self, split: str, count: int) -> Sequence[Task]:
        raise TreewrightError(
            f"{self.spec} has no tasks of its own; give a file of them, one a line such as "
            '{"id": "first", "goal": "what to do"}, and a reward: --tasks-file FILE.jsonl --reward MODULE:FUNCTION'
        )


def is_environment(made: Any) -> bool:
    """Has `reset` and `step`, as coroutine functions."""
    return all(inspect.iscoroutinefunction(getattr(made, name, None)) for name in ("reset", "step"))


def tool_world(made: Any, spec: str) -> ToolWorld:
    """An object, a class or a function of the task, with what its class says of effects and of being sandboxed."""
    kind = made if isinstance(made, type) else type(made)
    plain = inspect.isroutine(made) or isinstance(made, functools.partial)
    effects = {} if plain else getattr(kind, "effects", {})
    if not isinstance(effects, dict):
        raise TreewrightError(f"{spec}: effects must be a dict such as {{'find': 'read'}}, not {effects!r}")
    taken = set() if plain else set(dir(kind))
    end = next(end for end in (*ENDS, "treewright_done") if end not in taken)
    first: Any = "ready" if plain or "__str__" not in _defined(kind) else str
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            world = ToolWorld.of(made, effects=effects, name=spec, end=end, first=first)
    except TreewrightError as error:
        raise TreewrightError(f"{spec}: {error}") from error
    for one in told:  # whoever named a world wrote no line of Python that a warning could point at
        log.warning("%s", str(one.message).replace("sandboxed=", "in its class sandboxed = ", 1))
    return world


def _defined(kind: type) -> set[str]:
    return {name for base in kind.__mro__ if base is not object for name in vars(base)}


def _of_class(made: type, spec: str) -> Open:
    if issubclass(made, getattr(sys.modules.get("gymnasium"), "Env", ())):
        return _of_game(made, spec)
    needed = _required(made, spec)
    if not is_environment(made):
        if len(needed) > 1:
            raise TreewrightError(
                f"{spec} needs {', '.join(needed)}; it is called without arguments or with the task alone: name a "
                "function that makes it"
            )
        return tool_world(made, spec).open
    if needed:
        raise TreewrightError(f"{spec} needs {', '.join(needed)}; name a function without parameters that makes it")

    async def opened() -> Environment:
        return _called(made, spec)  # type: ignore[no-any-return]

    return opened


def _of_game(made: type, spec: str) -> Open:
    from treewright.envs.tools.gym import GymEnvironment

    async def opened() -> Environment:
        return await GymEnvironment(spec, made).opened()

    return opened


def _copies_of(made: Any, spec: str) -> Open:
    first = _copied(made, spec)  # what is used here later must not show in the sessions

    async def opened() -> Environment:
        return _copied(first, spec)  # type: ignore[no-any-return]

    return opened


def _copied(made: Any, spec: str) -> Any:
    try:
        return copy_state(made)
    except TreewrightError as error:
        raise TreewrightError(f"{spec} is one session and cannot be copied; name its class instead: {error}") from error


def _of_function(made: Callable[..., Any], spec: str) -> Open:
    needed = _required(made, spec)
    if len(needed) > 1:
        raise TreewrightError(f"{spec} needs {', '.join(needed)}; it is called without arguments or with the task")
    if needed:
        return tool_world(made, spec).open

    async def opened() -> Environment:
        given = _called(made, spec)
        given = await given if inspect.isawaitable(given) else given
        if is_environment(given):
            return given  # type: ignore[no-any-return]
        found = opener_of(given, f"what {spec}() gives")
        return await (found.open if isinstance(found, Suite) else found)()

    return opened


def _called(made: Callable[[], Any], spec: str) -> Any:
    try:
        return made()
    except TreewrightError:
        raise
    except (Exception, SystemExit) as error:
        raise TreewrightError(f"{spec}() raised {type(error).__name__}: {error}{place_of(error)}") from error


def _required(made: Callable[..., Any], spec: str) -> list[str]:
    """Names of the parameters that must be given."""
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):
        return []
    loose = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in loose]
