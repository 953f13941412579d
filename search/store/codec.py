"""Objects to rows and back, exactly.

What comes back equal: every field of an Expansion and of a TreeHeader, floats bit for bit (-5e-324 alone, which stands
for -0.0, comes back as that). JSON values come back as JSON does: tuples as lists, keys as strings. Texts are redacted
on the way in, so a text that held a secret comes back masked.
"""

from __future__ import annotations

import json
import math
import sys
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from treewright.envs.types import Action, Effect, Observation, Task, digest, seed_of
from treewright.search.store.errors import StoreError
from treewright.search.store.models import EXPANSION_COLUMNS, NODE_COLUMNS, OUTCOME_COLUMNS
from treewright.search.store.redact import Redactor
from treewright.search.store.sums import Row, checksum
from treewright.search.tree import TreeHeader
from treewright.search.types import Completion, Draft, Expansion, NodeStatus, Origin, Outcome, Spent

__all__ = ["Encoder", "Row", "checksum", "compress", "decode_expansion", "decode_header", "decode_outcome", "expand"]

Fetch = Callable[[str], bytes]

ESCAPED: Final = "\ufffe"  # a noncharacter: marks texts that databases cannot hold as they are
NEGATIVE_ZERO: Final = -5e-324  # SQLite keeps no sign of zero, and the sign shows in a tree's digest
BYTES_KEY: Final = "$treewright.blob"
NO_OUTCOME: Final[Row] = (None,) * len(OUTCOME_COLUMNS)
NODE_OUTCOME: Final = NODE_COLUMNS.index("observation")
EXPANSION_OUTCOME: Final = EXPANSION_COLUMNS.index("observation")
EXPANSION_SPENT: Final = EXPANSION_COLUMNS.index("spent_expansions")
WORTH_COMPRESSING: Final = 128
SHORT, REMEMBERED = 1024, 4096  # characters of a text that an encoder remembers, and how many of them


# -- values -----------------------------------------------------------------------------------------------------------


def escape(text: str) -> str:
    """The text, or an ASCII form of it where it has NULs or lone surrogates."""
    if text.isascii():
        clean = "\0" not in text
    else:
        clean = "\0" not in text and not text.startswith(ESCAPED) and not any("\ud800" <= c <= "\udfff" for c in text)
    return text if clean else ESCAPED + text.encode("unicode_escape").decode("ascii")


def unescape(text: str) -> str:
    return text[1:].encode("ascii").decode("unicode_escape") if text.startswith(ESCAPED) else text


def real(value: float) -> float | None:
    """NaN as NULL, -0.0 as the negative number next to it."""
    if value:
        return float(value) if value == value else None
    return 0.0 if math.copysign(1.0, value) > 0 else NEGATIVE_ZERO


def unreal(value: float | None) -> float:
    if value is None:
        return math.nan
    return -0.0 if value == NEGATIVE_ZERO else value


def _little(values: array[Any]) -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _unpack(code: str, raw: bytes) -> tuple[Any, ...]:
    values: array[Any] = array(code, raw)
    if sys.byteorder == "big":
        values.byteswap()
    return tuple(values)


def pack_ids(ids: Sequence[int]) -> bytes:
    return _little(array("i", ids)) if ids else b""


def pack_floats(values: Sequence[float]) -> bytes:
    """'f' + float32 where nothing is lost, else 'd' + float64; empty for no values."""
    if not values:
        return b""
    small = array("f", values)
    return b"f" + _little(small) if tuple(small) == tuple(values) else b"d" + _little(array("d", values))


def unpack_floats(raw: bytes) -> tuple[float, ...]:
    return _unpack(chr(raw[0]), raw[1:]) if raw else ()


def compress(data: bytes) -> tuple[str, bytes]:
    """(codec, bytes): zlib where it helps."""
    if len(data) >= WORTH_COMPRESSING:
        small = zlib.compress(data, 1)
        if len(small) < len(data):
            return "zlib", small
    return "raw", data


def expand(name: str, codec: str, data: bytes) -> bytes:
    """The content of a blob. Raises StoreError if it is not what its digest says."""
    try:
        content = zlib.decompress(data) if codec == "zlib" else data
    except (zlib.error, TypeError):
        content = None
    if content is None or codec not in ("zlib", "raw") or digest(content) != name:
        raise StoreError(f"blob {name} is damaged: its content does not match its digest; restore the file from a copy")
    return content


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

    def take(self) -> dict[str, bytes]:
        """The blobs since the last call."""
        blobs, self.blobs = self.blobs, {}
        return blobs

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

    def outcome(self, outcome: Outcome | None) -> Row:
        if outcome is None:
            return NO_OUTCOME
        return (
            *self.observation(outcome.observation),
            outcome.status._value_,
            real(outcome.reward),
            outcome.effect._value_,
            self.maybe(outcome.error),
            self.maybe(outcome.fault),
            outcome.keep,
            pack_ids(outcome.delta),
            outcome.steps,
        )

    def spent(self, spent: Spent) -> Row:
        return (
            spent.expansions,
            spent.policy_tokens,
            spent.judge_tokens,
            spent.env_steps,
            real(spent.seconds),
            real(spent.money),
            spent.closing_tokens,
            spent.closing_steps,
        )

    def root(self, header: TreeHeader) -> Row:
        seed = seed_of(header.seed, "root")
        said = ("", b"", b"", "", None, True, Origin.POLICY.value, 1.0, None, None, Effect.READ.value, None)
        return (0, None, -1, 0, 1, 1.0, seed, *said, *self.outcome(header.root))

    def node(self, node: int, parent: int, born: int, draft: Draft, version: str) -> Row:
        done = draft.completion
        return (
            node,
            parent,
            born,
            draft.slot,
            draft.mult,
            real(draft.share),
            draft.seed,
            self.text(done.text),
            pack_ids(done.token_ids),
            pack_floats(done.logprobs),
            self.text(done.finish_reason),
            None if done.policy_version == version else self.text(done.policy_version),
            done.trainable,
            done.origin._value_,
            real(done.temperature),
            self.action(draft.action),
            self.maybe(draft.error),
            draft.effect._value_,
            real(draft.score),
            *self.outcome(draft.outcome),
        )

    def expansion(self, expansion: Expansion, first: int, version: str) -> tuple[Row, list[Row]]:
        """The row of an expansion, its checksum at the end, and the rows of its drafts."""
        below = [
            self.node(first + i, expansion.node if d.after == 0 else first + d.after - 1, expansion.seq, d, version)
            for i, d in enumerate(expansion.drafts)
        ]
        row = (
            expansion.seq,
            expansion.node,
            expansion.closing,
            expansion.drawn,
            first,
            len(below),
            self.maybe(expansion.fault),
            *self.spent(expansion.spent),
            *self.outcome(expansion.outcome),
        )
        return (*row, checksum(row, *below)), below

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
            self.blob(self.json(header.settings)),
            *above,
            created,
        )
        return (*row, checksum(row, root)), root


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
    return Observation(_content(fetch, name), unescape(fingerprint), unescape(provenance), shown)


def decode_outcome(row: Row, fetch: Fetch) -> Outcome | None:
    seen = decode_observation(row[:4], fetch)
    if seen is None:
        return None
    status, reward, effect, error, fault, keep, delta, steps = row[4:]
    return Outcome(
        seen,
        NodeStatus(status),
        unreal(reward),
        Effect(effect),
        keep,
        _unpack("i", delta),
        _maybe(error),
        _maybe(fault),
        steps,
    )


def decode_draft(row: Row, node: int, first: int, version: str, fetch: Fetch) -> Draft:
    (_, parent, _, slot, mult, share, seed, text, ids, logprobs, finish, own, trainable, origin, heat, *rest) = row
    action, error, effect, score = rest[:4]
    completion = Completion(
        unescape(text),
        _unpack("i", ids),
        unpack_floats(logprobs),
        unescape(finish),
        version if own is None else unescape(own),
        trainable,
        Origin(origin),
        unreal(heat),
    )
    return Draft(
        0 if parent == node else parent - first + 1,
        slot,
        mult,
        unreal(share),
        seed,
        completion,
        None if action is None else Action.from_key(unescape(action)),
        _maybe(error),
        Effect(effect),
        unreal(score),
        decode_outcome(row[NODE_OUTCOME:], fetch),
    )


def decode_spent(row: Row) -> Spent:
    expansions, policy, judge, steps, seconds, money, closing_tokens, closing_steps = row
    return Spent(expansions, policy, judge, steps, unreal(seconds), unreal(money), closing_tokens, closing_steps)


def decode_expansion(row: Row, below: Sequence[Row], version: str, fetch: Fetch) -> Expansion:
    """The expansion of a row (checksum left out) and the rows of its drafts."""
    seq, node, closing, drawn, first, _, fault = row[:EXPANSION_SPENT]
    return Expansion(
        seq,
        node,
        closing,
        drawn,
        decode_outcome(row[EXPANSION_OUTCOME:], fetch),
        tuple(decode_draft(r, node, first, version, fetch) for r in below),
        decode_spent(row[EXPANSION_SPENT:EXPANSION_OUTCOME]),
        _maybe(fault),
    )


def decode_header(row: Row, root: Row, fetch: Fetch) -> TreeHeader:
    (_, run, suite, task_id, split, attempt, seed, version, body, settings, above, above_node, _) = row
    task = _json(_content(fetch, body), fetch)
    outcome = decode_outcome(root[NODE_OUTCOME:], fetch)
    if outcome is None:
        raise StoreError(f"tree {row[0]} has no root outcome; restore the file from a copy")
    return TreeHeader(
        unescape(run),
        Task(unescape(suite), unescape(task_id), split=unescape(split), **task),
        attempt,
        seed,
        unescape(version),
        _json(_content(fetch, settings), fetch),
        outcome,
        None if above is None else (above, above_node),
    )
