"""What the viewer reads from a store: pages of the list, columns of a tree without texts, the turns of one path.

Everything is read on demand inside a snapshot, so that a store of a million nodes opens at once and a tree that is
still growing can be watched. Turns are verified against the checksums of their expansions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, and_, func, or_, select

from treewright.agent.view.finding import Finder, goal_of, terms_of
from treewright.agent.view.listing import Filters, Listing, list_page, where_of
from treewright.agent.view.weights import Weights
from treewright.envs.types import Action, Effect, Observation
from treewright.search.store.arrays import load_arrays
from treewright.search.store.codec import decode_expansion, decode_header, sum_of
from treewright.search.store.errors import StoreError
from treewright.search.store.models import EXPANSION_COLUMNS, NODE_COLUMNS, expansions, nodes, trees
from treewright.search.store.reading import Blobs, TreeRow, header_rows, key_of, list_trees
from treewright.search.store.scanning import scan
from treewright.search.store.tree_store import TreeStore
from treewright.search.store.values import unescape
from treewright.search.tree import TreeHeader
from treewright.search.types import Completion, Draft, Expansion, NodeKind, NodeStatus, Outcome

__all__ = ["EFFECTS", "LABELLED", "Columns", "Filters", "Listing", "Reader", "Turn"]

EFFECTS = tuple(Effect)
KINDS = tuple(NodeKind)
LABELLED = 50_000  # nodes of a tree up to which every node gets its label at once
WORDS = 100  # characters of a label
DRAFT = NodeStatus.DRAFT.value
MARKS = (
    "CASE WHEN error IS NOT NULL OR outcome_error <> '' THEN 1 ELSE 0 END",
    "CASE CASE WHEN coalesce(status, '') = '' THEN effect ELSE outcome_effect END "
    + " ".join(f"WHEN '{effect.value}' THEN {code}" for code, effect in enumerate(EFFECTS))
    + " END",
)
POPS = ("node", "coalesce(spent_policy_tokens + spent_closing_tokens, 0)")
FRESH = 5.0  # seconds for which names of weights are kept
RUNS = 1000  # runs whose checkpoints are looked for


@dataclass(frozen=True, slots=True)
class Columns:
    """A tree as numbers.

    arrays   [N] columns of `TreeStore.arrays` and score float32, effect int8 (index into EFFECTS), flags int8
             (1 = error, 2 = closing, 4 = all children are needed); rewards are NaN until the tree is done
    labels   [N] what each node did, in few words; None for trees of more than LABELLED nodes
    pops, tokens   [pops] the popped node, and tokens sampled up to and including this pop
    """

    row: TreeRow
    goal: str
    arrays: Mapping[str, NDArray[Any]]
    labels: Sequence[str] | None
    pops: NDArray[Any]
    tokens: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """One node with its texts; the root has an empty completion."""

    node: int
    completion: Completion
    action: Action | None
    error: str | None
    fault: str | None
    seed: int
    mult: int
    observation: Observation | None
    keep: int
    delta: tuple[int, ...]


class Reader:
    """Reads a store that was opened; safe in any thread. Close it where texts were looked for."""

    def __init__(self, store: TreeStore) -> None:
        self.store = store
        self._goals: dict[str, str] = {}
        self._named: tuple[float, Weights] | None = None
        self._finder: Finder | None = None
        self._lock = Lock()

    def close(self) -> None:
        """Lets the index of texts go."""
        with self._lock:
            if self._finder is not None:
                self._finder.close()
                self._finder = None

    @property
    def finder(self) -> Finder:
        """The index of texts, opened when it is first asked for."""
        with self._lock:
            if self._finder is None:
                self._finder = Finder(self.store)
            return self._finder

    def weights(self) -> Weights:
        """What the runs' checkpoints call their weights; looked up again after a few seconds."""
        now = time.monotonic()
        if self._named is None or now - self._named[0] > FRESH:
            with self.store.snapshot() as connection:
                found = connection.execute(select(trees.c.run).distinct().limit(RUNS)).scalars().all()
            self._named = now, Weights(self.store.name, [unescape(run) for run in found])
        return self._named[1]

    def facets(self) -> dict[str, list[str]]:
        """The values that occur in each column a list can be narrowed by."""
        with self.store.snapshot() as connection:
            found = {}
            for name in ("suite", "split", "run", "policy_version", "status"):
                values = connection.execute(select(trees.c[name]).distinct().order_by(trees.c[name]).limit(500))
                found[name] = [unescape(value) for (value,) in values]
            return found

    def listing(
        self, filters: Filters, limit: int = 100, offset: int = 0, sort: str = "", seconds: float | None = None
    ) -> Listing:
        """At most `limit` trees from the `offset`-th on, newest first or as `list_page` sorts them.

        seconds  how long texts that were never looked through may be read before the answer; None: until all are
        """
        terms = terms_of(filters.text)
        indexed = self.finder.update(seconds) if terms else 1.0
        weights = self.weights()
        where = where_of(filters, self.finder if terms else None, weights)
        with self.store.snapshot() as connection:
            rows, keys, counts = list_page(connection, where, limit, offset, sort, self._goals, weights)
        found = self.finder.hits(list(keys), terms) if terms else {}
        return Listing(rows, *counts, {keys[key]: hit for key, hit in found.items()}, indexed)

    def pulse(self, tree_ids: Sequence[str] = ()) -> dict[str, Any]:
        """How far everything is: number of trees, and (status, pops) of some. Cheap enough to ask every second."""
        with self.store.snapshot() as connection:
            count, running = connection.execute(
                select(func.count(), func.count().filter(trees.c.status == "running")).select_from(trees)
            ).one()
            some = {}
            for name in tree_ids:
                key = key_of(connection, name)
                seq = select(func.max(expansions.c.seq)).where(expansions.c.tree == key)
                status = connection.execute(select(trees.c.status).where(trees.c.key == key)).scalar_one()
                some[name] = [status, (connection.execute(seq).scalar_one_or_none() or -1) + 1]
        return {"trees": count, "running": running, "pops": some}

    def columns(self, tree_id: str, labels: bool = True) -> Columns:
        """A tree without its texts, with or without labels. Raises StoreError if it is not in the store."""
        with self.store.snapshot() as connection:
            key = key_of(connection, tree_id)
            (row,) = list_trees(connection, [trees.c.key == key])
            task = connection.execute(select(trees.c.task).where(trees.c.key == key)).scalar_one()
            arrays = dict(load_arrays(connection, [tree_id]))
            words = _marks(connection, key, arrays, labels)
            if row.status != "done":
                arrays["reward"] = np.full_like(arrays["reward"], np.nan)
            (_, popped, spent), _ = scan(connection, expansions, key, "seq", POPS, ("closing",))
            goal = goal_of(Blobs(connection)(task))
        return Columns(
            row,
            goal,
            arrays,
            words,
            popped.astype(np.int32),
            np.cumsum(spent, dtype=np.float64),
        )

    def path(self, tree_id: str, node: int) -> list[Turn]:
        """The turns from the root to `node`. Raises StoreError for unknown nodes and damaged rows."""
        with self.store.snapshot() as connection:
            key = key_of(connection, tree_id)
            path = _path(connection, key, tree_id, node)
            born = select(nodes.c.born).where(nodes.c.tree == key, nodes.c.id.in_(path))
            mine = and_(expansions.c.tree == key, or_(expansions.c.seq.in_(born), expansions.c.node.in_(path)))
            return _turns(connection, key, tree_id, mine, set(path))

    def turns(self, tree_id: str) -> list[Turn]:
        """Every node with its texts."""
        with self.store.snapshot() as connection:
            key = key_of(connection, tree_id)
            return _turns(connection, key, tree_id, expansions.c.tree == key, None)


def _marks(connection: Connection, key: int, arrays: dict[str, NDArray[Any]], labels: bool) -> Sequence[str] | None:
    """Adds score, effect and flags to the columns; gives the labels, or None where there would be too many."""
    n, c = len(arrays["node"]), nodes.c
    code = {effect.value: i for i, effect in enumerate(EFFECTS)}
    (_, wrong, effects), ((places, scores),) = scan(connection, nodes, key, "id", MARKS, ("score",))
    arrays["score"] = np.array(scores, np.float32)[places][:n]
    arrays["effect"], arrays["flags"] = effects[:n].astype(np.int8), wrong[:n].astype(np.int8)
    arrays["flags"][arrays["kind"][: len(wrong)] == KINDS.index(NodeKind.ALL)] |= 4
    x = expansions.c
    later = select(x.node, x.closing, x.first, x.drafts, x.status, x.outcome_effect, x.outcome_error)
    for node, closing, first, drafts, status, effect, error in connection.execute(
        later.where(x.tree == key, or_(x.closing.is_(True), x.status.is_not(None)))
    ):
        if closing:
            arrays["flags"][first : first + drafts] |= 2
        if status is not None:
            arrays["effect"][node] = code[effect]
            if status != DRAFT and error is not None:
                arrays["flags"][node] |= 1
    if not labels or n > LABELLED:
        return None
    said = select(c.action, func.substr(c.text, 1, 2 * WORDS)).where(c.tree == key).order_by(c.id)
    return [label(action, text) for action, text in connection.execute(said).all()[:n]]


def label(action: str | None, text: str) -> str:
    """What a node did, in few words: argument values without their names. Not cleaned."""
    said = unescape(text)
    if action is not None:
        calls = json.loads(unescape(action))
        values = ([call["name"], *map(_value, call["arguments"].values())] for call in calls)
        said = " + ".join(" ".join(words) for words in values)
    said = " ".join(said[: 4 * WORDS].split())
    return said if len(said) <= WORDS else said[: WORDS - 1] + "…"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _path(connection: Connection, key: int, tree_id: str, node: int) -> list[int]:
    """Ids from the root to `node`."""
    walk = select(nodes.c.id, nodes.c.parent).where(nodes.c.tree == key, nodes.c.id == node).cte(recursive=True)
    above = select(nodes.c.id, nodes.c.parent).where(nodes.c.tree == key, nodes.c.id == walk.c.parent)
    found = connection.execute(select(walk.union_all(above).c.id)).scalars().all()
    if not found:
        raise StoreError(f"tree {tree_id} has no node {node}; nodes are numbered from 0, the root")
    return sorted(found)


def _turns(connection: Connection, key: int, tree_id: str, mine: Any, wanted: set[int] | None) -> list[Turn]:
    fetch = Blobs(connection)
    header = decode_header(*header_rows(connection, key), fetch)
    done = list(_verified(connection, key, tree_id, mine, header.policy_version, fetch, wanted))
    found = {0: _root(header)}
    for some in done:
        for node, draft in zip(some.nodes, some.expansion.drafts, strict=True):
            found[node] = _turn(node, draft)
    for some in done:
        found |= _late(found, some)
    return [found[node] for node in sorted(found)]


@dataclass(frozen=True, slots=True)
class _Some:
    """An expansion with those of its drafts that are wanted, their ids, and the id of its last draft or None."""

    expansion: Expansion
    nodes: Sequence[int]
    last: int | None


def _verified(
    connection: Connection, key: int, tree_id: str, mine: Any, version: str, fetch: Blobs, wanted: set[int] | None
) -> Iterator[_Some]:
    """Expansions in order, each compared with its checksum; only wanted drafts are decoded."""
    columns = [expansions.c[name] for name in (*EXPANSION_COLUMNS, "checksum")]
    rows = connection.execute(select(*columns).where(mine).order_by(expansions.c.seq)).all()
    born = select(expansions.c.seq).where(mine)
    query = select(*(nodes.c[name] for name in NODE_COLUMNS)).where(nodes.c.tree == key, nodes.c.born.in_(born))
    drafts: dict[int, list[tuple[Any, ...]]] = {}
    at = NODE_COLUMNS.index("born")
    for draft in connection.execute(query.order_by(nodes.c.id)):
        drafts.setdefault(draft[at], []).append(tuple(draft))
    for found in rows:
        *row, told = found
        below = drafts.get(row[0], [])
        if sum_of(tuple(row), below) != told:
            raise StoreError(f"tree {tree_id}: expansion {row[0]} is damaged; restore the file from a copy")
        chosen = [draft for draft in below if wanted is None or draft[0] in wanted]
        expansion = decode_expansion(tuple(row), chosen, version, fetch)
        yield _Some(expansion, [draft[0] for draft in chosen], below[-1][0] if below else None)


def _root(header: TreeHeader) -> Turn:
    seen = header.root
    return Turn(0, Completion(""), None, seen.error, seen.fault, 0, 1, seen.observation, seen.keep, seen.delta)


def _turn(node: int, draft: Draft) -> Turn:
    bare = Turn(node, draft.completion, draft.action, draft.error, None, draft.seed, draft.mult, None, 0, ())
    return _executed(bare, draft.outcome)


def _executed(turn: Turn, outcome: Outcome | None) -> Turn:
    if outcome is None or outcome.status is NodeStatus.DRAFT:
        return turn
    return replace(
        turn,
        error=turn.error if outcome.error is None else outcome.error,
        fault=outcome.fault,
        observation=outcome.observation,
        keep=outcome.keep,
        delta=outcome.delta,
    )


def _late(found: Mapping[int, Turn], some: _Some) -> Iterable[tuple[int, Turn]]:
    """What an expansion did to nodes that were there before: executed the popped one, or failed."""
    expansion = some.expansion
    if (turn := found.get(expansion.node)) is not None and expansion.outcome is not None:
        yield turn.node, _executed(turn, expansion.outcome)
    if expansion.fault is not None:
        at = expansion.node if some.last is None else some.last
        if (turn := found.get(at)) is not None:
            yield at, replace(turn, fault=expansion.fault)
