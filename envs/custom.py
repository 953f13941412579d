"""Own tasks: a file of JSON lines and a reward function, in any world.

    suite = custom_suite("jugs", "tasks.jsonl", open="my_module:Jugs", reward="my_module:reward")

    {"id": "four", "goal": "measure 4 litres", "data": {"sizes": [3, 5]}, "truth": {"litres": 4}}

The world's own rewards are ignored: `reward(task, history)` alone decides, from what was done and shown. A world of
one's own never receives `truth`, so it cannot show it; a built-in world does, because it judges by it while it runs
(its fields must then be given: `answers` in stdlib, `answer` in kg).
"""

from __future__ import annotations

import asyncio
import base64
import difflib
import importlib
import inspect
import json
import logging
import math
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from treewright.envs.errors import RestoreUnsupported, TreewrightError
from treewright.envs.lines import BadLine, json_lines, whole_text
from treewright.envs.registry import SCHEMES, names, suite
from treewright.envs.types import (
    Action,
    Effect,
    Environment,
    Observation,
    Restore,
    Snapshot,
    StepResult,
    Suite,
    Task,
    ToolSpec,
    Turn,
    is_sandboxed,
)

__all__ = ["JudgedEnvironment", "Reward", "custom_suite", "import_named", "load_named", "load_tasks"]

log = logging.getLogger("treewright")

Reward = Callable[[Task, Sequence[Turn]], float]
"""Success of a finished episode, usually in [0, 1]. `history` begins with what reset showed (its action is None) and
has one turn for each executed action. Runs in a thread, so it may be slow; it must not change its arguments."""

Open = Callable[[], Awaitable[Environment]]

FIELDS: dict[str, type] = {
    "id": str, "goal": str, "seed": int, "split": str, "horizon": int, "data": dict, "truth": dict,
}  # fmt: skip
WORDS = {str: "a string", int: "an integer", dict: "an object"}
NEEDED = ("id", "goal")
SPLITS = ("train", "test")
SHOWN = 5  # wrong lines that a warning spells out


# -- tasks ----------------------------------------------------------------------------------------------------------


def load_tasks(path: str | Path, suite: str) -> list[Task]:
    """The tasks of a file, one JSON object a line; empty lines are skipped.

    id and goal are required; seed (0), split ('train' or 'test'; train), horizon (8), data and truth ({}) are not, and
    count as not given where they are null or empty. A line that is no task, or has the id of an earlier one, is left
    out, and a warning counts them by line. Half surrogates become U+FFFD. Raises TreewrightError if no task is left,
    naming the file, the line and the field, with the nearest known field for a misspelt one.
    """
    tasks: dict[str, Task] = {}
    lines: dict[str, int] = {}
    wrong: list[str] = []
    try:
        for number, fields in json_lines(Path(path)):
            try:
                task = _task(f"{path}, line {number}", fields, suite)
                if task.id in tasks:
                    raise TreewrightError(
                        f"{path}, line {number}: id {task.id!r} was used in line {lines[task.id]} already"
                    )
            except TreewrightError as error:
                wrong.append(str(error))
                continue
            tasks[task.id], lines[task.id] = task, number
    except (OSError, UnicodeError) as error:
        raise TreewrightError(f"cannot read tasks from {path}: {error}") from error
    if not tasks:
        none = f'{path} holds no task; write one a line: {{"id": "first", "goal": "what to do"}}'
        more = f" (and {len(wrong) - 1} more wrong lines)" if len(wrong) > 1 else ""
        raise TreewrightError(wrong[0] + more if wrong else none)
    if wrong:
        log.warning("%d tasks read, %d lines left out: %s", len(tasks), len(wrong), "; ".join(wrong[:SHOWN]))
    return list(tasks.values())


def _task(where: str, fields: Any, suite: str) -> Task:
    if isinstance(fields, BadLine):
        raise TreewrightError(f"{where}: {fields.why}")
    if not isinstance(fields, dict):
        raise TreewrightError(f'{where}: a task is an object such as {{"id": "first", "goal": "what to do"}}')
    optional = FIELDS.keys() - set(NEEDED)
    given = {name: v for name, v in whole_text(fields).items() if name not in optional or v not in (None, "")}
    for name, value in given.items():
        _check_field(where, name, value)
    for name in NEEDED:
        if not given.get(name):
            raise TreewrightError(f"{where}: field {name!r} is missing or empty; every task needs one")
    return Task(suite, **given)


def _check_field(where: str, name: str, value: object) -> None:
    if name not in FIELDS:
        near = difflib.get_close_matches(name, FIELDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(FIELDS)}"
        raise TreewrightError(f"{where}: no field named {name!r}; {hint} (own fields go into 'data' or 'truth')")
    if not isinstance(value, FIELDS[name]) or isinstance(value, bool):
        raise TreewrightError(f"{where}: field {name!r} must be {WORDS[FIELDS[name]]}, not {json.dumps(value)[:60]}")
    if name == "split" and value not in SPLITS:
        raise TreewrightError(f"{where}: field 'split' must be 'train' or 'test', not {value!r}")
    if name == "horizon" and isinstance(value, int) and value < 1:
        raise TreewrightError(f"{where}: field 'horizon' must be at least 1, not {value}")


# -- suite ----------------------------------------------------------------------------------------------------------


def custom_suite(
    name: str,
    tasks_path: str | Path,
    open: str | Open,
    reward: str | Reward,
    *,
    description: str = "",
    max_tokens: int | None = None,
) -> Suite:
    """A suite of own tasks.

    open    a coroutine function that gives a session, 'module:Class' (called without arguments; a coroutine function
            works too) or the name of a built-in suite, whose world is used
    reward  a function (task, history) -> float or 'module:function'

    `tasks(split, count)` gives the first `count` tasks of the split in the order of the file, fewer if it has fewer.
    Raises TreewrightError for whatever is wrong with the arguments or the file, before any episode begins.
    """
    tasks = load_tasks(tasks_path, name)
    judge = load_named(reward, "reward") if isinstance(reward, str) else reward
    if not callable(judge):
        raise TreewrightError(f"reward must be a function (task, history) -> float, not {judge!r}")
    named = isinstance(open, str) and (":" not in open or open.partition(":")[0] in SCHEMES)
    inner = suite(open) if named and isinstance(open, str) else None
    opener = inner.open if inner else _opener(open)

    async def open_session() -> Environment:
        return JudgedEnvironment(await opener(), judge, name, tell_truth=inner is not None)

    def of(split: str, count: int) -> Sequence[Task]:
        found = [task for task in tasks if task.split == split]
        if not found:
            raise TreewrightError(f'{tasks_path} has no task with "split": "{split}"; add some or use another split')
        return found[:count]

    base = inner or Suite(name, of, open_session)
    return replace(
        base, name=name, tasks=of, open=open_session, oracle=None, description=description,
        max_tokens=max_tokens or base.max_tokens,
    )  # fmt: skip


def _opener(open: str | Open) -> Open:
    made = load_named(open, "open") if isinstance(open, str) else open
    if not callable(made):
        raise TreewrightError(f"open must be a coroutine function, 'module:Class' or a suite's name, not {made!r}")

    async def opened() -> Environment:
        env = made()
        return await env if inspect.isawaitable(env) else env

    return opened


def import_named(name: str) -> ModuleType:
    """The module of that name: an installed one, else one that lies in the working directory.

    A console script does not look for modules where it was started, but that is where people have theirs. The working
    directory is last in the search path and only while the module is imported, so it hides no installed package.
    Raises ImportError as importlib does.
    """
    here = os.getcwd()
    if here in sys.path:
        return importlib.import_module(name)
    sys.path.append(here)
    try:
        importlib.invalidate_caches()
        return importlib.import_module(name)
    finally:
        with suppress(ValueError):  # the module may have tidied up itself
            sys.path.remove(here)


def load_named(spec: str, what: str) -> Any:
    """The object that 'module:name' names. Raises TreewrightError saying which half is wrong and what is near."""
    module_name, colon, attribute = spec.partition(":")
    if not colon or not module_name or not attribute:
        known = f" or a suite's name: {', '.join(names())}" if what == "open" else ""
        raise TreewrightError(f"{what} = {spec!r} is not of the form 'module:name'{known}")
    try:
        module = import_named(module_name)
    except ImportError as error:
        raise TreewrightError(f"{what} = {spec!r}: cannot import {module_name!r}: {error}") from error
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        raise TreewrightError(
            f"{what} = {spec!r}: module {module_name!r} has no {attribute!r}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    return getattr(module, attribute)


# -- environment ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Held:
    """What a FORK snapshot holds: live objects of this process."""

    task: Task
    history: tuple[Turn, ...]
    inner: Snapshot


class JudgedEnvironment:
    """Another environment with its rewards replaced by a reward function.

    The history of turns is part of the state, so every snapshot carries it: as JSON beside the inner bytes (STATE) or
    as the objects themselves (FORK). The function is asked once, when the episode ends: when the world ends it or
    `task.horizon` actions were executed. Turns that were no valid action do not reach a world; an episode that runs
    out of turns because of them ends without being judged, with reward 0.

    Fingerprints are the inner world's. Two histories can therefore share one, and get different rewards.
    """

    def __init__(self, inner: Environment, reward: Reward, name: str, *, tell_truth: bool = False) -> None:
        self.inner, self.reward, self.name, self.tell_truth = inner, reward, name, tell_truth
        self.restore_ways = inner.restore_ways
        self.sandboxed, self.stochastic = is_sandboxed(inner), inner.stochastic
        self.task: Task | None = None
        self.history: tuple[Turn, ...] = ()

    async def reset(self, task: Task, key: int) -> Observation:
        seen = await self.inner.reset(task if self.tell_truth else replace(task, truth={}), key)
        self.task, self.history = task, (Turn(None, seen),)
        return seen

    async def step(self, action: Action, key: int) -> StepResult:
        if self.task is None:
            raise TreewrightError(f"{self.name}: step before reset; call reset(task, key) first")
        result = await self.inner.step(action, key)
        self.history = (*self.history, Turn(action, result.observation))
        truncated = result.truncated or (not result.terminated and len(self.history) > self.task.horizon)
        over = result.terminated or truncated
        return replace(result, reward=await self._judge(self.task) if over else 0.0, truncated=truncated)

    async def _judge(self, task: Task) -> float:
        try:
            value = await asyncio.to_thread(self.reward, task, self.history)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise TreewrightError(f"the reward function of {self.name!r} failed on task {task.id!r}: {what}") from error
        if isinstance(value, bool | int | float) and math.isfinite(value):
            return float(value)
        what = f"the reward function of {self.name!r} gave {value!r} for task {task.id!r}"
        raise TreewrightError(f"{what}; it must give a finite number")

    async def actions(self) -> Sequence[ToolSpec]:
        return await self.inner.actions()

    async def effect(self, action: Action) -> Effect:
        return await self.inner.effect(action)

    async def snapshot(self) -> Snapshot:
        inner = await self.inner.snapshot()
        if self.task is None:
            raise TreewrightError(f"{self.name}: snapshot before reset; call reset(task, key) first")
        if inner.kind is Restore.FORK:
            return Snapshot(Restore.FORK, _Held(self.task, self.history, inner), inner.fingerprint, inner.size)
        data = _pack(self.task, self.history, inner)
        return Snapshot(Restore.STATE, data, inner.fingerprint, len(data))

    async def restore(self, snapshot: Snapshot) -> Observation:
        if snapshot.kind is Restore.FORK and isinstance(snapshot.data, _Held):
            held = snapshot.data
        elif snapshot.kind is Restore.STATE:
            held = _unpack(snapshot, self.name)
        else:
            raise RestoreUnsupported(f"{self.name} cannot restore a {snapshot.kind} snapshot that it did not make")
        seen = await self.inner.restore(held.inner)
        self.task, self.history = held.task, held.history
        return seen

    async def close(self) -> None:
        await self.inner.close()


# -- state as JSON --------------------------------------------------------------------------------------------------


def _pack(task: Task, history: Sequence[Turn], inner: Snapshot) -> bytes:
    turns = [[turn.action.key if turn.action else None, asdict(turn.observation)] for turn in history]
    state = {"task": asdict(task), "turns": turns, "size": inner.size, "inner": bytes(inner.data)}
    return json.dumps(state, default=_encode).encode()


def _encode(value: object) -> object:
    if isinstance(value, bytes):
        return {"$base64": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _decode(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["$base64"]) if value.keys() == {"$base64"} else value


def _unpack(snapshot: Snapshot, name: str) -> _Held:
    try:
        state = json.loads(snapshot.data, object_hook=_decode)
        turns = tuple(
            Turn(Action.from_key(key) if key else None, Observation(**{**seen, "parts": tuple(seen["parts"])}))
            for key, seen in state["turns"]
        )
        inner = Snapshot(Restore.STATE, state["inner"], snapshot.fingerprint, state["size"])
        return _Held(Task(**state["task"]), turns, inner)
    except (ValueError, KeyError, TypeError) as error:
        raise RestoreUnsupported(f"{name} cannot restore this snapshot: it is damaged or not one of its own") from error
