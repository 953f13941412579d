"""Any Python object as a world: its methods are the actions, a deep copy is the snapshot, a hash the fingerprint.

    world = ToolWorld.of(Bank(), effects={"balance": "read"}, judge=lambda end: end.object.balance("ada") == 20)
    tree = await search(Task("bank", "first", "give ada 20"), world, policy)

Everything the tools touch must be reachable from the object: files, databases, clocks and global random numbers are
not copied. A tool that needs chance takes a parameter `rng`, which is seeded by the step's key and so repeatable.

A world is explored freely if its object keeps to itself: as its owner declares (`sandboxed=True`, here or as an
attribute of the class), or as its code shows (see `outside`). In any other world only tools that read, or whose effect
is declared reversible, run while searching; all others wait for a commit, and run once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import difflib
import functools
import inspect
import json
import random
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from treewright.envs.errors import InvalidAction, RestoreUnsupported, TreewrightError, cancelled
from treewright.envs.tools.aside import Aside
from treewright.envs.tools.methods import tools_of
from treewright.envs.tools.outside import outside
from treewright.envs.tools.rows import Addresses, listed
from treewright.envs.tools.schema import check_action
from treewright.envs.tools.signature import Tool
from treewright.envs.tools.state import copy_state, state_digest, state_size
from treewright.envs.types import (
    Action,
    BaseEnvironment,
    Call,
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

__all__ = ["Ending", "ToolWorld", "read_effects"]

MAX_CHARS = 20_000


@dataclass(frozen=True, slots=True)
class Ending:
    """What a judge reads when the episode ends: the task, the object (not to be changed), the answer, all calls."""

    task: Task
    object: Any
    answer: str
    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What all sessions of a world share."""

    name: str
    make: Callable[[Task], Any]
    tools: Callable[[type], Sequence[Tool]]
    judge: Callable[[Ending], Any] | None
    copy: Callable[[Any], Any]
    fingerprint: Callable[[Any], str]
    render: Callable[[Any], str]
    first: str | Callable[[Any], str]
    own: bool
    stochastic: bool
    blocking: bool
    end: ToolSpec
    reaches: str | None
    aside: Aside
    addresses: Addresses


@dataclass(frozen=True, slots=True)
class _At:
    """Where an episode stands beside the object; part of every snapshot."""

    task: Task
    shown: Observation
    calls: tuple[Call, ...] = ()
    ended: bool = False


class ToolWorld(BaseEnvironment):
    """One session over one object; `open()` gives another. Make it with `ToolWorld.of`."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        self.name, self.stochastic, self.sandboxed = plan.name, plan.stochastic, plan.reaches is None
        ways = {Restore.STATE if plan.own else Restore.FORK, Restore.REPLAY}
        self.restore_ways = frozenset(ways - {Restore.REPLAY} if plan.stochastic else ways)
        self._object: Any = None
        self._shared = False  # does a snapshot, or the world's first object, hold the same object?
        self._tools: dict[str, Tool] = {}
        self._specs: tuple[ToolSpec, ...] = ()
        self._at: _At | None = None

    @classmethod
    def of(
        cls,
        obj: Any,
        tools: Iterable[str | Callable[..., Any] | Tool] | None = None,
        effects: Mapping[str, Effect | str] | None = None,
        *,
        name: str | None = None,
        judge: Callable[[Ending], Any] | None = None,
        copy: Callable[[Any], Any] | None = None,
        fingerprint: Callable[[Any], str] | None = None,
        render: Callable[[Any], str] | None = None,
        first: str | Callable[[Any], str] = "ready",
        stochastic: bool = False,
        blocking: bool = False,
        end: str = "done",
        sandboxed: bool | None = None,
    ) -> ToolWorld:
        """A world over `obj`.

        obj          the object at the start of every episode (never changed itself), or a class or function that
                     makes it, called with the task if it takes an argument
        tools        names of methods, functions whose first parameter is the object, or Tools; default: every public
                     method
        effects      what each tool does, by name: 'read', 'reversible', 'irreversible'; others are UNKNOWN
        judge        the reward: a function of an Ending; may be a coroutine function. Without one it is NaN
        copy         instead of a deep copy.  fingerprint  instead of a hash of everything reachable
        render       a tool's answer as text; default: text as it is, everything else as JSON
        first        what reset shows, or a function of the object that says it
        stochastic   the same call may answer differently (a simulated user, say)
        blocking     run tools and judge in a thread: for tools that wait or compute for long
        end          the tool that ends the episode; it takes {"answer": text}
        sandboxed    your promise that the tools touch nothing but the object, or False where they do. Default: the
                     attribute `sandboxed` of the class, else whether its code is seen to keep to itself

        An object with methods `snapshot() -> bytes` and `restore(bytes)` is brought back by these instead of copies;
        a stochastic object needs them, since nothing else of it outlives the process.

        Raises TreewrightError for tools or effects that do not exist, and for parameters without a JSON schema.
        """
        made = isinstance(obj, type) or inspect.isroutine(obj) or isinstance(obj, functools.partial)
        kind = obj if isinstance(obj, type) else None if made else type(obj)
        own = (
            kind is not None and callable(getattr(kind, "snapshot", None)) and callable(getattr(kind, "restore", None))
        )
        if stochastic and not own:
            raise TreewrightError(
                "a stochastic object is brought back by its own methods snapshot() -> bytes and restore(bytes); "
                f"{getattr(kind, '__name__', obj)} lacks them"
            )
        copier = copy or copy_state
        marked = read_effects(effects or {})
        listed = None if tools is None else list(tools)
        ending = ToolSpec(
            end, "ends the task",
            {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]},
            Effect.READ, terminal=True,
        )  # fmt: skip

        @functools.cache
        def build(kind: type) -> Sequence[Tool]:
            return tools_of(kind, listed, marked, ending)

        if kind is not None:
            build(kind)  # so that mistakes show here, not at the first reset
        plan = _Plan(
            name=name or getattr(kind, "__name__", "tools").lower(),
            make=_maker(obj) if made else (lambda task: copier(obj)) if own else (lambda task: obj),
            tools=build,
            judge=judge, copy=copier, fingerprint=fingerprint or (_own_digest if own else state_digest),
            render=render or _rendered, first=first, own=own, stochastic=stochastic, blocking=blocking, end=ending,
            reaches=None, aside=Aside(), addresses=Addresses(),
        )  # fmt: skip
        told = sandboxed if sandboxed is not None else getattr(kind, "sandboxed", None)
        return cls(dataclasses.replace(plan, reaches=_reaches(plan.name, told, obj, listed)))

    @property
    def object(self) -> Any:
        """The object as it is now; only to be read."""
        self._running()
        return self._object

    @property
    def judged(self) -> bool:
        """Has it a judge, so that its rewards are known?"""
        return self._plan.judge is not None

    async def open(self) -> ToolWorld:
        """Another session of the same world."""
        return type(self)(self._plan)

    async def fork(self) -> ToolWorld:
        """A second live session at the present state, with an object of its own."""
        other = await self.open()
        await other.restore(await self.snapshot())
        await other._own()
        return other

    def suite(self, tasks: Sequence[Task], **options: Any) -> Suite:
        """A suite of this world and these tasks; `options` go to Suite (oracle, max_tokens, …)."""

        def of(split: str, count: int) -> Sequence[Task]:
            return [task for task in tasks if task.split == split][:count]

        return Suite(**{"name": self.name, "tasks": of, "open": self.open, **options})

    async def reset(self, task: Task, key: int) -> Observation:
        self._object, self._shared = await self._call(self._plan.make, task), not self._plan.own
        self._know_tools()
        first = self._plan.first
        self._at = _At(task, Observation(""))
        return await self._show(first if isinstance(first, str) else first(self._object), "environment")

    async def step(self, action: Action, key: int) -> StepResult:
        at = self._running()
        if at.ended:
            raise InvalidAction("the task has ended; nothing more can be called")
        check_action(action, self._specs)
        if action.name == self._plan.end.name:
            return await self._finish(at, str(action.arguments["answer"]))
        await self._own()
        rows = [await self._answer(call, random.Random(key + i), i == 0) for i, call in enumerate(action.calls)]
        self._at = dataclasses.replace(at, calls=(*at.calls, *action.calls))
        shown = await self._show(
            "\n".join(text for text, _ in rows), "error" if all(bad for _, bad in rows) else "tool"
        )
        journal = [{"name": call.name, "error": bad} for call, (_, bad) in zip(action.calls, rows, strict=True)]
        return StepResult(shown, effect=await self.effect(action), info={"calls": journal})

    async def actions(self) -> Sequence[ToolSpec]:
        return self._specs

    async def snapshot(self) -> Snapshot:
        at = self._running()
        if not self._plan.own:
            # The object is handed over; the next step works on a copy.
            self._shared = True
            size = await self._plan.aside.run("size", state_size, (at, self._object))
            return Snapshot(Restore.FORK, (at, self._object), at.shown.fingerprint, size=size)
        kept = await self._call(self._object.snapshot)
        if not isinstance(kept, bytes):
            raise TreewrightError(f"{self.name}: snapshot() gave a {type(kept).__name__}; it must give bytes")
        data = json.dumps(_to_json(at)).encode() + b"\n" + kept
        return Snapshot(Restore.STATE, data, at.shown.fingerprint, size=len(data))

    async def restore(self, snapshot: Snapshot) -> Observation:
        if snapshot.kind is not (Restore.STATE if self._plan.own else Restore.FORK):
            raise RestoreUnsupported(f"{self.name} cannot restore a {snapshot.kind} snapshot; it did not make it")
        if self._plan.own:
            head, _, kept = bytes(snapshot.data).partition(b"\n")
            self._at = _from_json(json.loads(head))
            self._object = await self._call(self._plan.make, self._at.task)
            await self._call(self._object.restore, kept)
        else:
            self._at, self._object = snapshot.data
            self._shared = True
        self._know_tools()
        return self._running().shown

    async def _answer(self, call: Call, rng: random.Random, first: bool) -> tuple[str, bool]:
        """The tool's answer as text, and whether it is an error; InvalidAction while nothing has been done yet."""
        try:
            value = await self._call(self._tools[call.name].run, self._object, call.arguments, rng)
            text = self._plan.render(await listed(value, self._call))
        except InvalidAction as error:
            if first:
                raise
            return f"error: {error}", True
        except TreewrightError:
            raise
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and cancelled():
                raise
            # The object's own complaint: the policy's business, shown and counted. Parsers of command lines exit.
            return f"error: {type(error).__name__}: {error}"[:MAX_CHARS], True
        self._plan.addresses.look(call.name, text)
        return (text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}… ({len(text) - MAX_CHARS} more)"), False

    async def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        value = await asyncio.to_thread(function, *arguments) if self._plan.blocking else function(*arguments)
        return await value if inspect.isawaitable(value) else value

    async def _finish(self, at: _At, answer: str) -> StepResult:
        reward = float("nan")
        if self._plan.judge is not None:
            ending = Ending(at.task, self._object, answer, at.calls)
            try:
                reward = float(await self._call(self._plan.judge, ending))
            except (Exception, SystemExit) as error:
                raise TreewrightError(f"the judge of {self.name!r} failed on {at.task.id!r}: {error!r}") from error
        self._at = dataclasses.replace(at, ended=True)
        shown = Observation("done", digest(at.shown.fingerprint, self._plan.end.name, answer))
        self._at = dataclasses.replace(self._at, shown=shown)
        return StepResult(shown, reward, True)

    async def _own(self) -> None:
        """Before a step: an object that no snapshot holds."""
        if self._shared:
            self._object, self._shared = await self._plan.aside.run("copy", self._plan.copy, self._object), False

    async def _show(self, text: str, provenance: str) -> Observation:
        fingerprint = await self._plan.aside.run("fingerprint", self._plan.fingerprint, self._object)
        shown = Observation(text, fingerprint, provenance=provenance)
        self._at = dataclasses.replace(self._running(), shown=shown)
        return shown

    def _know_tools(self) -> None:
        self._tools = {tool.spec.name: tool for tool in self._plan.tools(type(self._object))}
        self._specs = (*(tool.spec for tool in self._tools.values()), self._plan.end)

    def _running(self) -> _At:
        if self._at is None:
            raise TreewrightError(f"{self.name}: no task yet; call reset(task, key) first")
        return self._at


def _reaches(
    name: str, declared: Any, obj: Any, listed: Sequence[str | Callable[..., Any] | Tool] | None
) -> str | None:
    """Why a world counts as live, or None for a sandboxed one."""
    if isinstance(declared, bool):
        return None if declared else "it is declared not to be sandboxed"
    tools = [item.run if isinstance(item, Tool) else item for item in listed or () if not isinstance(item, str)]
    found = outside([obj, *tools])
    if found is not None:
        warnings.warn(
            f"{name} counts as a live world: {found}. Tools not declared to read or to be reversible wait for a "
            "commit; say sandboxed=True if a copy of the object undoes all they do, or sandboxed=False",
            stacklevel=4,
        )
    return found


def read_effects(effects: Mapping[str, Effect | str]) -> dict[str, Effect]:
    """Effects given as words. Raises TreewrightError naming the tool and the words there are."""
    out = {}
    for name, word in effects.items():
        try:
            out[name] = Effect(word)
        except ValueError:
            near = difflib.get_close_matches(str(word), [str(effect) for effect in Effect], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(Effect)}"
            raise TreewrightError(f"effects.{name} = {word!r} is no effect; {hint}") from None
    return out


def _maker(obj: Callable[..., Any]) -> Callable[[Task], Any]:
    try:
        parameters = inspect.signature(obj).parameters.values()
    except ValueError:  # built on a class of C, which does not tell
        return lambda task: obj()
    needed = [
        p
        for p in parameters
        if p.default is inspect.Parameter.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return obj if needed else lambda task: obj()


def _own_digest(obj: Any) -> str:
    return digest(obj.snapshot())


def _rendered(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return "ok"
    return json.dumps(value, default=_plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return sorted(value, key=repr) if isinstance(value, set | frozenset) else str(value)


def _to_json(at: _At) -> dict[str, Any]:
    return {
        "task": {f.name: getattr(at.task, f.name) for f in dataclasses.fields(Task)},
        "shown": [at.shown.text, at.shown.fingerprint, at.shown.provenance],
        "calls": [call.to_json() for call in at.calls],
        "ended": at.ended,
    }


def _from_json(data: Mapping[str, Any]) -> _At:
    calls = tuple(Call(c["name"], c["arguments"]) for c in data["calls"])
    shown = dict(zip(("text", "fingerprint", "provenance"), data["shown"], strict=True))
    return _At(Task(**data["task"]), Observation(**shown), calls, data["ended"])
