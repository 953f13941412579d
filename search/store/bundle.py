"""Expansions to rows, many at once: a pass over each column instead of one over each row.

The rows are those of `Encoder`, value by value. What a tree says again and again (a draw, an action, a page) is written
out once and looked up after that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from treewright.search.schema import FieldKind, NodeField
from treewright.search.store.codec import (
    GIVEN,
    NO_OUTCOME,
    OWN,
    PACKED,
    PAID,
    REMEMBERED,
    SAID,
    SHORT,
    VERSION,
    Encoder,
    get_given,
    get_own,
    get_paid,
    node_order,
    pop_order,
    sum_of,
)
from treewright.search.store.values import Row, real
from treewright.search.types import Draft, Expansion, Outcome

__all__ = ["Bundler", "Grown", "Rows"]

Column = Sequence[Any]


class Grown(NamedTuple):
    """An expansion that is to be written: into the tree of a key, whose policy has a version, from a node id on."""

    key: int
    version: str
    expansion: Expansion
    first: int


class Rows(NamedTuple):
    """What is inserted: rows of the tables `expansions` and `nodes`, with every column."""

    expansions: list[Row]
    nodes: list[Row]


class Bundler:
    """Serves a store for good, in the thread of its writer; the blobs that rows refer to gather in the encoder."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._seen: dict[tuple[str, str, str], tuple[Row, bytes]] = {}
        self._own, self._given, self._paid = self._writers(OWN), self._writers(GIVEN), self._writers(PAID)

    def rows(self, given: Sequence[Grown]) -> Rows:
        """The rows of expansions, in order. Raises what a value raises that no column can hold."""
        if self.encoder.outdated():
            self._seen.clear()
        drafts, places = list[Draft](), list[tuple[int, int, int, int, str]]()
        for key, version, expansion, first in given:
            node, born = expansion.node, expansion.seq
            for i, draft in enumerate(expansion.drafts):
                drafts.append(draft)
                above = node if draft.after == 0 else first + draft.after - 1
                places.append((key, first + i, above, born, version))
        below = self._nodes(drafts, places)
        pops, at = list[Row](), 0
        outcomes = self._outcomes([e.outcome for _, _, e, _ in given])
        spent = self._columns([e.spent for _, _, e, _ in given], get_paid, self._paid)
        for (key, _, e, first), *values in zip(given, *spent, *outcomes, strict=True):
            count = len(e.drafts)
            fault = self.encoder.maybe(e.fault)
            row = (e.seq, e.node, e.closing, e.drawn, first, count, fault, *pop_order(values))
            drawn = [row[1:-1] for row in below[at : at + count]]
            pops.append((key, *row, sum_of(row, drawn)))
            at += count
        return Rows(pops, below)

    def _nodes(self, drafts: Sequence[Draft], places: Sequence[tuple[int, int, int, int, str]]) -> list[Row]:
        """Whole rows of the table: key of the tree, NODE_COLUMNS, number of tokens."""
        if not drafts:
            return []
        keys, ids, parents, born, versions = zip(*places, strict=True)
        own = self._columns(drafts, get_own, self._own)
        drawn = [draft.completion for draft in drafts]
        said = list(zip(*map(self.encoder.said, drawn), strict=True))
        said[VERSION - SAID[0]] = tuple(
            None if done.policy_version == version else written
            for done, version, written in zip(drawn, versions, said[VERSION - SAID[0]], strict=True)
        )
        outcomes = self._outcomes([draft.outcome for draft in drafts])
        columns = node_order([*own[: SAID[0]], *said, *own[SAID[0] :], *outcomes])
        sizes = [len(done.token_ids) for done in drawn]
        return list(zip(keys, ids, parents, born, *columns, sizes, strict=True))

    def _outcomes(self, outcomes: Sequence[Outcome | None]) -> list[Column]:
        """OUTCOME_COLUMNS, column by column."""
        there = [outcome for outcome in outcomes if outcome is not None]
        if not there:
            return [(value,) * len(outcomes) for value in NO_OUTCOME]
        shown, *values = self._columns(there, get_given, self._given)
        columns = [*zip(*map(self._observation, shown), strict=True), *values]
        if len(there) == len(outcomes):
            return columns
        rows = zip(*columns, strict=True)
        whole = [NO_OUTCOME if outcome is None else next(rows) for outcome in outcomes]
        return list(zip(*whole, strict=True))

    def _observation(self, seen: Any) -> Row:
        """What an observation becomes, with its page among the blobs."""
        if seen.parts or len(seen.text) > SHORT:
            return self.encoder.observation(seen)
        about = (seen.text, seen.fingerprint, seen.provenance)
        known = self._seen.get(about)
        if known is None:
            row = self.encoder.observation(seen)
            known = (row, self.encoder.blobs[row[0]])
            if len(self._seen) >= REMEMBERED:
                self._seen.clear()
            self._seen[about] = known
        row, content = known
        self.encoder.blobs[row[0]] = content
        return row

    @staticmethod
    def _columns(
        records: Sequence[Any],
        get: Callable[[Any], Row],
        writers: Sequence[Callable[[Column], Column] | None],
    ) -> list[Column]:
        """The fields of records as their columns hold them, a list for each."""
        columns = zip(*map(get, records), strict=True)
        return [column if write is None else write(column) for column, write in zip(columns, writers, strict=True)]

    def _writers(self, given: Sequence[NodeField]) -> list[Callable[[Column], Column] | None]:
        """How the values of each field change on their way into a column; None where they stay as they are."""
        return [self._writer(f) for f in given]

    def _writer(self, f: NodeField) -> Callable[[Column], Column] | None:
        if f.kind is FieldKind.REAL:
            return _reals
        kinds: dict[FieldKind, Callable[[Any], Any]] = {
            **PACKED, FieldKind.TEXT: self.encoder.text, FieldKind.ACTION: self.encoder.action,
        }  # fmt: skip
        write = kinds.get(f.kind)
        if write is None:
            return None
        if f.kind is FieldKind.NAME and not f.optional:
            return lambda column: list(map(write, column))
        return lambda column: [None if value is None else write(value) for value in column]


def _reals(column: Column) -> Column:
    """Most are plain floats, which stay; NaN, zeros and whole numbers are looked at."""
    return [
        value if value.__class__ is float and value and value == value else None if value is None else real(value)
        for value in column
    ]
