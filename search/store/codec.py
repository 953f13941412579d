"""Objects to rows and back, exactly, field by field of `treewright.search.schema`.

What comes back equal: every field of an Expansion and of a TreeHeader, floats bit for bit (-5e-324 alone, which stands
for -0.0, comes back as that). JSON values come back as JSON does: tuples as lists, keys as strings. Texts are redacted
on the way in, so a text that held a secret comes back masked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any, Final

from treewright.envs.redact import Redactor
from treewright.envs.types import Action, Effect, Observation, Task, digest, seed_of
from treewright.search.fields import FIRST_SCHEMA
from treewright.search.header import TreeHeader
from treewright.search.past import with_past, without_past
from treewright.search.schema import DRAWN, EXECUTED, SPENT, FieldKind, NodeField, by_schema
from treewright.search.store.errors import StoreError
from treewright.search.store.models import EXPANSION_COLUMNS, NODE_COLUMNS, OUTCOME_COLUMNS, SPENT_COLUMNS
from treewright.search.store.sums import checksum
from treewright.search.store.values import (
    Row,
    escape,
    pack_floats,
    pack_ids,
    real,
    unescape,
    unpack,
    unpack_floats,
    unreal,
)
from treewright.search.types import Completion, Draft, Expansion, Outcome, Spent

__all__ = [
    "NODE_REST",
    "NO_OUTCOME",
    "POP_REST",
    "SPENT_NAMES",
    "Encoder",
    "decode_expansion",
    "decode_header",
    "decode_observation",
    "decode_spent",
    "decoder_of",
    "default_of",
    "pop_order",
    "rest_of",
    "sum_of",
]

Fetch = Callable[[str], bytes]

BYTES_KEY: Final = "$treewright.blob"
SHORT, REMEMBERED = 1024, 4096  # characters of a text that an encoder remembers, and how many of them


# -- fields and their columns ------------------------------------------------------------------------------------------

PACKED: Final[dict[FieldKind, Callable[[Any], Any]]] = {
    FieldKind.REAL: real,
    FieldKind.NAME: attrgetter("_value_"),
    FieldKind.IDS: pack_ids,
    FieldKind.REALS: pack_floats,
}
GIVEN: Final = tuple(by_schema(EXECUTED))
PAID: Final = tuple(by_schema(SPENT))
get_given = attrgetter(*(f.path for f in GIVEN))
get_paid = attrgetter(*(f.path for f in PAID))


def default_of(f: NodeField) -> Any:
    """The default of a field as its column holds it; nodes that were stored before there was the field have it."""
    return PACKED[f.kind](f.default) if f.kind in PACKED and f.default is not None else f.default


def _later(given: Sequence[NodeField]) -> Row:
    return tuple(default_of(f) for f in by_schema(given) if f.since > FIRST_SCHEMA)


def _places(wanted: Sequence[str], row: Sequence[str]) -> Callable[[Sequence[Any]], Row]:
    """Picks the columns of those names out of a row."""
    return itemgetter(*(row.index(name) for name in wanted))


NODE_REST: Final = _later([*DRAWN, *EXECUTED])
POP_REST: Final = _later([*SPENT, *EXECUTED])
NO_OUTCOME: Final[Row] = (None,) * (len(OUTCOME_COLUMNS) - len(_later(EXECUTED))) + _later(EXECUTED)

DRAWN_COLUMNS: Final = tuple(f.column for f in DRAWN)
SPENT_NAMES: Final = tuple(f"spent_{name}" for name in SPENT_COLUMNS)
SAID: Final = [i for i, f in enumerate(DRAWN) if f.path.startswith("completion.")]
SAID_PART: Final = slice(SAID[0], SAID[-1] + 1)
SAID_NAMES: Final = tuple(f.name for f in DRAWN[SAID_PART])
OWN: Final = (*DRAWN[: SAID[0]], *DRAWN[SAID[-1] + 1 :])
OWN_NAMES: Final = tuple(f.name for f in OWN)
get_said, get_own = attrgetter(*SAID_NAMES), attrgetter(*OWN_NAMES)
VERSION: Final = DRAWN_COLUMNS.index("policy_version")
node_order = _places(NODE_COLUMNS[3:], (*DRAWN_COLUMNS, *OUTCOME_COLUMNS))
pop_order = _places(EXPANSION_COLUMNS[7:], (*SPENT_NAMES, *OUTCOME_COLUMNS))
drawn_of = _places(DRAWN_COLUMNS, NODE_COLUMNS)
outcome_of_node = _places(OUTCOME_COLUMNS, NODE_COLUMNS)
outcome_of_pop = _places(OUTCOME_COLUMNS, EXPANSION_COLUMNS)
spent_of_pop = _places(SPENT_NAMES, EXPANSION_COLUMNS)


def rest_of(row: Row, later: Row) -> Row:
    """The row without those of its last columns, the `later` ones, that hold what older nodes have there.

    So checksums of older schemas stay right, and a row has one checksum whatever the schema that it was written in.
    """
    end, first = len(row), len(row) - len(later)
    if row[first:] == later:
        return row[:first]
    while end > first and row[end - 1] == later[end - 1 - first]:
        end -= 1
    return row[:end]


def sum_of(row: Row, below: Sequence[Row]) -> str:
    """The checksum of an expansion and its drafts."""
    return checksum(rest_of(row, POP_REST), *(rest_of(r, NODE_REST) for r in below))


# -- writing ----------------------------------------------------------------------------------------------------------


class Encoder:
    """Turns objects into rows and gathers the blobs that the rows refer to.

    One encoder may serve a store for good: `take` hands over the blobs gathered so far. It remembers short texts,
    which come again and again in a tree.
    """

    def __init__(self, redact: Redactor) -> None:
        self.redact = redact
        self.blobs: dict[str, bytes] = {}
        self._said: dict[str, str] = {}
        self._shown: dict[str, tuple[str, bytes]] = {}
        self._acted: dict[int, tuple[Action, str]] = {}  # by identity, which the entry keeps alive
        self._drawn: dict[int, tuple[Completion, list[Any]]] = {}  # by identity, too
        self._needles = redact.needles
        self._own, self._saying = self._writing(OWN), self._writing(DRAWN[SAID_PART])
        self._given, self._paid = self._writing(GIVEN), self._writing(PAID)

    def take(self) -> dict[str, bytes]:
        """The blobs since the last call."""
        blobs, self.blobs = self.blobs, {}
        return blobs

    def outdated(self) -> bool:
        """True once after more secrets were learned: what it remembered was written without them, and is gone."""
        needles = self.redact.needles
        if needles is self._needles:
            return False
        self._needles = needles
        for remembered in (self._said, self._shown, self._acted, self._drawn):
            remembered.clear()
        return True

    def text(self, value: str) -> str:
        known = self._said.get(value)
        if known is None:
            known = escape(self.redact.text(value))
            if len(value) <= SHORT:
                if len(self._said) >= REMEMBERED:
                    self._said.clear()
                self._said[value] = known
        return known

    def maybe(self, value: str | None) -> str | None:
        return None if value is None else self.text(value)

    def action(self, action: Action | None) -> str | None:
        """The canonical key. A search says the same few texts again and again, and reads each once."""
        if action is None:
            return None
        known = self._acted.get(id(action))
        if known is None:
            known = (action, self.text(action.key))
            if len(self._acted) >= REMEMBERED:
                self._acted.clear()
            self._acted[id(action)] = known
        return known[1]

    def blob(self, value: str | bytes) -> str:
        """The digest under which a content is kept."""
        if isinstance(value, bytes):
            content = self.redact.bytes(value)
            name = digest(content)
        elif (known := self._shown.get(value)) is not None:
            name, content = known
        else:
            content = self.redact.text(value).encode("utf-8", "surrogatepass")
            name = digest(content)
            if len(value) <= SHORT:
                if len(self._shown) >= REMEMBERED:
                    self._shown.clear()
                self._shown[value] = (name, content)
        self.blobs[name] = content
        return name

    def json(self, value: Any) -> str:
        def default(other: Any) -> Any:
            if isinstance(other, bytes):
                return {BYTES_KEY: self.blob(other)}
            if isinstance(other, Mapping):
                return dict(other)
            raise TypeError(f"a value of type {type(other).__name__} is not JSON: {other!r:.80}")

        return json.dumps(value, default=default, ensure_ascii=False, separators=(",", ":"))

    def observation(self, seen: Observation) -> Row:
        parts = self.text(self.json(seen.parts)) if seen.parts else None
        return self.blob(seen.text), self.text(seen.fingerprint), self.text(seen.provenance), parts

    def _writing(self, given: Sequence[NodeField]) -> list[tuple[int, Callable[[Any], Any]]]:
        """Where values of these fields change on their way into columns, and how. Plain ones stay, and None does."""
        kinds: dict[FieldKind, Callable[[Any], Any]] = {
            **PACKED, FieldKind.TEXT: self.text, FieldKind.ACTION: self.action,
        }  # fmt: skip
        return [(i, kinds[f.kind]) for i, f in enumerate(given) if f.kind in kinds]

    @staticmethod
    def _written(values: list[Any], writing: Sequence[tuple[int, Callable[[Any], Any]]]) -> list[Any]:
        """The values of fields as their columns hold them, in place."""
        for i, write in writing:
            value = values[i]
            if value is not None:
                values[i] = write(value)
        return values

    def outcome(self, outcome: Outcome | None) -> Row:
        """OUTCOME_COLUMNS of an outcome."""
        if outcome is None:
            return NO_OUTCOME
        values = self._written(list(get_given(outcome)), self._given)
        return (*self.observation(values[0]), *values[1:])

    def spent(self, spent: Spent) -> Row:
        """SPENT_COLUMNS."""
        return tuple(self._written(list(get_paid(spent)), self._paid))

    def root(self, header: TreeHeader) -> Row:
        """The row of the root: a draft that says nothing, and what reset gave."""
        said = Completion("", finish_reason="", policy_version=header.policy_version)
        draft = Draft(
            after=0,
            slot=0,
            mult=1,
            share=1.0,
            seed=seed_of(header.seed, "root"),
            completion=said,
            action=None,
            error=None,
            effect=Effect.READ,
            outcome=header.root,
        )
        return self.node(0, None, -1, draft, header.policy_version)

    def node(self, node: int, parent: int | None, born: int, draft: Draft, version: str) -> Row:
        """NODE_COLUMNS of a draft."""
        done = draft.completion
        own = self._written(list(get_own(draft)), self._own)
        values = [*own[: SAID[0]], *self.said(done), *own[SAID[0] :]]
        if done.policy_version == version:
            values[VERSION] = None
        values += self.outcome(draft.outcome)
        return (node, parent, born, *node_order(values))

    def said(self, done: Completion) -> list[Any]:
        """The columns of a draw. Scripts and replays give the same one again and again."""
        known = self._drawn.get(id(done))
        if known is None:
            known = (done, self._written(list(get_said(done)), self._saying))
            if len(self._drawn) >= REMEMBERED:
                self._drawn.clear()
            self._drawn[id(done)] = known
        return known[1]

    def header(self, header: TreeHeader, created: float) -> tuple[Row, Row]:
        """The row of a tree up to its checksum, and the row of its root."""
        task, root = header.task, self.root(header)
        body = {
            "goal": task.goal,
            "seed": task.seed,
            "horizon": task.horizon,
            "data": task.data,
            "truth": task.truth,
        }
        above = header.continues or (None, None)
        row = (
            header.tree_id,
            self.text(header.run),
            self.text(task.suite),
            self.text(task.id),
            self.text(task.split),
            header.attempt,
            header.seed,
            self.text(header.policy_version),
            self.blob(self.json(body)),
            self.blob(self.json(with_past(header.settings, header.past))),
            *above,
            created,
        )
        return (*row, checksum(row, rest_of(root, NODE_REST))), root


# -- reading ----------------------------------------------------------------------------------------------------------


def _json(text: str, fetch: Fetch) -> Any:
    def hook(value: dict[str, Any]) -> Any:
        return fetch(value[BYTES_KEY]) if value.keys() == {BYTES_KEY} else value

    return json.loads(text, object_hook=hook)


def _maybe(value: str | None) -> str | None:
    return None if value is None else unescape(value)


def _content(fetch: Fetch, name: str) -> str:
    return fetch(name).decode("utf-8", "surrogatepass")


def decode_observation(row: Row, fetch: Fetch) -> Observation | None:
    name, fingerprint, provenance, parts = row
    if name is None:
        return None
    shown = tuple(_json(unescape(parts), fetch)) if parts else ()
    return Observation(_content(fetch, name), unescape(fingerprint), provenance=unescape(provenance), parts=shown)


def decoder_of(f: NodeField) -> Callable[[Any], Any] | None:
    """How the value of a column becomes that of the field; None where it is that already."""
    kinds: dict[FieldKind, Callable[[Any], Any]] = {
        FieldKind.REAL: unreal,
        FieldKind.TEXT: unescape,
        FieldKind.NAME: f.type,
        FieldKind.IDS: partial(unpack, "i"),
        FieldKind.REALS: unpack_floats,
        FieldKind.ACTION: lambda key: Action.from_key(unescape(key)),
    }
    decode = kinds.get(f.kind)
    if decode is None or not f.optional:
        return decode
    return lambda value: None if value is None else decode(value)


DRAWN_DECODERS: Final = tuple(decoder_of(f) for f in DRAWN)
GIVEN_DECODERS: Final = tuple(decoder_of(f) for f in GIVEN[1:])
PAID_DECODERS: Final = tuple(decoder_of(f) for f in PAID)
GIVEN_NAMES: Final = tuple(f.name for f in GIVEN[1:])
PAID_NAMES: Final = tuple(f.name for f in PAID)


def _values(decoders: Sequence[Callable[[Any], Any] | None], row: Row) -> list[Any]:
    return [value if decode is None else decode(value) for decode, value in zip(decoders, row, strict=True)]


def decode_outcome(row: Row, fetch: Fetch) -> Outcome | None:
    """The outcome of OUTCOME_COLUMNS, None where nothing was executed."""
    seen = decode_observation(row[:4], fetch)
    if seen is None:
        return None
    return Outcome(seen, **dict(zip(GIVEN_NAMES, _values(GIVEN_DECODERS, row[4:]), strict=True)))


def decode_draft(row: Row, node: int, first: int, version: str, fetch: Fetch) -> Draft:
    """The draft of NODE_COLUMNS, one of an expansion of `node` whose first draft is `first`."""
    parent, columns = row[1], drawn_of(row)
    own = columns[VERSION]
    if own is None:
        columns = (*columns[:VERSION], "", *columns[VERSION + 1 :])
    values = _values(DRAWN_DECODERS, columns)
    if own is None:
        values[VERSION] = version
    said = Completion(**dict(zip(SAID_NAMES, values[SAID_PART], strict=True)))
    del values[SAID_PART]
    return Draft(
        after=0 if parent == node else parent - first + 1,
        completion=said,
        outcome=decode_outcome(outcome_of_node(row), fetch),
        **dict(zip(OWN_NAMES, values, strict=True)),
    )


def decode_spent(row: Row) -> Spent:
    """The cost of SPENT_COLUMNS."""
    return Spent(**dict(zip(PAID_NAMES, _values(PAID_DECODERS, row), strict=True)))


def decode_expansion(row: Row, below: Sequence[Row], version: str, fetch: Fetch) -> Expansion:
    """The expansion of a row (checksum left out) and the rows of its drafts."""
    seq, node, closing, drawn, first, _, fault = row[:7]
    return Expansion(
        seq=seq,
        node=node,
        closing=closing,
        drawn=drawn,
        outcome=decode_outcome(outcome_of_pop(row), fetch),
        drafts=tuple(decode_draft(r, node, first, version, fetch) for r in below),
        spent=decode_spent(spent_of_pop(row)),
        fault=_maybe(fault),
    )


def decode_header(row: Row, root: Row, fetch: Fetch) -> TreeHeader:
    (_, run, suite, task_id, split, attempt, seed, version, body, settings, above, above_node, _) = row
    task = _json(_content(fetch, body), fetch)
    outcome = decode_outcome(outcome_of_node(root), fetch)
    if outcome is None:
        raise StoreError(f"tree {row[0]} has no root outcome; restore the file from a copy")
    try:
        given, past = without_past(_json(_content(fetch, settings), fetch))
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"the settings of tree {row[0]} cannot be read; restore the file from a copy") from error
    return TreeHeader(
        run=unescape(run),
        task=Task(unescape(suite), unescape(task_id), split=unescape(split), **task),
        attempt=attempt,
        seed=seed,
        policy_version=unescape(version),
        settings=given,
        root=outcome,
        continues=None if above is None else (above, above_node),
        past=past,
    )
