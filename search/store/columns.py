"""Whole trees as columns, and how their rows are cut out of them, a chunk of neighbours at a time.

Nothing of a tree is made in full: the values of a few hundred rows exist while these rows are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treewright.envs.types import Effect, Observation
from treewright.search.schema import DRAWN, EXECUTED
from treewright.search.store.codec import NO_OUTCOME, Encoder, default_of
from treewright.search.store.errors import StoreError
from treewright.search.store.models import NODE_COLUMNS, OUTCOME_COLUMNS
from treewright.search.store.values import real
from treewright.search.types import NodeStatus, Spent

__all__ = ["Columns", "Cut", "Own", "Shape", "node_values"]

Own = tuple[int, int, int, int, int]

ROWS_PER_CHUNK = 256
DEFAULTS = {f.column: default_of(f) for f in (*DRAWN, *EXECUTED) if f.default is not MISSING}


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """N nodes below a root in order of creation: node i of the tree is entry i − 1. Siblings stand together.

    parent    [N] int, ids of the parents; non-decreasing
    text      N responses
    sizes     [N] int, tokens of each response; `ids` [sum] int32 and `logprobs` [sum] float32 or empty, one after
              the other
    seed      [N] int64 draw seeds
    mult      [N] int draws a node stands for, or None for 1; its share is mult / draws at its parent
    action    N canonical keys (`Action.key`) or None, or None for no actions
    score     [N] float or None for unknown
    pages     distinct observations; `seen` [N] int indexes them, −1 where a draft was not executed
    reward    [N] float truth, `status` N names such as "open" or "terminal"; where executed; None for 0 and "open"
    """

    parent: NDArray[Any]
    text: Sequence[str]
    sizes: NDArray[Any]
    ids: NDArray[Any]
    logprobs: NDArray[Any]
    seed: NDArray[Any]
    mult: NDArray[Any] | None = None
    action: Sequence[str | None] | None = None
    score: NDArray[Any] | None = None
    pages: Sequence[Observation] = ()
    seen: NDArray[Any] | None = None
    reward: NDArray[Any] | None = None
    status: Sequence[str] | None = None
    spent: Spent = field(default_factory=Spent)

    def __post_init__(self) -> None:
        n, parent = len(self.parent), np.asarray(self.parent)
        lengths = {name: getattr(self, name) for name in ("text", "sizes", "seed", "mult", "action", "score", "seen")}
        for name, value in (lengths | {"reward": self.reward, "status": self.status}).items():
            if value is not None and len(value) != n:
                raise StoreError(f"column {name} has {len(value)} entries, parent has {n}; give one for each node")
        if n and (parent[0] != 0 or (np.diff(parent) < 0).any() or (parent >= np.arange(1, n + 1)).any()):
            raise StoreError("parents must begin at 0, never fall, and be older than their children; sort the nodes so")
        total = int(np.sum(self.sizes))
        if len(self.ids) != total or len(self.logprobs) not in (0, total):
            raise StoreError(f"sizes add up to {total} tokens; ids has {len(self.ids)}, logprobs {len(self.logprobs)}")


@dataclass(frozen=True, slots=True)
class Cut:
    """A column whose values are made where a slice of its rows asks for them."""

    take: Callable[[slice], list[Any]]

    def __getitem__(self, part: slice) -> list[Any]:
        return self.take(part)


@dataclass(frozen=True, slots=True)
class Shape:
    """Expansions of a tree, one for each run of equal parents: entries start[i] … start[i + 1] − 1 are its drafts."""

    start: list[int]
    draws: list[int]

    @classmethod
    def of(cls, columns: Columns) -> Shape:
        first = np.flatnonzero(np.diff(columns.parent, prepend=-1)) if len(columns.parent) else np.empty(0, np.int64)
        sizes = np.diff(np.append(first, len(columns.parent)))
        drawn = sizes if columns.mult is None or not len(first) else np.add.reduceat(np.asarray(columns.mult), first)
        return cls([*first.tolist(), len(columns.parent)], drawn.tolist())

    def expansions(self, seqs: range, parent: NDArray[Any]) -> list[Own]:
        """(seq, node, drawn, id of the first draft, drafts) of some of them."""
        start = self.start
        return [(i, int(parent[start[i]]), self.draws[i], start[i] + 1, start[i + 1] - start[i]) for i in seqs]

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Ranges of expansions that have about ROWS_PER_CHUNK drafts."""
        first, count = 0, len(self.draws)
        for i in range(1, count + 1):
            if i == count or self.start[i] - self.start[first] >= ROWS_PER_CHUNK:
                yield first, i
                first = i


def node_values(columns: Columns, shape: Shape, encoder: Encoder) -> dict[str, Any]:
    """Every column of NODE_COLUMNS in order, and `n_tokens`: a Cut, or one value that all nodes have."""
    n = len(columns.parent)
    start = np.array(shape.start, np.int32)
    group = np.repeat(np.arange(len(shape.draws), dtype=np.int32), np.diff(start))
    mult = np.ones(n, np.int32) if columns.mult is None else np.asarray(columns.mult)
    slot = np.arange(n, dtype=np.int32) - start[group]
    values = DEFAULTS | {
        "policy_version": None,
        "id": Cut(lambda part: list(range(part.start + 1, part.stop + 1))),
        "parent": _numbers(np.asarray(columns.parent)),
        "born": _numbers(group),
        "slot": _numbers(slot),
        "mult": 1 if columns.mult is None else _numbers(mult),
        "share": _alike(mult / np.array(shape.draws)[group] if n else np.empty(0)),
        "seed": _numbers(np.asarray(columns.seed)),
        "text": _texts(columns.text, encoder),
        "ids": _bytes(columns.ids, columns.sizes, "<i4", b""),
        "logprobs": _bytes(columns.logprobs, columns.sizes, "<f4", b"f") if len(columns.logprobs) else b"",
        "action": None if columns.action is None else _texts(columns.action, encoder),
        "effect": Effect.READ.value,
        "score": None if columns.score is None else _alike(_reals(columns.score)),
        **_outcomes(columns, encoder, n),
        "n_tokens": _alike(np.asarray(columns.sizes)),
    }
    return {name: values[name] for name in (*NODE_COLUMNS, "n_tokens")}


def _outcomes(columns: Columns, encoder: Encoder, n: int) -> dict[str, Any]:
    if columns.seen is None:
        return dict(zip(OUTCOME_COLUMNS, NO_OUTCOME, strict=True))
    seen = np.asarray(columns.seen)
    pages = [encoder.observation(page) for page in columns.pages]
    out: dict[str, Any] = {name: DEFAULTS.get(name) for name in OUTCOME_COLUMNS} | {
        "steps": 1,
        "provenance": "environment",
    }
    for place, name in enumerate(("observation", "fingerprint", "provenance", "parts")):
        kinds = [page[place] for page in pages]
        out[name] = kinds[0] if len(set(kinds)) == 1 else _picked(kinds, seen)
    out["reward"] = 0.0 if columns.reward is None else _alike(_reals(columns.reward))
    status = NodeStatus.OPEN.value
    out["status"] = status if columns.status is None else _named([NodeStatus(s).value for s in columns.status])
    if (seen < 0).any():  # of a draft that was not executed, every one of these is NULL
        for (name, value), none in zip(out.items(), NO_OUTCOME, strict=True):
            if isinstance(value, Cut) or value != none:
                out[name] = _where(value, seen >= 0, none)
    return out


def _picked(kinds: Sequence[Any], seen: NDArray[Any]) -> Cut:
    return Cut(lambda part: [kinds[i] if i >= 0 else None for i in seen[part].tolist()])


def _where(value: Any, there: NDArray[np.bool_], none: Any) -> Cut:
    """The column where a node was executed, `none` elsewhere."""

    def take(part: slice) -> list[Any]:
        given = value[part] if isinstance(value, Cut) else [value] * (part.stop - part.start)
        return [v if known else none for v, known in zip(given, there[part].tolist(), strict=True)]

    return Cut(take)


def _numbers(values: NDArray[Any]) -> Cut:
    return Cut(lambda part: values[part].tolist())


def _listed(values: Sequence[Any]) -> Cut:
    return Cut(lambda part: list(values[part]))


def _bytes(flat: NDArray[Any], sizes: NDArray[Any], dtype: str, mark: bytes) -> Cut:
    """The bytes of each node's values, in the form of `pack_ids` and `pack_floats`."""
    flat, ends = np.asarray(flat), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def take(part: slice) -> list[Any]:
        at = ends[part.start : part.stop + 1]
        raw = np.ascontiguousarray(flat[at[0] : at[-1]], dtype).tobytes()
        places = ((at - at[0]) * 4).tolist()
        if not mark:
            return [raw[a:b] for a, b in pairwise(places)]
        return [mark + raw[a:b] if b > a else b"" for a, b in pairwise(places)]

    return Cut(take)


def _texts(given: Sequence[str | None], encoder: Encoder) -> Cut:
    """Redacted and escaped; looked at one by one only if something is found in all of them together."""
    joined = "\n".join(filter(None, given))
    plain = joined.isascii() and "\0" not in joined
    if plain and not any(needle in joined for needle in encoder.redact.needles):
        return _listed(given)
    return _listed([encoder.maybe(text) for text in given])


def _reals(values: NDArray[Any]) -> Any:
    """`real` of every value: an array where they need no change."""
    given = np.asarray(values, np.float64)
    odd = np.isnan(given) | ((given == 0) & np.signbit(given))
    return _listed([real(x) for x in given.tolist()]) if odd.any() else given


def _alike(values: Any) -> Any:
    """The one value of an array whose entries are all equal: it need not be bound row by row."""
    if isinstance(values, Cut):
        return values
    return values[0].item() if len(values) and (values == values[0]).all() else _numbers(values)


def _named(values: list[str]) -> Any:
    return values[0] if values and values.count(values[0]) == len(values) else _listed(values)
