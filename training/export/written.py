"""The tree file: its JSON Schema, and what must hold in it beside its form. See docs/tree-format.md.

The schema is made from the columns of the raw table, and so from the records that declare a node's fields; the
committed docs/tree-format.schema.json is a copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from jsonschema import Draft202012Validator

from treewright.envs.errors import TreewrightError
from treewright.search.fields import FIRST_SCHEMA
from treewright.search.routes import decode_routes
from treewright.search.schema import DRAWN, EXECUTED, LATE
from treewright.search.types import NodeKind, NodeStatus, Origin
from treewright.training.export.columns import EXPANSION, NODE, OUTCOME, RAW, RAW_SCHEMA, SPENT
from treewright.training.export.raw import decode_tree, where

__all__ = ["problems", "tree_schema"]

KINDS: Final = {"string": "string", "bool": "boolean", "int32": "integer", "int64": "integer", "float64": "number"}
MISSING: Final = {  # columns that may be null: not known, or none
    "tree": ("continues_tree", "continues_node", "chosen", "stopped_by", "outcome", "success"),
    "expansion": ("fault", "outcome"),
    "outcome": ("parts", "reward", "error", "fault"),
}
ENUMS: Final = {"kind": NodeKind, "status": NodeStatus, "origin": Origin}
MOST = 20  # problems of one tree that are told
CLOSE = 1e-6


@lru_cache(maxsize=1)
def tree_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of one line of a tree file."""
    optional = {f.column for f in (*DRAWN, *LATE) if f.optional} | {"reward", "value", "outcome"}
    young = {f.column for f in (*DRAWN, *LATE) if f.since > FIRST_SCHEMA}
    outcome_young = {f.name for f in EXECUTED[1:] if f.since > FIRST_SCHEMA}
    reals = {name for name, shape in NODE.items() if shape == "float64"}
    cells = {name: _cell(name, shape) for name, shape in NODE.items() if name != "outcome"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"treewright tree, version {RAW_SCHEMA}",
        "type": "object",
        "properties": {
            **_plain(RAW, MISSING["tree"]),
            "schema": {"type": "integer", "minimum": 1, "maximum": RAW_SCHEMA},
            "tree_id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
            "reasons": {"type": "array", "items": {"type": "string"}},
            "spent": {"$ref": "#/$defs/spent"},
            "expansions": {"type": "array", "items": {"$ref": "#/$defs/expansion"}},
            "nodes": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/node"}},
        },
        "required": list(RAW),
        "$defs": {
            "spent": _object({n: _cell(n, s) for n, s in SPENT.items()}, ()),
            "outcome": _object(_plain(OUTCOME, MISSING["outcome"]), outcome_young),
            "expansion": _object(
                {
                    **_plain(EXPANSION, MISSING["expansion"]),
                    "spent": {"$ref": "#/$defs/spent"},
                    "outcome": {"anyOf": [{"$ref": "#/$defs/outcome"}, {"type": "null"}]},
                },
                (),
            ),
            "node": _object(
                {
                    **{name: _or_null(name, cell, optional | reals) for name, cell in cells.items()},
                    "outcome": {"anyOf": [{"$ref": "#/$defs/outcome"}, {"type": "null"}]},
                },
                young,
            ),
        },
    }  # fmt: skip


def _plain(shape: Mapping[str, Any], missing: Sequence[str]) -> dict[str, Any]:
    """The columns that are single values."""
    cells = {n: _cell(n, s) for n, s in shape.items() if not isinstance(s, dict) and not _rows(s)}
    return {name: _or_null(name, cell, missing) for name, cell in cells.items()}


def _rows(shape: Any) -> bool:
    return isinstance(shape, list) and isinstance(shape[0], dict)


def _object(cells: Mapping[str, Any], young: Sequence[str] | set[str]) -> dict[str, Any]:
    """young  fields that rows of the first version do not have"""
    return {"type": "object", "properties": dict(cells), "required": [name for name in cells if name not in young]}


def _cell(name: str, shape: Any) -> dict[str, Any]:
    if isinstance(shape, list):
        return {"type": "array", "items": {"type": KINDS[shape[0]]}}
    if name in ENUMS:
        return {"enum": [str(one.value) for one in ENUMS[name]]}
    return {"type": KINDS[shape]}


def _or_null(name: str, cell: dict[str, Any], missing: Sequence[str] | set[str]) -> dict[str, Any]:
    return {**cell, "type": [cell["type"], "null"]} if name in missing and "type" in cell else cell


def problems(row: Any) -> list[str]:
    """What is wrong with one line of a tree file, each with its place; empty for a good one.

    First its form (the schema), then what must hold between its parts, then that the tree grows again to its digest.
    """
    if not isinstance(row, Mapping):
        return ["a line must be a JSON object"]
    schema = row.get("schema")
    if isinstance(schema, int) and schema > RAW_SCHEMA:
        return [f"schema: {schema} is newer than {RAW_SCHEMA}, which this version knows"]
    found = [
        f"{where(tuple(error.absolute_path)) or 'tree'}: {error.message[:200]}"
        for error, _ in zip(Draft202012Validator(tree_schema()).iter_errors(dict(row)), range(MOST), strict=False)
    ]
    if found:
        return found
    found = [one for one, _ in zip(_invariants(row), range(MOST), strict=False)]
    if found:
        return found
    try:
        decode_tree(row)
    except TreewrightError as error:
        return [str(error)]
    return []


def _routed(node: int, text: str, read: int) -> Iterator[str]:
    try:
        tokens = len(decode_routes(text)) if text else 0
    except TreewrightError as error:
        yield f"nodes[{node}].routes: {error}"
        return
    if tokens > read:
        yield f"nodes[{node}].routes: of {tokens} tokens, where {read} were read"


def _invariants(row: Mapping[str, Any]) -> Iterator[str]:
    nodes, expansions = row["nodes"], row["expansions"]
    if nodes[0]["parent"] != -1 or nodes[0]["outcome"] is None:
        yield "nodes[0]: the root has parent -1 and an outcome"
    if len(nodes) != 1 + sum(one["drafts"] for one in expansions):
        yield f"nodes: {len(nodes)} of them, where the expansions give 1 + {sum(e['drafts'] for e in expansions)}"
        return
    first = 1
    for i, one in enumerate(expansions):
        if not 0 <= one["node"] < first:
            yield f"expansions[{i}].node: {one['node']} is no node before it"
        for node in range(first, first + one["drafts"]):
            if nodes[node]["born"] != i:
                yield f"nodes[{node}].born: {nodes[node]['born']}, where expansion {i} drew it"
        first += one["drafts"]
    whole = [0] * len(nodes)  # tokens of each node's prompt and answer
    prompt = [0] * len(nodes)  # tokens of the prompt that its children are drawn from
    late = _late_outcomes(expansions)
    for i, node in enumerate(nodes):
        above = node["parent"]
        if i and not 0 <= above < i:
            yield f"nodes[{i}].parent: {above} must be an earlier node"
            return
        whole[i] = len(node["ids"]) + (prompt[above] if i else 0)
        yield from _routed(i, node.get("routes", ""), max(whole[i] - 1, 0))
        outcome = late.get(i, node["outcome"])
        if outcome is not None:
            if not 0 <= outcome["keep"] <= whole[i]:
                yield f"nodes[{i}].outcome.keep: {outcome['keep']} of {whole[i]} tokens"
            prompt[i] = outcome["keep"] + len(outcome["delta"])
        if node["logprobs"] and node["ids"] and len(node["logprobs"]) != len(node["ids"]):
            yield f"nodes[{i}].logprobs: {len(node['logprobs'])} for {len(node['ids'])} ids"
        if any(not math.isfinite(value) or value > CLOSE for value in node["logprobs"]):
            yield f"nodes[{i}].logprobs: a token that was drawn has a finite log-prob of at most 0"
        if node["mult"] < 1 or not 0 <= node["share"] <= 1 + CLOSE:
            yield f"nodes[{i}]: mult must be at least 1 and share lie in [0, 1]"
    chosen = row["chosen"]
    if chosen is not None and not 0 <= chosen < len(nodes):
        yield f"chosen: {chosen} is no node"
    if row["exact"] != (not row["reasons"]):
        yield "exact: a tree is exact where there is no reason against it, and only there"


def _late_outcomes(expansions: Sequence[Mapping[str, Any]]) -> dict[int, Any]:
    """Outcomes that came with the pop of a node, by node."""
    return {one["node"]: one["outcome"] for one in expansions if one["outcome"] is not None}
