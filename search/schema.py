"""The fields of a node, read off the records that declare them.

A node holds what was drawn (`Draft` and its `Completion`), what executing it gave (`Outcome`), and its place in the
tree (`Standing`). The columns of Tree, the tables and the codec of the store, the raw export and the arrays of the
estimators are made from the lists below: a new field is one line in a record, and a migration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from functools import lru_cache
from operator import attrgetter
from types import NoneType, UnionType
from typing import Any, Final, get_args, get_type_hints

from treewright.envs.types import Action, Effect, Observation
from treewright.search.fields import FIRST_SCHEMA, stored
from treewright.search.types import SEGMENT, Completion, Draft, NodeKind, NodeStatus, Origin, Outcome, Spent

__all__ = [
    "COLUMNS",
    "DRAWN",
    "EXECUTED",
    "LATE",
    "NUMBERS",
    "NUMERIC",
    "SPENT",
    "STANDING",
    "Columns",
    "FieldKind",
    "NodeField",
    "Standing",
    "by_schema",
    "fields_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A node's place in its tree; follows from the expansions, but for what is set late."""

    parent: int = -1
    depth: int = 0
    born: int = -1
    kind: NodeKind = stored(default=NodeKind.CHOICE, late=True)
    drawn: int = 0
    status: NodeStatus = stored(default=NodeStatus.DRAFT, late=True)
    keep_prob: float = stored(default=1.0, late=True)
    kept: bool = stored(default=True, late=True)
    closing: bool = False
    mass: float = 1.0
    path_logprob: float = 0.0


class FieldKind(StrEnum):
    """What a value is, and so how each place keeps it."""

    INT = "int"
    WIDE = "wide"
    REAL = "real"
    BOOL = "bool"
    TEXT = "text"
    NAME = "name"
    IDS = "ids"
    REALS = "reals"
    ACTION = "action"
    SEEN = "seen"


KINDS: Final[dict[Any, FieldKind]] = {
    int: FieldKind.INT,
    float: FieldKind.REAL,
    bool: FieldKind.BOOL,
    str: FieldKind.TEXT,
    tuple[int, ...]: FieldKind.IDS,
    tuple[float, ...]: FieldKind.REALS,
    Action: FieldKind.ACTION,
    Observation: FieldKind.SEEN,
}
NESTED: Final = ("after", "completion", "outcome")  # of a Draft: where it hangs, and records of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeField:
    """One field of a node.

    name      in its record;  path: from the Draft, or from the Outcome
    column    in stores and exports;  tree: in a Tree
    type      of a value that is there;  optional: None is a value too
    default   MISSING where every record gives one
    since     the schema of the store that brought it;  late: set after the node was applied
    """

    name: str
    path: str
    column: str
    tree: str
    kind: FieldKind
    type: Any
    optional: bool
    default: Any
    since: int
    late: bool

    @property
    def empty(self) -> Any:
        """Its value where nothing was recorded."""
        return None if self.default is MISSING else self.default


def fields_of(record: type, prefix: str = "") -> list[NodeField]:
    """The fields of a record, in the order in which it declares them. Raises TypeError for a type nobody can keep."""
    hints = get_type_hints(record)
    return [_field(record, f, hints[f.name], prefix) for f in fields(record) if f.name not in NESTED]


def _field(record: type, declared: Any, hint: Any, prefix: str) -> NodeField:
    inner = [t for t in get_args(hint) if t is not NoneType] if isinstance(hint, UnionType) else [hint]
    kind = FieldKind.NAME if isinstance(inner[0], type) and issubclass(inner[0], StrEnum) else KINDS.get(inner[0])
    if len(inner) != 1 or kind is None:
        raise TypeError(f"{record.__name__}.{declared.name}: a node keeps no {hint}; it keeps {', '.join(FieldKind)}")
    told = declared.metadata
    column = told.get("column") or declared.name
    return NodeField(
        name=declared.name,
        path=prefix + declared.name,
        column=column,
        tree=told.get("tree") or column,
        kind=FieldKind.WIDE if told.get("wide") else kind,
        type=inner[0],
        optional=isinstance(hint, UnionType),
        default=declared.default,
        since=told.get("since", FIRST_SCHEMA),
        late=told.get("late", False),
    )


def _drawn() -> Iterator[NodeField]:
    """Those of a Draft, those of its Completion in their midst."""
    own = {f.name: f for f in fields_of(Draft)}
    for declared in fields(Draft):
        if declared.name == "completion":
            yield from fields_of(Completion, "completion.")
        elif declared.name in own:
            yield own[declared.name]


def by_schema(given: Sequence[NodeField]) -> list[NodeField]:
    """In the order of their columns: what a later schema brought stands behind everything older."""
    return sorted(given, key=lambda f: f.since)


DRAWN: Final = tuple(_drawn())
EXECUTED: Final = tuple(fields_of(Outcome))
STANDING: Final = tuple(fields_of(Standing))
LATE: Final = tuple(f for f in STANDING if f.late)
SPENT: Final = tuple(fields_of(Spent))

NUMERIC: Final = (FieldKind.INT, FieldKind.WIDE, FieldKind.REAL, FieldKind.BOOL, FieldKind.NAME)
NUMBERS: Final = tuple(
    {f.tree: f for f in (*DRAWN, *EXECUTED) if f.kind in NUMERIC and f.tree not in ("_truth", "status")}.values()
)
"""Fields of what was drawn and executed that arrays can hold; rewards, which are sealed, and the status apart."""

COLUMNS: Final = tuple(dict.fromkeys(f.tree for f in (*STANDING, *DRAWN, *EXECUTED)))
"""Names of a tree's columns."""

get_drawn = attrgetter(*(f.path for f in DRAWN))
SHOWN: Final = tuple(f for f in EXECUTED if f.name != "status")
get_shown = attrgetter(*(f.path for f in SHOWN))


class Columns:
    """A list for every field of the schema, indexed by node id. The annotations are for readers and type checkers: a
    field without one is there all the same.

    parent, depth, born (index of the pop that made it), slot, mult, share, drawn (K; 0 = never expanded), seed,
    text, ids and logprobs (tuples), action, effect, error, score (evaluator, NaN = none), status, observation,
    context (keep, delta), keep_prob (q), kept, closing, mass (product of shares from the root; 1 at the root).
    """

    parent: list[int]
    depth: list[int]
    born: list[int]
    kind: list[NodeKind]
    slot: list[int]
    mult: list[int]
    share: list[float]
    drawn: list[int]
    seed: list[int]
    text: list[str]
    ids: list[tuple[int, ...]]
    logprobs: list[tuple[float, ...]]
    finish: list[str]
    policy_version: list[str]
    trainable: list[bool]
    origin: list[Origin]
    temperature: list[float]
    hidden: list[int]
    money: list[float]
    routes: list[str]
    action: list[Action | None]
    effect: list[Effect]
    error: list[str | None]
    fault: list[str | None]
    score: list[float]
    status: list[NodeStatus]
    observation: list[Observation | None]
    keep: list[int]
    delta: list[tuple[int, ...]]
    steps: list[int]
    keep_prob: list[float]
    kept: list[bool]
    closing: list[bool]
    mass: list[float]
    path_logprob: list[float]
    children: list[list[int]]
    _truth: list[float]

    def __init__(self) -> None:
        for name in COLUMNS:
            self.__dict__[name] = []
        self.children = []
        columns = self.__dict__
        self._by_draw: tuple[list[Any], ...] = tuple(columns[name] for name in DRAWN_NAMES)
        self._by_outcome: tuple[list[Any], ...] = tuple(columns[name] for name in SHOWN_NAMES)
        self._at_birth: tuple[list[Any], ...] = tuple(columns[name] for name, _ in UNKNOWN)

    def __len__(self) -> int:
        return len(self.parent)

    def _push(self, parents: Sequence[int], born: int, drafts: Sequence[Draft], closing: bool) -> None:
        """Adds nodes as they stand before they are executed, a column at a time; parent −1 for the root."""
        node, depth, mass, path_logprob = len(self.parent), self.depth, self.mass, self.path_logprob
        for column, values in zip(self._at_birth, unknown(len(drafts)), strict=True):
            column.extend(values)
        for column, values in zip(self._by_draw, zip(*map(get_drawn, drafts), strict=True), strict=False):
            column.extend(values)
        self.parent.extend(parents)
        self.born.extend([born] * len(drafts))
        self.closing.extend([closing] * len(drafts))
        logprobs = [math.fsum(done.logprobs) if (done := draft.completion).logprobs else 0.0 for draft in drafts]
        above = parents[0]
        if 0 <= above == min(parents) == max(parents):  # draws of one node: all but the root and closing chains
            depth.extend([depth[above] + 1] * len(drafts))
            weight, before = mass[above], path_logprob[above]
            mass.extend([weight * draft.share for draft in drafts])
            path_logprob.extend([before + logprob for logprob in logprobs])
            self.children[above].extend(range(node, node + len(drafts)))
            self.children.extend([[] for _ in drafts])
        else:
            for new, (parent, draft, logprob) in enumerate(zip(parents, drafts, logprobs, strict=True), node):
                depth.append(depth[parent] + 1 if new else 0)
                mass.append(mass[parent] * draft.share if new else 1.0)
                path_logprob.append(path_logprob[parent] + logprob if new else logprob)
                if new:
                    self.children[parent].append(new)
                self.children.append([])
        if SEGMENT in self.finish[node:]:
            for new in range(node, len(self.parent)):
                if self.finish[new] == SEGMENT:
                    self.kind[new] = NodeKind.SEGMENT

    def draft(self, node: int) -> Draft:
        """The draft of a node as it was before it was executed."""
        columns = self.__dict__
        return Draft(
            after=0,
            completion=Completion(**{f.name: columns[f.tree][node] for f in SAID}),
            error=self.error[node] if self.action[node] is None else None,
            **{f.name: columns[f.tree][node] for f in OWN},
        )

    def _record(self, node: int, outcome: Outcome) -> None:
        """What executing a node gave, its status left to the caller."""
        error = self.error[node]
        for column, value in zip(self._by_outcome, get_shown(outcome), strict=True):
            column[node] = value
        if outcome.error is None:
            self.error[node] = error


SAID: Final = tuple(f for f in DRAWN if f.path != f.name)
OWN: Final = tuple(f for f in DRAWN if f.path == f.name and f.tree not in ("effect", "error"))
PUSHED: Final = frozenset({"parent", "born", "closing", "depth", "mass", "path_logprob"})  # by `_push` itself
DRAWN_NAMES: Final = tuple(f.tree for f in DRAWN)
SHOWN_NAMES: Final = tuple(f.tree for f in SHOWN)
UNKNOWN: Final = tuple(
    (f.tree, math.nan if f.name == "reward" else f.empty)
    for f in (*STANDING, *EXECUTED)
    if f.tree not in PUSHED and f.tree not in DRAWN_NAMES and (f.name != "status" or f in STANDING)
)
"""What a column holds of a node before anything is known of it."""


@lru_cache(maxsize=64)
def unknown(count: int) -> tuple[tuple[Any, ...], ...]:
    """UNKNOWN of so many nodes, a tuple for each column."""
    return tuple((value,) * count for _, value in UNKNOWN)
