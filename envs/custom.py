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
import inspect
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from treewright.envs.errors import EnvFault, RestoreUnsupported, TreewrightError, shown_by
from treewright.envs.lines import BadLine, json_lines, whole_text
from treewright.envs.naming import import_named, load_named, place_of
from treewright.envs.own import NoTasks, opener_of, own_world
from treewright.envs.registry import SCHEMES, refuse_misspelt, suite
from treewright.envs.tools.aside import Aside
from treewright.envs.tools.world import ToolWorld
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

Reward = Callable[[Task, Sequence[Turn]], float] | Callable[[Task, Sequence[Turn], Any], float]
"""Success of a finished episode, usually in [0, 1]. `history` begins with what reset showed (its action is None) and
has one turn for each executed action; a third parameter gets the object behind the session as the episode left it: the
object whose methods are the tools, or the environment. Runs in a thread, so it may be slow; it must not change its
arguments."""

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
    count as not given where they are null or empty. A line that is no task, has the id of an earlier one, or holds NaN
    or Infinity, which JSON does not have, is left out, and a warning counts them and names the first by line. Half
    surrogates become U+FFFD. Raises TreewrightError if no task is left, naming the file, the line and the field, with
    the nearest known field for a misspelt one.
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
                        f"{path}, line {number}: id {task.id!r} was used in line {lines[task.id]} already; give another"
                    )
            except TreewrightError as error:
                wrong.append(str(error))
                continue
            tasks[task.id], lines[task.id] = task, number
    except (OSError, UnicodeError) as error:
        raise TreewrightError(
            f"cannot read tasks from {path}: {error}; name a file with one JSON object a line"
        ) from error
    if not tasks:
        none = f'{path} holds no task; write one a line: {{"id": "first", "goal": "what to do"}}'
        more = f" (and {len(wrong) - 1} more wrong lines)" if len(wrong) > 1 else ""
        raise TreewrightError(wrong[0] + more if wrong else none)
    if wrong:
        told = "; ".join(wrong[:SHOWN]) + (f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else "")
        log.warning("%d tasks read, %d lines left out: %s", len(tasks), len(wrong), told)
    return list(tasks.values())


def _task(where: str, fields: Any, suite: str) -> Task:
    if isinstance(fields, BadLine):
        raise TreewrightError(
            f'{where}: {fields.why}; a task is an object such as {{"id": "first", "goal": "what to do"}}'
        )
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
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise TreewrightError(f"{where}: field {name!r} must be an integer of at most 64 bits, not {value}")
    if name == "horizon" and isinstance(value, int) and value < 1:
        raise TreewrightError(f"{where}: field 'horizon' must be at least 1, not {value}")
    if isinstance(value, dict) and not _is_json(value):
        raise TreewrightError(
            f"{where}: field {name!r} holds NaN, Infinity or a number as large as that, which JSON does not have; "
            "write null or a text"
        )


def _is_json(value: dict[str, Any]) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


# -- suite ----------------------------------------------------------------------------------------------------------


def custom_suite(
    name: str,
    tasks_path: str | Path,
    open: Any,
    reward: str | Reward | None = None,
    *,
    description: str = "",
    max_tokens: int | None = None,
) -> Suite:
    """A suite of own tasks.

    open    the name of a built-in suite, whose world is used, or a world of one's own: 'module:thing' or the thing, a
            class, an object, a suite, a ToolWorld or a function that opens a session; see treewright.envs.own
    reward  a function (task, history) -> float, or (task, history, object) where it reads what lies behind the session
            too, or 'module:function' of one. None: the world's own rewards count
    max_tokens  of one action; None leaves it to search.max_tokens

    `tasks(split, count)` gives the first `count` tasks of the split in the order of the file, fewer if it has fewer.
    Raises TreewrightError for whatever is wrong with the arguments or the file, before any episode begins.
    """
    tasks = load_tasks(tasks_path, name)
    judge = load_named(reward, "reward") if isinstance(reward, str) else reward
    if judge is not None:
        check_reward(judge, f"reward = {reward!r}" if isinstance(reward, str) else "reward")
    named = isinstance(open, str) and (":" not in open or open.partition(":")[0] in SCHEMES)
    label = open if isinstance(open, str) else "open"
    if isinstance(open, str) and not named:
        refuse_misspelt(open)
    world = suite(open) if named else own_world(open, "open") if isinstance(open, str) else opener_of(open, label)
    base = world if isinstance(world, Suite) else Suite(name, lambda split, count: [], world, max_tokens=None)

    async def open_session() -> Environment:
        inner = await base.open()
        if judge is None:
            return _judging(inner, label)
        return JudgedEnvironment(inner, judge, name, tell_truth=named and not isinstance(base.tasks, NoTasks))

    def of(split: str, count: int) -> Sequence[Task]:
        found = [task for task in tasks if task.split == split]
        if not found:
            raise TreewrightError(f'{tasks_path} has no task with "split": "{split}"; add some or use another split')
        return found[:count]

    return replace(
        base, name=name, tasks=of, open=open_session, oracle=None, description=description,
        max_tokens=max_tokens or base.max_tokens, origin=_origin(open, reward),
    )  # fmt: skip


def _origin(open: Any, reward: str | Reward | None) -> dict[str, str]:
    """What world and reward are called, where they were named."""
    world = {"world": open} if isinstance(open, str) else {}
    return world if callable(reward) else {**world, "reward": reward or "the world's own"}


def _judging(inner: Environment, label: str) -> Environment:
    """The world itself, where it knows rewards of its own."""
    if isinstance(inner, ToolWorld) and not inner.judged:
        raise TreewrightError(
            f"{label} has no reward of its own; name a function (task, history) -> float: --reward MODULE:FUNCTION"
        )
    return inner


PLAIN = "write it as a plain function, def reward(task, history): it runs in a thread and may wait there"


def check_reward(judge: Any, label: str) -> bool:
    """True where a reward function takes the object, too.

    Raises TreewrightError for what is no function of (task, history) or (task, history, object), and for async ones.
    """
    if not callable(judge):
        raise TreewrightError(f"{label} must be a function (task, history) -> float, not {judge!r}")
    if inspect.iscoroutinefunction(judge) or inspect.iscoroutinefunction(getattr(judge, "__call__", None)):  # noqa: B004
        raise TreewrightError(f"{label} is async; {PLAIN}")
    try:
        signature = inspect.signature(judge)
    except (TypeError, ValueError):
        return False
    fits = [count for count in (2, 3) if _binds(signature, count)]
    if not fits:
        raise TreewrightError(f"{label} takes {signature}; it must take (task, history) or (task, history, object)")
    third = list(signature.parameters.values())[2:3]
    return fits == [3] or (3 in fits and bool(third) and third[0].name in ("object", "obj", "world", "env"))


def _binds(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


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
        self._sees_object, self._aside = check_reward(reward, f"the reward of {name!r}"), Aside()
        self.task: Task | None = None
        self.history: tuple[Turn, ...] = ()

    @property
    def object(self) -> Any:
        """What lies behind the session: an object with tools, else the inner environment itself. Only to be read."""
        try:
            return self.inner.object  # type: ignore[attr-defined]
        except AttributeError:
            return self.inner

    async def reset(self, task: Task, key: int) -> Observation:
        told = task if self.tell_truth else replace(task, truth={})
        seen = shown_by(await self.inner.reset(told, key), Observation, "reset")
        self.task, self.history = task, (Turn(None, seen),)
        return seen

    async def step(self, action: Action, key: int) -> StepResult:
        if self.task is None:
            raise TreewrightError(f"{self.name}: step before reset; call reset(task, key) first")
        result = shown_by(await self.inner.step(action, key), StepResult, "step")
        self.history = (*self.history, Turn(action, result.observation))
        truncated = result.truncated or (not result.terminated and len(self.history) > self.task.horizon)
        over = result.terminated or truncated
        return replace(result, reward=await self._judge(self.task) if over else 0.0, truncated=truncated)

    async def _judge(self, task: Task) -> float:
        """The reward. Raises EnvFault where the function fails, so that this end is masked and no other."""
        try:
            if self._sees_object:
                value = await self._aside.run("reward", self.reward, task, self.history, self.object)
            else:
                value = await asyncio.to_thread(cast(Callable[..., Any], self.reward), task, self.history)
        except (Exception, SystemExit) as error:
            what = f"{type(error).__name__}: {error}{place_of(error)}"
            raise EnvFault(f"the reward function of {self.name!r} failed on task {task.id!r}: {what}") from error
        if inspect.iscoroutine(value):
            value.close()
            raise EnvFault(f"the reward function of {self.name!r} is async; {PLAIN}")
        try:
            number = float(value)  # of numpy and torch, too
        except (TypeError, ValueError):
            number = math.nan
        if isinstance(value, str) or not math.isfinite(number):
            what = f"the reward function of {self.name!r} gave {value!r} for task {task.id!r}"
            raise EnvFault(f"{what}; it must give a finite number")
        return number

    async def actions(self) -> Sequence[ToolSpec]:
        return await self.inner.actions()

    async def effect(self, action: Action) -> Effect:
        return await self.inner.effect(action)

    async def recognise(self, fingerprint: str, step: int) -> float | None:
        judge = getattr(self.inner, "recognise", None)
        return None if judge is None else await judge(fingerprint, step)

    async def snapshot(self) -> Snapshot:
        inner = await self.inner.snapshot()
        if self.task is None:
            raise TreewrightError(f"{self.name}: snapshot before reset; call reset(task, key) first")
        if inner.kind is Restore.FORK:
            return Snapshot(Restore.FORK, _Held(self.task, self.history, inner), inner.fingerprint, size=inner.size)
        data = _pack(self.task, self.history, inner)
        return Snapshot(Restore.STATE, data, inner.fingerprint, size=len(data))

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
        inner = Snapshot(Restore.STATE, state["inner"], snapshot.fingerprint, size=state["size"])
        return _Held(Task(**state["task"]), turns, inner)
    except (ValueError, KeyError, TypeError) as error:
        raise RestoreUnsupported(f"{name} cannot restore this snapshot: it is damaged or not one of its own") from error
