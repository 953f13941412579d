"""What a run costs, in every unit that a comparison may be made in.

    with metering() as spent:
        trees = await collect(…)
    spent.total().sampled_tokens

Tokens, steps and operations follow from trees, whose tokens are exact: they are counted when a tree is finished and
cost nothing while it grows. Seconds are those of this process in which at least one draw, call of the world or call of
the judge was under way; trees found finished in a store cost nothing here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol, runtime_checkable

from treewright.search.tree import Tree
from treewright.search.types import NodeKind, Origin, layers

__all__ = ["AXES", "Meter", "Reckoned", "Recorder", "Work", "clock", "measured", "metering", "recorder", "work_of"]


class Work(Protocol):
    """Floating-point operations of a model, such as `treewright.training.flops.DecoderWork`."""

    def forward(self, start: int, stop: int, logits: int) -> float:
        """Of the tokens at positions start … stop − 1 of a sequence, `logits` of which predict."""


@runtime_checkable
class Reckoned(Protocol):
    """A policy that knows what its model computes."""

    @property
    def work(self) -> Work | None:
        """None for a model of a shape that no formula is known for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """What was used. All numbers add up.

    sampled_tokens    drawn by the policy, each draw of equal ones too, closing rollouts too; given turns not
    judge_tokens      of the evaluator, as it says
    prompt_computed   tokens of prompts that a cache of the tree's own prompts and draws leaves to compute
    prompt_cacheless  what the same paths read as episodes of their own without a cache: every turn its whole prompt
    trained_packed    tokens of the packs that were trained on;  trained_rows  of the same paths, one by one
    env_steps         of the world, each for the first time;  replayed_steps  again, on the way back to a node or start
    policy_seconds, world_seconds, judge_seconds, train_seconds   of wall clock, with one call at least under way
    generation_flops, prompt_flops, train_flops   by formula from the model's configuration; NaN where none is known
    """

    sampled_tokens: int = 0
    judge_tokens: int = 0
    prompt_computed: int = 0
    prompt_cacheless: int = 0
    trained_packed: int = 0
    trained_rows: int = 0
    env_steps: int = 0
    replayed_steps: int = 0
    policy_seconds: float = 0.0
    world_seconds: float = 0.0
    judge_seconds: float = 0.0
    train_seconds: float = 0.0
    generation_flops: float = 0.0
    prompt_flops: float = 0.0
    train_flops: float = 0.0

    def __add__(self, other: Meter) -> Meter:
        both: dict[str, Any] = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Meter)}
        return Meter(**both)

    @property
    def flops(self) -> float:
        """Generation, prompts and training together."""
        return self.generation_flops + self.prompt_flops + self.train_flops

    def as_dict(self) -> dict[str, float | None]:
        """For JSON, `flops` included: what is not known is null."""
        told = {**asdict(self), "flops": self.flops}
        return {name: value if math.isfinite(value) else None for name, value in told.items()}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Meter:
        """Back from `as_dict`; names that are not there are 0."""
        names = [f.name for f in fields(Meter) if f.name in told]
        known: dict[str, Any] = {name: math.nan if told[name] is None else told[name] for name in names}
        return cls(**known)

    @classmethod
    def trained(cls, stats: Mapping[str, float]) -> Meter:
        """The trainer's part, from what an update has measured."""
        return cls(
            trained_packed=int(stats.get("tokens", 0)), trained_rows=int(stats.get("row_tokens", 0)),
            train_seconds=float(stats.get("train_seconds", 0.0)), train_flops=float(stats.get("train_flops", 0.0)),
        )  # fmt: skip

    def told(self) -> str:
        """In a line, for people."""
        busy = {"policy": self.policy_seconds, "world": self.world_seconds, "judge": self.judge_seconds,
                "trainer": self.train_seconds}  # fmt: skip
        flops = f", {self.flops:.3g} FLOP" if self.flops > 0 else ""
        seconds = ", ".join(f"{who} {spent:.1f} s" for who, spent in busy.items() if spent >= 0.05)
        return (
            f"cost: {self.sampled_tokens} tokens sampled, {self.prompt_computed} of prompts computed "
            f"({self.prompt_cacheless} without a cache), {self.env_steps} steps and {self.replayed_steps} again{flops}"
        ) + (f"; {seconds}" if seconds else "")


AXES = (*(f.name for f in fields(Meter)), "flops", "seconds")
"""What runs can be compared over; `seconds` is the wall clock of whole rounds."""


class Busy:
    """Seconds of wall clock in which at least one `with` block of it was under way."""

    __slots__ = ("_since", "_under_way", "seconds")

    def __init__(self) -> None:
        self.seconds, self._under_way, self._since = 0.0, 0, 0.0

    def __enter__(self) -> None:
        if self._under_way == 0:
            self._since = time.perf_counter()
        self._under_way += 1

    def add(self, since: float) -> None:
        """From `since`, in seconds of the clock, until now, where nothing else was under way."""
        if self._under_way == 0:
            self.seconds += time.perf_counter() - since

    def __exit__(self, *_: object) -> None:
        self._under_way -= 1
        if self._under_way == 0:
            self.seconds += time.perf_counter() - self._since


class Recorder:
    """Adds up what is spent while it is the current one; `policy`, `world` and `judge` are clocks."""

    def __init__(self) -> None:
        self.policy, self.world, self.judge = Busy(), Busy(), Busy()
        self._known = Meter()

    def add(self, meter: Meter) -> None:
        self._known += meter

    def total(self) -> Meter:
        """What was spent so far."""
        return self._known + self.busy()

    def busy(self) -> Meter:
        """The seconds alone, but for those that inner recorders took."""
        return Meter(
            policy_seconds=self.policy.seconds, world_seconds=self.world.seconds, judge_seconds=self.judge.seconds
        )


_CURRENT: ContextVar[Recorder | None] = ContextVar("treewright_meter", default=None)

recorder: Callable[[], Recorder | None] = _CURRENT.get
"""The one that `metering` began around here; None outside, where no clock is looked at."""


def clock(kind: str) -> AbstractContextManager[object]:
    """The clock `policy`, `world` or `judge` of the current recorder, or what takes no time."""
    found = recorder()
    return UNTIMED if found is None else getattr(found, kind)


UNTIMED = nullcontext()


@contextmanager
def metering() -> Iterator[Recorder]:
    """Records what searches begun inside spend; at the end an outer one is told as well."""
    inner, outer = Recorder(), recorder()
    before = _CURRENT.set(inner)
    try:
        yield inner
    finally:
        _CURRENT.reset(before)
        if outer is not None:
            outer.add(inner.total())


def work_of(policy: object) -> Work | None:
    """What the model of a policy, or of one that it is put around, computes; None where nobody knows."""
    return next((p.work for p in layers(policy) if isinstance(p, Reckoned)), None)


def measured(trees: Tree | Iterable[Tree], work: Work | None = None) -> Meter:
    """What growing the trees took, by their own tokens and steps; seconds are not in trees and stay 0.

    work  of the model that drew them; None: operations are not known
    """
    if not isinstance(trees, Tree):
        return sum((measured(tree, work) for tree in trees), Meter())
    tree, count = trees, len(trees)
    parent, keep, mult, children = tree.parent, tree.keep, tree.mult, tree.children
    ours = [origin is Origin.POLICY for origin in tree.origin]
    within = [kind is NodeKind.SEGMENT for kind in tree.kind]
    said = [len(ids) for ids in tree.ids]
    prompt = [kept + len(delta) for kept, delta in zip(keep, tree.delta, strict=True)]
    read = [False] * count
    for node in range(1, count):
        if ours[node]:
            read[parent[node]] = True
    known = [keep[i] if i and read[parent[i]] else 0 for i in range(count)]
    alone, cacheless, fresh = [0] * count, 0, 0
    for node in range(1, count):
        above = parent[node]
        alone[node] = alone[above] + (prompt[above] if ours[node] and not within[above] else 0)
        if not children[node]:
            cacheless += alone[node]
        fresh += tree.steps[node] > 0 and ours[node] and tree.error[node] is None
    spent = tree.spent
    given = sum(said[i] for i in range(1, count) if not ours[i])
    generation = reading = 0.0 if work is not None else math.nan
    if work is not None:
        for node in range(count):
            if read[node] and prompt[node] > known[node]:
                reading += work.forward(known[node], prompt[node], 1)
            if node and ours[node]:
                start, length = prompt[parent[node]], said[node] + tree.hidden[node]
                generation += mult[node] * work.forward(start, start + length, length)
    return Meter(
        sampled_tokens=max(0, spent.policy_tokens + spent.closing_tokens - given),
        judge_tokens=spent.judge_tokens,
        prompt_computed=sum(prompt[i] - known[i] for i in range(count) if read[i]),
        prompt_cacheless=cacheless,
        env_steps=fresh,
        replayed_steps=max(0, spent.env_steps + spent.closing_steps - fresh),
        generation_flops=generation,
        prompt_flops=reading,
    )
