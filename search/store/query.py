"""Questions about stored trees and nodes.

store.trees(where={"suite": "kg", "nodes >=": 20, "success": True, "task_id in": ["3", "7"]})
store.nodes(action="buy", effect="irreversible")
store.branches(at_least=0.5)                  # siblings whose values lie that far apart
store.path_to(tree_id, 17)
"""

from __future__ import annotations

import difflib
import json
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, and_, case, func, select

from treewright.search.schema import DRAWN, EXECUTED, NUMERIC, FieldKind
from treewright.search.store.arrays import STATUSES
from treewright.search.store.codec import decoder_of
from treewright.search.store.errors import StoreError
from treewright.search.store.models import INHERITED, blobs, expansions, nodes, trees
from treewright.search.store.operands import column_for, operand, typed
from treewright.search.store.reading import Blobs, key_of
from treewright.search.store.values import escape, unescape, unreal
from treewright.search.types import NodeStatus

__all__ = ["Branch", "NodeRow", "branches_of", "conditions", "find_nodes", "find_path", "parse_where"]

FIELDS = {
    name: trees.c[name]
    for name in (
        "run", "suite", "task_id", "split", "attempt", "seed", "policy_version", "status", "created", "ended", "chosen",
        "stopped_by", "outcome", "success",
    )
} | {
    "tree_id": trees.c.id,
    "task": trees.c.task_id,
    "nodes": trees.c.count,
    "tokens": trees.c.spent_policy_tokens,
    "env_steps": trees.c.spent_env_steps,
    "seconds": trees.c.spent_seconds,
    "expansions": trees.c.spent_expansions,
}  # fmt: skip
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda column, values: column.in_(list(values)),
    "like": lambda column, pattern: column.like(pattern),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """A node in a list.

    action        canonical key, None for the root and for responses that could not be read
    status        what executing it gave; 'draft' if it was not executed
    score         the evaluator's estimate, NaN without one;  reward  truth, NaN where unknown
    observation   what the world showed; None unless asked for and executed
    more          every other number, flag, name and text that the schema has of a node, by its name in a Tree; but for
                  `routes`, which are large
    """

    tree_id: str
    node: int
    parent: int | None
    text: str
    action: str | None
    effect: str
    error: str | None
    status: str
    score: float
    reward: float
    n_tokens: int
    observation: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """Siblings with their values: `gap` is the greatest minus the least.

    values   one for each child; NaN where nothing is known
    """

    tree_id: str
    node: int
    children: tuple[int, ...]
    values: tuple[float, ...]
    gap: float


# -- trees ------------------------------------------------------------------------------------------------------------


def conditions(where: Mapping[str, object]) -> list[Any]:
    """SQL conditions on trees from {"field": value} or {"field operator": value}; None means NULL.

    Fields: those of TreeRow, `task`, and tokens, env_steps, seconds, expansions and nodes of trees that are done.
    Operators: = (which may be left out) != < <= > >= in like. Values have the type of their field: numbers are
    numbers, `created` and `ended` are also dates, datetimes and ISO texts (UTC where they do not say otherwise),
    `success` is a bool or one of true, false, yes, no. Raises StoreError naming what is unknown or does not fit.
    """
    return [_condition(key, value) for key, value in where.items()]


def _condition(key: str, value: object) -> Any:
    name, _, sign = key.strip().partition(" ")
    sign = sign.strip() or "="
    compare = OPERATORS.get(sign)
    if name not in FIELDS:
        near = difflib.get_close_matches(name, FIELDS, n=1)
        raise StoreError(f"trees have no field {name!r}; " + (f"did you mean {near[0]!r}?" if near else _known(FIELDS)))
    if compare is None:
        raise StoreError(f"{key!r}: there is no operator {sign!r}; {_known(OPERATORS)}")
    if sign == "in" and (isinstance(value, str | bytes) or not isinstance(value, Iterable)):
        raise StoreError(f"{key!r} needs a list of values, not {value!r}")
    given: Iterable[object] = value if sign == "in" else [value]  # type: ignore[assignment]
    values = [_plain(operand(name, FIELDS[name], sign, v)) for v in given]
    return compare(column_for(FIELDS[name], values), values if sign == "in" else values[0])


def _plain(value: object) -> object:
    return escape(value) if isinstance(value, str) else value


def _known(names: Iterable[str]) -> str:
    return "known: " + ", ".join(names)


def parse_where(texts: Sequence[str]) -> dict[str, object]:
    """{"suite =": "kg", "nodes >=": 20} from ["suite=kg", "nodes>=20"]: values are read by the type of their field.

    `null` is None where a field may have no value. Texts stand as they were typed, so `task_id=1` asks for "1"; one in
    double quotes is read as JSON. Raises StoreError for a text without an operator and for a value that does not fit.
    """
    out: dict[str, object] = {}
    for text in texts:
        sign = min(
            (s for s in OPERATORS if s in text and not s.isalpha()), key=lambda s: (text.index(s), -len(s)), default=""
        )
        if not sign:
            raise StoreError(f"filter {text!r} has no operator; write suite=kg or nodes>=20")
        name, value = (part.strip() for part in text.split(sign, 1))
        key, column = f"{name} {sign}", FIELDS.get(name)
        while key in out:  # the same field and operator again: both hold
            key += " "
        out[key] = value if column is None else operand(name, column, sign, typed(column, value))
    return out


# -- nodes ------------------------------------------------------------------------------------------------------------

LATER = expansions.alias("later")
EXECUTED_LATER = and_(
    LATER.c.tree == nodes.c.tree,
    LATER.c.node == nodes.c.id,
    LATER.c.status.is_not(None),
    LATER.c.status != NodeStatus.DRAFT.value,
)


NAMED = {"text", "action", "effect", "error", "status", "score", "fault", "_truth"}  # fields of NodeRow itself
LARGE = {"routes"}  # hundreds of bytes a token; whoever needs them loads the tree
MORE = tuple(
    f
    for f in (*DRAWN, *EXECUTED)
    if f.tree not in NAMED | LARGE and (f.kind in NUMERIC or f.kind is FieldKind.TEXT) and f.tree not in INHERITED
)
MORE_DECODERS = tuple(decoder_of(f) for f in MORE)


def _more() -> list[Any]:
    """Their columns: what executing it gave is that of the pop, if it was executed then."""
    late = LATER.c.status.is_not(None)
    held = {f.column: nodes.c[f.column] for f in MORE} | {
        f.column: case((late, LATER.c[f.column]), else_=nodes.c[f.column]) for f in MORE if f in EXECUTED
    }
    return [held[f.column].label(f"more_{f.tree}") for f in MORE]


def _rows() -> Any:
    """Every node with what executing it gave, at birth or when it was popped."""

    def then(name: str) -> Any:
        return func.coalesce(LATER.c[name], nodes.c[name])

    columns = (
        trees.c.id.label("tree_id"), nodes.c.id.label("node"), nodes.c.parent, nodes.c.text, nodes.c.action,
        func.coalesce(then("outcome_effect"), nodes.c.effect).label("effect"),
        func.coalesce(then("outcome_error"), nodes.c.error).label("error"),
        func.coalesce(then("status"), NodeStatus.DRAFT.value).label("status"),
        nodes.c.score, then("reward").label("reward"), nodes.c.n_tokens, then("observation").label("observation"),
        *_more(),
    )  # fmt: skip
    joined = trees.join(nodes, nodes.c.tree == trees.c.key).outerjoin(LATER, EXECUTED_LATER)
    return select(*columns).select_from(joined)


def find_nodes(
    connection: Connection,
    where: Sequence[Any],
    action: str | None,
    effect: str | None,
    status: str | None,
    limit: int | None,
) -> list[NodeRow]:
    """Nodes of the trees for which `where` holds, in order of creation."""
    query = _rows()
    if action is not None:
        name = json.dumps(escape(action), ensure_ascii=False)
        calls = nodes.c.action.contains(f'"name":{name}', autoescape=True)
        query = query.where((nodes.c.action == escape(action)) | calls)
    inner = query.where(*where).order_by(nodes.c.tree, nodes.c.id).subquery()
    outer = select(inner)
    if effect is not None:
        outer = outer.where(inner.c.effect == effect)
    if status is not None:
        outer = outer.where(inner.c.status == status)
    return [_node(row, None) for row in connection.execute(outer if limit is None else outer.limit(limit))]


def find_path(connection: Connection, tree_id: str, node: int) -> list[NodeRow]:
    """The nodes from the root to `node`, with what the world showed."""
    key = key_of(connection, tree_id)
    up = select(nodes.c.id, nodes.c.parent).where(nodes.c.tree == key, nodes.c.id == node).cte("up", recursive=True)
    above = nodes.alias("above")
    up = up.union_all(select(above.c.id, above.c.parent).where(above.c.tree == key, above.c.id == up.c.parent))
    query = _rows().where(nodes.c.tree == key, nodes.c.id.in_(select(up.c.id))).order_by(nodes.c.id)
    rows = connection.execute(query).all()
    if not rows:
        raise StoreError(f"tree {tree_id} has no node {node}; nodes are numbered from 0, the root")
    fetch = Blobs(connection)
    fetch.read(select(blobs).where(blobs.c.digest.in_([row.observation for row in rows if row.observation])))
    return [_node(row, fetch) for row in rows]


def _values(row: Any) -> dict[str, Any]:
    out = {}
    for f, decode in zip(MORE, MORE_DECODERS, strict=True):
        value = getattr(row, f"more_{f.tree}")
        if value is None and not f.optional and f.kind is not FieldKind.REAL:
            value = f.empty  # of an outcome, where nothing was executed
        elif decode is not None:
            value = decode(value)
        out[f.tree] = value
    return out


def _node(row: Any, fetch: Blobs | None) -> NodeRow:
    seen = fetch(row.observation).decode("utf-8", "surrogatepass") if fetch is not None and row.observation else None
    return NodeRow(
        tree_id=row.tree_id,
        node=row.node,
        parent=row.parent,
        text=unescape(row.text),
        action=None if row.action is None else unescape(row.action),
        effect=row.effect,
        error=None if row.error is None else unescape(row.error),
        status=row.status,
        score=unreal(row.score),
        reward=unreal(row.reward),
        n_tokens=row.n_tokens,
        observation=seen,
        more=_values(row),
    )


# -- branches ---------------------------------------------------------------------------------------------------------


def branches_of(
    tree_ids: Sequence[str], columns: Mapping[str, NDArray[Any]], scores: NDArray[Any] | None, at_least: float
) -> list[Branch]:
    """Nodes whose children's values differ by at least `at_least`, the widest gap first.

    A child's value is its score where `scores` [N] are given, else its reward plus the share-weighted mean of its
    children's values, as far as these are known; a node without a known outcome below it has none.
    """
    tree, parent, node = columns["tree"], columns["parent"], columns["node"]
    value = scores if scores is not None else values_of(columns)
    starts = np.searchsorted(tree, np.arange(len(tree_ids)))
    children = np.flatnonzero((parent >= 0) & ~np.isnan(value))
    above = starts[tree[children]] + parent[children]
    high, low = np.full(len(tree), -math.inf), np.full(len(tree), math.inf)
    np.maximum.at(high, above, value[children])
    np.minimum.at(low, above, value[children])
    siblings = np.bincount(above, minlength=len(tree))
    wide = np.flatnonzero((siblings > 1) & (high - low >= at_least))
    wide = wide[np.argsort(low[wide] - high[wide], kind="stable")]
    below = np.flatnonzero(parent >= 0)
    order = below[np.argsort(starts[tree[below]] + parent[below], kind="stable")]
    sorted_above = starts[tree[order]] + parent[order]
    out = []
    for at in wide:
        first, last = np.searchsorted(sorted_above, [at, at + 1])
        mine = order[first:last]
        out.append(
            Branch(
                tree_id=tree_ids[tree[at]],
                node=int(node[at]),
                children=tuple(node[mine].tolist()),
                values=tuple(value[mine].tolist()),
                gap=float(high[at] - low[at]),
            )
        )
    return out


def values_of(columns: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """[N] expected return from each node on, its own reward included; NaN where no episode is known to have ended."""
    tree, parent, share = columns["tree"], columns["parent"], columns["share"]
    starts = np.searchsorted(tree, np.arange(int(tree[-1]) + 1 if len(tree) else 0))
    ended = np.isin(columns["status"], [STATUSES.index(s) for s in (NodeStatus.TERMINAL, NodeStatus.TRUNCATED)])
    value = np.where(ended, np.nan_to_num(columns["reward"].astype(np.float64)), np.nan)
    total, mass = np.zeros(len(tree)), np.zeros(len(tree))
    reward = np.nan_to_num(columns["reward"].astype(np.float64))
    for at in range(len(tree) - 1, -1, -1):  # children come after their parents
        if mass[at]:
            value[at] = reward[at] + total[at] / mass[at]
        if parent[at] >= 0 and value[at] == value[at]:
            above = starts[tree[at]] + parent[at]
            total[above] += share[at] * value[at]
            mass[above] += share[at]
    return value
