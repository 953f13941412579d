"""The words every environment speaks: tasks, actions, effects, observations, snapshots.

Nothing here imports torch or any other floor. Everything is a frozen dataclass, so that a
value handed to another part can be kept, hashed or stored without being copied first.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from hashlib import blake2b
from struct import Struct
from typing import Any, ClassVar, Protocol, runtime_checkable

from treewright.envs.records import quick

__all__ = [
    "Action",
    "BaseEnvironment",
    "Call",
    "Effect",
    "Environment",
    "Observation",
    "Oracle",
    "Restore",
    "Snapshot",
    "StepResult",
    "Suite",
    "Task",
    "ToolSpec",
    "Turn",
    "digest",
    "is_sandboxed",
    "require_sandbox",
    "seed_of",
]


def digest(*parts: str | bytes) -> str:
    """A 128-bit content hash as 32 hex digits; parts are length-prefixed, so ('ab','c') ≠ ('a','bc')."""
    h = blake2b(digest_size=16)
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        h.update(len(raw).to_bytes(8, "little"))
        h.update(raw)
    return h.hexdigest()


def seed_of(*parts: str | int) -> int:
    """A 63-bit seed that depends on every part; the same on every machine and run."""
    text = f"{parts[0]}\x1f{parts[1]}" if len(parts) == 2 else "\x1f".join(map(str, parts))
    return _eight_bytes(blake2b(text.encode(), digest_size=8).digest())[0] >> 1  # type: ignore[no-any-return]


_eight_bytes = Struct("<Q").unpack


class Effect(StrEnum):
    """What executing an action does to the world. UNKNOWN is treated as IRREVERSIBLE."""

    READ = "read"
    REVERSIBLE = "reversible"
    IRREVERSIBLE = "irreversible"
    UNKNOWN = "unknown"

    @property
    def severity(self) -> int:
        """0 read … 3 unknown; a composite action has the worst severity of its calls."""
        return _SEVERITY[self]

    @property
    def needs_commit(self) -> bool:
        """True where a live world must not execute the action while it only explores."""
        return self in (Effect.IRREVERSIBLE, Effect.UNKNOWN)


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode

_SEVERITY = {Effect.READ: 0, Effect.REVERSIBLE: 1, Effect.IRREVERSIBLE: 2, Effect.UNKNOWN: 3}


class Restore(StrEnum):
    """A way back to an earlier state.

    FORK   a live copy in this process (lost with it); STATE serialisable bytes, durable when stored;
    REPLAY reset and repeat the recorded actions with their keys, verified by fingerprint;
    NONE   no way back.
    """

    FORK = "fork"
    STATE = "state"
    REPLAY = "replay"
    NONE = "none"


@quick
@dataclass(frozen=True, slots=True)
class Call:
    """One tool call: a name and JSON arguments."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "arguments": dict(self.arguments)}


@quick
@dataclass(frozen=True, slots=True)
class Action:
    """What one policy turn does: one call, or several parallel calls as one composite action."""

    calls: tuple[Call, ...]

    @classmethod
    def of(cls, name: str, /, **arguments: Any) -> Action:
        return cls((Call(name, arguments),))

    @property
    def name(self) -> str:
        """The call's name; names joined by '+' for a composite action."""
        return self.calls[0].name if len(self.calls) == 1 else "+".join(call.name for call in self.calls)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments of the only call. Raises ValueError for a composite action."""
        if len(self.calls) != 1:
            raise ValueError(f"composite action {self.name!r} has {len(self.calls)} calls; read .calls instead")
        return self.calls[0].arguments

    @property
    def key(self) -> str:
        """Canonical JSON: equal for equal calls however they were written; approvals bind to it."""
        return _canonical([c.to_json() for c in self.calls])

    @classmethod
    def from_key(cls, key: str) -> Action:
        return cls(tuple(Call(c["name"], c["arguments"]) for c in json.loads(key)))

    def __str__(self) -> str:
        return " ".join(f"{c.name} {json.dumps(dict(c.arguments), ensure_ascii=False)}" for c in self.calls)

    def __hash__(self) -> int:
        return hash(self.key)


@quick
@dataclass(frozen=True, slots=True)
class Observation:
    """What the environment shows after reset or a step.

    text         what the policy reads
    fingerprint  hash of the state behind it, equal exactly when the states count as equal
    provenance   who wrote the text: 'environment', 'tool', 'page', 'error', … (all untrusted but 'environment')
    parts        further content parts, e.g. {"type": "image", "png": bytes}; text-only training refuses them. A part of
                 type 'arrival' is no content: it holds the `distance` between what was recorded of the parent and
                 what was found there when this was executed, where that counted as the same. One of type 'request'
                 is none either: it holds the messages and tools of an agent's request, whose words are `text`
    """

    text: str
    fingerprint: str = ""
    _: KW_ONLY
    provenance: str = "environment"
    parts: tuple[Mapping[str, Any], ...] = ()

    @property
    def shown(self) -> tuple[Mapping[str, Any], ...]:
        """The parts that are content."""
        return tuple(part for part in self.parts if part.get("type") not in ("arrival", "request"))

    @property
    def distance(self) -> float:
        """How far the arrival at the parent was from what was recorded there; 0.0 where it was the same."""
        return max((float(part["distance"]) for part in self.parts if part.get("type") == "arrival"), default=0.0)

    def arrived(self, distance: float) -> Observation:
        """This, with the distance at which its parent was come back to; itself if that is 0."""
        if not distance:
            return self
        part = {"type": "arrival", "distance": round(distance, 6)}
        return Observation(self.text, self.fingerprint, provenance=self.provenance, parts=(*self.parts, part))


@quick
@dataclass(frozen=True, slots=True)
class StepResult:
    """One executed action. `reward` is truth and is hidden from search; NaN means unknown."""

    observation: Observation
    reward: float = 0.0
    terminated: bool = False
    _: KW_ONLY
    truncated: bool = False
    effect: Effect = Effect.READ
    info: Mapping[str, Any] = field(default_factory=dict)


@quick
@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state to come back to. `data` is bytes for STATE and any live object for FORK.

    `size` is in bytes (an estimate for FORK); the pool keeps snapshots in an LRU with a byte cap.
    """

    kind: Restore
    data: Any
    fingerprint: str
    _: KW_ONLY
    size: int = 0


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """One action the policy may take: name, description, JSON schema of its arguments, declared effect.

    An effect that nobody declares is UNKNOWN: in a world that is not sandboxed the action then waits for a commit.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    effect: Effect = Effect.UNKNOWN
    _: KW_ONLY
    terminal: bool = False

    def to_openai(self) -> dict[str, Any]:
        """The tool in the form that OpenAI-compatible servers and chat templates take."""
        schema = dict(self.parameters) or {"type": "object", "properties": {}}
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": schema},
        }


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a suite.

    goal     what the policy is told
    seed     seeds the environment's world
    horizon  most actions an episode may take
    data     public parameters for the environment
    truth    what rewards and oracles read; never shown to a policy, a rule or an evaluator
    """

    suite: str
    id: str
    goal: str
    _: KW_ONLY
    seed: int = 0
    split: str = "train"
    horizon: int = 8
    data: Mapping[str, Any] = field(default_factory=dict)
    truth: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Turn:
    """An action that was taken and what it showed: the history an oracle reads."""

    action: Action | None
    observation: Observation


@runtime_checkable
class Environment(Protocol):
    """One session of one world. All methods are coroutines; none may block the event loop.

    restore_ways  the ways back this environment promises. A session that stands at a node stays; else the nearest
                  snapshot on the node's path (FORK, STATE) is restored, else the task is reset, and with REPLAY the
                  actions from there on are repeated
    sandboxed     True only if a snapshot, or a new session's reset, covers everything that the actions touch (one
                  server state per session). It is the author's promise that any action may be executed any number of
                  times; without it nothing of irreversible or unknown effect is executed while searching, or ever again
    stochastic    True if `step` cannot be repeated from (state, action, key); such a world may not declare REPLAY
    """

    name: str
    restore_ways: frozenset[Restore]
    sandboxed: bool
    stochastic: bool

    async def reset(self, task: Task, key: int) -> Observation:
        """Starts the task from its first state. `key` seeds whatever is random at reset."""

    async def step(self, action: Action, key: int) -> StepResult:
        """Executes one action. Same state, action and key give the same result unless `stochastic`.

        Raises InvalidAction for an action that cannot be executed (the state is then unchanged) and
        EnvFault for trouble of the infrastructure. Never raises anything else for a policy's action.
        """

    async def actions(self) -> Sequence[ToolSpec]:
        """The actions that make sense in the present state."""

    async def effect(self, action: Action) -> Effect:
        """What the action would do, judged before executing it and without doing anything."""

    async def snapshot(self) -> Snapshot:
        """The present state, by FORK or STATE as the environment sees fit. Raises RestoreUnsupported if neither."""

    async def restore(self, snapshot: Snapshot) -> Observation:
        """Back to a snapshot of this or another session of the same world; returns what is seen there."""

    async def close(self) -> None:
        """Frees the session; closing twice is fine."""

    # An environment may also have `recognise`, see BaseEnvironment.


def is_sandboxed(env: object) -> bool:
    """The world's author declared that every action may be repeated; anything but True is no declaration."""
    return getattr(env, "sandboxed", False) is True


def require_sandbox(env: Environment, what: str) -> None:
    """For what executes actions outside a search, with no approval between: raises TreewrightError in a live world."""
    if not is_sandboxed(env):
        from treewright.envs.errors import TreewrightError

        raise TreewrightError(
            f"{what} executes every action at once, and {env.name} is not declared sandboxed: nothing was executed. "
            "Declare sandboxed = True if a new session undoes all that its actions touch"
        )


class BaseEnvironment:
    """Defaults for an environment that can only reset and step.

    A subclass writes `reset`, `step` and `tools`; it overrides `snapshot`/`restore` and the class
    attributes where it can do more.

    A class that declares nothing is taken for a live world, and its tools for tools of unknown effect: such an action
    is executed by a commit alone, once, with an approval. A wrong guess the other way round would send a stranger's
    mail once for every branch of a tree, and no check could take that back. One line says more: the effect of each
    tool (READ and REVERSIBLE ones are explored anywhere), or `sandboxed = True` where a new session undoes it all.
    """

    name: str = "environment"
    restore_ways: frozenset[Restore] = frozenset({Restore.REPLAY})
    sandboxed: bool = False
    stochastic: bool = False
    tools: ClassVar[Sequence[ToolSpec]] = ()

    async def reset(self, task: Task, key: int) -> Observation:
        raise NotImplementedError(f"{type(self).__name__} must define reset(task, key)")

    async def step(self, action: Action, key: int) -> StepResult:
        raise NotImplementedError(f"{type(self).__name__} must define step(action, key)")

    async def actions(self) -> Sequence[ToolSpec]:
        return self.tools

    async def effect(self, action: Action) -> Effect:
        declared = {spec.name: spec.effect for spec in await self.actions()}
        effects = [declared.get(c.name, Effect.UNKNOWN) for c in action.calls]
        return max(effects, key=lambda e: e.severity, default=Effect.READ)

    async def snapshot(self) -> Snapshot:
        from treewright.envs.errors import RestoreUnsupported

        raise RestoreUnsupported(f"{self.name} has no snapshots; it declares {sorted(self.restore_ways)}")

    async def restore(self, snapshot: Snapshot) -> Observation:
        from treewright.envs.errors import RestoreUnsupported

        raise RestoreUnsupported(f"{self.name} cannot restore a {snapshot.kind} snapshot")

    async def recognise(self, fingerprint: str, step: int) -> float | None:
        """Asked on arriving at a node where another fingerprint was recorded: does the present state count as that one?

        step  depth of the node. None means that it does not. A number is how much differs, from 0 (nothing that
        counts) to 1; from then on, actions mean what they meant in the recorded state, and `step` and `effect` raise
        Divergence for one that would not.
        """
        return None

    async def close(self) -> None:
        return None


Oracle = Callable[[Task, Sequence[Turn], Sequence[ToolSpec]], Action]
"""The action an expert would take after this history. A demonstrator for warm starts and tests; it may read
`task.truth` and must work after any history, so that demonstrations can recover from a mistake."""

Thoughts = Callable[[Task, Sequence[Turn]], str]
"""The intermediate steps that an expert writes down before the action it takes after this history; "" for none."""


@dataclass(frozen=True, slots=True)
class Suite:
    """A named set of tasks with their world, truth reward and oracle.

    tasks(split, count)  the first `count` tasks of 'train' or 'test' (the same every time; the two never share a
                         task or, where it matters, a world); any `count` up to `size(split)`
    open()               a new session; the caller closes it
    max_tokens           enough for one action, None where that is not known: then what the user says, or 512;
    sessions             how many a small machine runs side by side
    close()              ends what all sessions share, such as a browser or a site
    around(policy)       what the world puts around the policy of a search, where its prompts are not made of goal and
                         observations; None: nothing
    told()               what was learned of the world while it ran, a line each, for people to read
    available()          raises TreewrightError saying what to install if sessions cannot be opened here
    slowest              seconds that one call may take where that is long; the deadline of calls is no shorter
    thoughts             what the oracle thinks before its action; demonstrations write it in front, up to </think>
    origin               what world and reward are called, where the suite's name does not say it: kept with each tree
    """

    name: str
    tasks: Callable[[str, int], Sequence[Task]]
    open: Callable[[], Awaitable[Environment]]
    _: KW_ONLY
    oracle: Oracle | None = None
    thoughts: Thoughts | None = None
    description: str = ""
    max_tokens: int | None = None
    sessions: int = 8
    close: Callable[[], Awaitable[None]] | None = None
    available: Callable[[], None] | None = None
    told: Callable[[], Sequence[str]] | None = None
    around: Callable[[Any], Any] | None = None
    slowest: float | None = None
    origin: Mapping[str, str] = field(default_factory=dict, hash=False)
