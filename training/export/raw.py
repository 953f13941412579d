"""Trees as rows and back, without loss: what is imported has the digest of what was exported.

A row holds the header, every expansion and every node of one tree, as `columns.RAW` lists them. `digest`, `reward`,
`weight` (product of shares), `value` (SPLIT-LOO), `exact`, `outcome` and `success` are for readers of the table: on
import the tree grows again from the rest, and its digest must equal the row's.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, create_model

from treewright.envs.errors import TreewrightError
from treewright.envs.lines import json_value
from treewright.envs.types import Action, Observation, Task, seed_of
from treewright.search.fields import FIRST_SCHEMA
from treewright.search.past import with_past, without_past
from treewright.search.schema import DRAWN, EXECUTED, LATE, SPENT, FieldKind, NodeField, get_drawn
from treewright.search.store.ending import result_of
from treewright.search.store.values import escape, unescape
from treewright.search.tree import Tree, TreeHeader
from treewright.search.types import Completion, Draft, Expansion, Outcome, Spent
from treewright.training.export.columns import RAW_SCHEMA, SEEN
from treewright.training.export.view import Row, View

__all__ = ["Grown", "decode_tree", "encode_tree", "where"]

BYTES_KEY = "$treewright.bytes"


@dataclass(frozen=True, slots=True)
class Grown:
    """A revealed tree and the expansions it grew from."""

    tree: Tree
    expansions: tuple[Expansion, ...]


# -- writing ----------------------------------------------------------------------------------------------------------


def _json(value: Any) -> str:
    def default(other: Any) -> Any:
        if isinstance(other, bytes):
            return {BYTES_KEY: base64.b64encode(other).decode()}
        if isinstance(other, Mapping):
            return dict(other)
        raise TypeError(f"a value of type {type(other).__name__} is not JSON: {other!r:.80}")

    return json.dumps(value, default=default, separators=(",", ":"))


def _maybe(text: str | None) -> str | None:
    return None if text is None else escape(text)


def _real(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


WRITE: dict[FieldKind, Callable[[Any], Any]] = {
    FieldKind.REAL: lambda value: None if math.isnan(value) else float(value),
    FieldKind.TEXT: escape,
    FieldKind.NAME: lambda value: value.value,
    FieldKind.IDS: list,
    FieldKind.REALS: list,
    FieldKind.ACTION: lambda action: escape(action.key),
}


def _cell(f: NodeField, value: Any) -> Any:
    write = WRITE.get(f.kind)
    return value if write is None or value is None else write(value)


def _outcome(outcome: Outcome | None) -> Row | None:
    if outcome is None:
        return None
    seen = outcome.observation
    parts = _json(seen.parts) if seen.parts else None
    cells = zip(SEEN, (escape(seen.text), escape(seen.fingerprint), escape(seen.provenance), parts), strict=True)
    return dict(cells) | {f.name: _cell(f, getattr(outcome, f.name)) for f in EXECUTED[1:]}


def _spent(spent: Spent) -> Row:
    return {f.name: getattr(spent, f.name) for f in SPENT}


def encode_tree(view: View, expansions: Sequence[Expansion], spent: Spent | None = None) -> Row:
    """The raw row of a finished tree; `spent` if what was spent differs from the sum over its expansions."""
    tree, header, task = view.tree, view.tree.header, view.tree.task
    above = header.continues or (None, None)
    outcome, success = result_of(tree)
    drafts = [draft for expansion in expansions for draft in expansion.drafts]
    if len(drafts) + 1 != len(tree):
        raise TreewrightError(f"tree {tree.tree_id} has {len(tree)} nodes, its expansions {len(drafts) + 1}")
    return {
        "schema": RAW_SCHEMA,
        "tree_id": tree.tree_id,
        "digest": tree.digest(),
        "run": escape(header.run),
        "suite": escape(task.suite),
        "task_id": escape(task.id),
        "split": escape(task.split),
        "goal": escape(task.goal),
        "task_seed": task.seed,
        "horizon": task.horizon,
        "task_data": _json(task.data),
        "task_truth": _json(task.truth),
        "attempt": header.attempt,
        "seed": header.seed,
        "policy_version": escape(header.policy_version),
        "settings": _json(with_past(header.settings, header.past)),
        "continues_tree": above[0],
        "continues_node": above[1],
        "chosen": tree.chosen,
        "stopped_by": _maybe(tree.stopped_by),
        "reasons": [escape(r) for r in tree.reasons],
        "exact": tree.exact,
        "outcome": outcome,
        "success": success,
        "spent": _spent(spent or tree.spent),
        "expansions": [
            {
                "node": e.node,
                "closing": e.closing,
                "drawn": e.drawn,
                "drafts": len(e.drafts),
                "fault": _maybe(e.fault),
                "spent": _spent(e.spent),
                "outcome": _outcome(e.outcome),
            }
            for e in expansions
        ],
        "nodes": [_node(view, 0, None), *(_node(view, i, draft) for i, draft in enumerate(drafts, 1))],
    }


def _node(view: View, node: int, draft: Draft | None) -> Row:
    tree = view.tree
    drawn = get_drawn(draft) if draft is not None else [getattr(tree, f.tree)[0] for f in DRAWN]
    return {
        "parent": tree.parent[node],
        "born": tree.born[node],
        **{f.column: _cell(f, value) for f, value in zip(DRAWN, drawn, strict=True)},
        "outcome": _outcome(draft.outcome if draft is not None else tree.header.root),
        **{f.column: _cell(f, getattr(tree, f.tree)[node]) for f in LATE},
        "reward": _real(tree.reward(node)),
        "weight": _real(tree.mass[node]),
        "value": _real(float(view.value[node])),
    }


# -- reading ----------------------------------------------------------------------------------------------------------


def _parsed(text: str) -> Any:
    def hook(value: dict[str, Any]) -> Any:
        return base64.b64decode(value[BYTES_KEY]) if value.keys() == {BYTES_KEY} else value

    return json_value(text, hook)


def _action(key: str) -> Action:
    try:
        return Action.from_key(unescape(key))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{key!r:.60} is not a list of calls with name and arguments: {error}") from None


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


Text = Annotated[str, AfterValidator(unescape)]
Parsed = Annotated[str, AfterValidator(_parsed)]
Real = Annotated[float | None, AfterValidator(_nan)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore")


READ: dict[FieldKind, Any] = {
    FieldKind.INT: int,
    FieldKind.WIDE: int,
    FieldKind.REAL: Real,
    FieldKind.BOOL: bool,
    FieldKind.TEXT: Text,
    FieldKind.IDS: tuple[int, ...],
    FieldKind.REALS: tuple[float, ...],
    FieldKind.ACTION: Annotated[str, AfterValidator(_action)],
}


def _read(f: NodeField) -> Any:
    """(type, default) of a cell; the default is that of rows which were written before there was the field."""
    kind = f.type if f.kind is FieldKind.NAME else READ[f.kind]
    if f.optional:
        kind = (float if f.kind is FieldKind.REAL else kind) | None
    return (kind, f.default if f.since > FIRST_SCHEMA else ...)


def _model(name: str, given: Sequence[NodeField], base: type[BaseModel]) -> Any:
    cells: dict[str, Any] = {f.column: _read(f) for f in given}
    return create_model(name, __base__=base, **cells)


class _Outcome(_Model):
    text: Text
    fingerprint: Text
    provenance: Text
    parts: Parsed | None

    def build(self) -> Outcome:
        parts: Any = self.parts
        seen = Observation(self.text, self.fingerprint, provenance=self.provenance, parts=tuple(parts or ()))
        return Outcome(seen, **{f.name: getattr(self, f.name) for f in EXECUTED[1:]})


_cells: dict[str, Any] = {f.name: _read(f) for f in EXECUTED[1:]}
_RawOutcome: Any = create_model("_RawOutcome", __base__=_Outcome, **_cells)
_RawSpent: Any = _model("_RawSpent", SPENT, _Model)


class _Node(_Model):
    parent: int
    outcome: _RawOutcome | None

    def build(self, node: int, first: int) -> Draft:
        said, own = (
            {f.name: getattr(self, f.column) for f in DRAWN if ("." in f.path) == nested} for nested in (True, False)
        )
        return Draft(
            after=0 if self.parent == node else self.parent - first + 1,
            completion=Completion(**said),
            outcome=self.outcome.build() if self.outcome else None,
            **own,
        )


_RawNode: Any = _model("_RawNode", [*DRAWN, *LATE], _Node)


class _RawExpansion(_Model):
    node: int
    closing: bool
    drawn: int
    drafts: int
    fault: Text | None
    spent: _RawSpent
    outcome: _RawOutcome | None


class _RawTree(_Model):
    tree_id: str
    digest: str
    run: Text
    suite: Text
    task_id: Text
    split: Text
    goal: Text
    task_seed: int
    horizon: int
    task_data: Parsed
    task_truth: Parsed
    attempt: int
    seed: int
    policy_version: Text
    settings: Parsed
    continues_tree: str | None
    continues_node: int | None
    chosen: int | None
    stopped_by: Text | None
    reasons: list[Text]
    spent: _RawSpent
    expansions: list[_RawExpansion]
    nodes: list[_RawNode]


def where(place: Sequence[str | int]) -> str:
    """A path into a row as people write it: nodes[2].outcome.status."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).lstrip(".")


def decode_tree(row: Mapping[str, Any]) -> Grown:
    """The tree of a raw row.

    Raises TreewrightError naming the field for a row that is damaged, incomplete or written by a newer version.
    """
    schema = row.get("schema")
    if not isinstance(schema, int):
        raise TreewrightError(
            "it has neither 'messages' (a list of objects with role and content) nor the fields of a raw table; its "
            f"fields are {', '.join(map(str, list(row)[:8])) or 'none'}"
        )
    if schema > RAW_SCHEMA:
        raise TreewrightError(f"schema: {schema} is newer than {RAW_SCHEMA}, which this version reads; upgrade it")
    try:
        raw = _RawTree.model_validate(_without_empty_structs(row))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise TreewrightError(f"{where(first['loc'])}: {first['msg']}") from None
    return _grow(raw)


def _without_empty_structs(row: Mapping[str, Any]) -> dict[str, Any]:
    """Some readers turn a missing struct into a struct of nulls."""

    def mend(item: Mapping[str, Any]) -> dict[str, Any]:
        outcome = item.get("outcome")
        gone = isinstance(outcome, Mapping) and outcome.get("status") is None and outcome.get("text") is None
        return {**item, "outcome": None} if gone else dict(item)

    lists = {name: row[name] for name in ("expansions", "nodes") if isinstance(row.get(name), list)}
    return {**row, **{name: [mend(i) if isinstance(i, Mapping) else i for i in rows] for name, rows in lists.items()}}


def _header(raw: _RawTree) -> TreeHeader:
    if not raw.nodes or raw.nodes[0].outcome is None:
        raise TreewrightError("nodes[0].outcome: the root has no outcome")
    data, truth, settings = (getattr(raw, name) for name in ("task_data", "task_truth", "settings"))
    task = Task(
        raw.suite,
        raw.task_id,
        raw.goal,
        seed=raw.task_seed,
        split=raw.split,
        horizon=raw.horizon,
        data=data,
        truth=truth,
    )
    above = None if raw.continues_tree is None else (raw.continues_tree, raw.continues_node or 0)
    root = raw.nodes[0].outcome.build()
    try:
        settings, past = without_past(settings)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TreewrightError(f"settings.past: {error}; the row was changed") from None
    header = TreeHeader(
        run=raw.run,
        task=task,
        attempt=raw.attempt,
        seed=raw.seed,
        policy_version=raw.policy_version,
        settings=settings,
        root=root,
        continues=above,
        past=past,
    )
    if header.tree_id != raw.tree_id:
        raise TreewrightError(f"tree_id: {raw.tree_id} is not the id of this run, task and attempt, {header.tree_id}")
    if raw.nodes[0].seed != seed_of(raw.seed, "root"):
        raise TreewrightError("nodes[0].seed: it does not derive from the tree's seed")
    return header


def _paid(raw: Any) -> Spent:
    return Spent(**raw.model_dump())


def _grow(raw: _RawTree) -> Grown:
    tree = Tree.start(_header(raw))
    grown: list[Expansion] = []
    for seq, e in enumerate(raw.expansions):
        first = len(tree)
        below = raw.nodes[first : first + e.drafts]
        for i, node in enumerate(below, first):
            if node.parent != e.node and not first <= node.parent < i:
                raise TreewrightError(f"nodes[{i}].parent: {node.parent} is neither the popped node nor a new one")
        if len(below) != e.drafts:
            raise TreewrightError(f"expansions[{seq}].drafts: {e.drafts} nodes are announced, {len(below)} are there")
        drafts = tuple(node.build(e.node, first) for node in below)
        outcome = e.outcome.build() if e.outcome else None
        expansion = Expansion(
            seq=seq,
            node=e.node,
            closing=e.closing,
            drawn=e.drawn,
            outcome=outcome,
            drafts=drafts,
            spent=_paid(e.spent),
            fault=e.fault,
        )
        tree.apply(expansion)
        grown.append(expansion)
    if len(tree) != len(raw.nodes):
        raise TreewrightError(f"nodes: {len(raw.nodes)} are there, the expansions make {len(tree)}")
    for i, node in enumerate(raw.nodes):
        for f in LATE:
            getattr(tree, f.tree)[i] = getattr(node, f.column)
    if raw.chosen is not None and not 0 <= raw.chosen < len(tree):
        raise TreewrightError(f"chosen: node {raw.chosen} does not exist")
    tree.chosen, tree.stopped_by, tree.reasons = raw.chosen, raw.stopped_by, list(raw.reasons)
    tree.spent = _paid(raw.spent)
    tree.reveal()
    if tree.digest() != raw.digest:
        raise TreewrightError(f"digest: the row says {raw.digest}, its nodes give {tree.digest()}; the row was changed")
    return Grown(tree, tuple(grown))
