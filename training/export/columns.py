"""The columns of every table that an export writes.

A shape is a pyarrow type name, `[shape]` for a list, or `{name: shape}` for a struct. Numbers that are unknown are
null. What the raw table has of nodes, outcomes and costs follows from `treewright.search.schema`. Texts are UTF-8; in
the raw table, what UTF-8 cannot hold is escaped as in the store, elsewhere replaced.
"""

from __future__ import annotations

from typing import Any, Final

from treewright.envs.errors import TreewrightError
from treewright.search.schema import DRAWN, EXECUTED, LATE, FieldKind
from treewright.search.schema import SPENT as SPENT_FIELDS

__all__ = ["BUILT_IN", "DOCUMENTS", "FORMATS", "RAW_SCHEMA", "STYLES", "arrow_schema", "columns", "hf_features"]

Shape = Any

FORMATS: Final = ("sft", "dpo", "prm", "prefix", "atif", "raw")
"""Formats that are written where none is named."""
DOCUMENTS: Final = ("atif", "inspect")
"""Formats that are no tables: JSON documents, one a path or one a suite."""
BUILT_IN: Final = (*FORMATS, "inspect")
STYLES: Final = ("conversational", "text", "tokens")
RAW_SCHEMA: Final = 3
"""Version of the raw table; a reader refuses newer ones. Rows of version 1 have no `hidden`, `money`, `drawn_share`,
those of versions 1 and 2 no `routes`."""

MESSAGES: Final = [{"role": "string", "content": "string"}]
IDS: Final = ["int32"]

COMMON: Final[dict[str, Shape]] = {
    "tree_id": "string",
    "node": "int32",
    "run": "string",
    "suite": "string",
    "task_id": "string",
    "split": "string",
    "policy_version": "string",
    "exact": "bool",
}

SFT: Final[dict[str, Shape]] = {
    "depth": "int32",
    "origin": "string",
    "on_policy": "bool",
    "outcome": "float64",
    "value": "float64",
    **COMMON,
}

DPO: Final[dict[str, Shape]] = {
    "chosen_value": "float64",
    "rejected_value": "float64",
    "gap": "float64",
    "chosen_ess": "float64",
    "rejected_ess": "float64",
    "chosen_node": "int32",
    "rejected_node": "int32",
    "on_policy": "bool",
    "depth": "int32",
    **COMMON,
}

PRM: Final[dict[str, Shape]] = {
    "prompt": "string",
    "completions": ["string"],
    "labels": ["bool"],
    "values": ["float64"],
    "nodes": IDS,
    "outcome": "float64",
    **COMMON,
}

PREFIX: Final[dict[str, Shape]] = {
    "prompt_ids": IDS,
    "prefix_ids": IDS,
    "prefix_mask": ["int8"],
    "actions": ["string"],
    "depth": "int32",
    "value": "float64",
    "outcome": "float64",
    "origin": "string",
    **COMMON,
}

SHAPES: Final[dict[FieldKind, Shape]] = {
    FieldKind.INT: "int32",
    FieldKind.WIDE: "int64",
    FieldKind.REAL: "float64",
    FieldKind.BOOL: "bool",
    FieldKind.TEXT: "string",
    FieldKind.NAME: "string",
    FieldKind.IDS: IDS,
    FieldKind.REALS: ["float64"],
    FieldKind.ACTION: "string",
}
SEEN: Final = ("text", "fingerprint", "provenance", "parts")
"""What stands for an observation."""

OUTCOME: Final[dict[str, Shape]] = dict.fromkeys(SEEN, "string") | {f.name: SHAPES[f.kind] for f in EXECUTED[1:]}
SPENT: Final[dict[str, Shape]] = {f.name: "float64" if f.kind is FieldKind.REAL else "int64" for f in SPENT_FIELDS}
NODE: Final[dict[str, Shape]] = {
    "parent": "int32",
    "born": "int32",
    **{f.column: SHAPES[f.kind] for f in DRAWN},
    "outcome": OUTCOME,
    **{f.column: SHAPES[f.kind] for f in LATE},
    "reward": "float64",
    "weight": "float64",
    "value": "float64",
}
EXPANSION: Final[dict[str, Shape]] = {
    "node": "int32",
    "closing": "bool",
    "drawn": "int32",
    "drafts": "int32",
    "fault": "string",
    "spent": SPENT,
    "outcome": OUTCOME,
}
RAW: Final[dict[str, Shape]] = {
    "schema": "int32",
    "tree_id": "string",
    "digest": "string",
    "run": "string",
    "suite": "string",
    "task_id": "string",
    "split": "string",
    "goal": "string",
    "task_seed": "int64",
    "horizon": "int32",
    "task_data": "string",
    "task_truth": "string",
    "attempt": "int32",
    "seed": "int64",
    "policy_version": "string",
    "settings": "string",
    "continues_tree": "string",
    "continues_node": "int32",
    "chosen": "int32",
    "stopped_by": "string",
    "reasons": ["string"],
    "exact": "bool",
    "outcome": "float64",
    "success": "bool",
    "spent": SPENT,
    "expansions": [EXPANSION],
    "nodes": [NODE],
}


def columns(table: str, style: str = "conversational") -> dict[str, Shape]:
    """The columns of a table in a style. `prm` is text and `raw` has no style: both are the same in all of them.

    Raises TreewrightError for an unknown table or style.
    """
    if style not in STYLES:
        raise TreewrightError(f"no style named {style!r}; known: {', '.join(STYLES)}")
    said = MESSAGES if style == "conversational" else "string"
    if table == "sft" and style == "tokens":
        return {"input_ids": IDS, "labels": IDS, "completion_mask": ["int8"], **SFT}
    if table == "sft":
        texts = {"prompt": said, "completion": said, "tools": "string"}
        return {**texts, "prompt_ids": IDS, "completion_ids": IDS, **SFT}
    if table == "dpo":
        texts = {} if style == "tokens" else {"prompt": said, "chosen": said, "rejected": said, "tools": "string"}
        return {**texts, "prompt_ids": IDS, "chosen_ids": IDS, "rejected_ids": IDS, **DPO}
    if table == "prefix":
        return {**({} if style == "tokens" else {"prompt": said, "prefix": said}), **PREFIX}
    fixed = {"prm": PRM, "raw": RAW}
    if table not in fixed:
        raise TreewrightError(f"no table named {table!r}; known: {', '.join(BUILT_IN)}")
    return fixed[table]


def arrow_schema(shape: dict[str, Shape]) -> Any:
    """The columns as a pyarrow schema. pyarrow must be installed."""
    import pyarrow as pa

    def of(part: Shape) -> Any:
        if isinstance(part, list):
            return pa.list_(of(part[0]))
        if isinstance(part, dict):
            return pa.struct([(name, of(inner)) for name, inner in part.items()])
        return getattr(pa, "bool_" if part == "bool" else part)()

    return pa.schema([(name, of(part)) for name, part in shape.items()])


def hf_features(shape: dict[str, Shape]) -> list[dict[str, Any]]:
    """The columns as `features` of a dataset card, so that `datasets` need not guess the types of JSON lines."""

    def of(part: Shape) -> dict[str, Any]:
        if isinstance(part, dict):
            return {"struct": hf_features(part)}
        if isinstance(part, list):
            inner = part[0]
            return {"list": hf_features(inner) if isinstance(inner, dict) else inner}
        return {"dtype": part}

    return [{"name": name, **of(part)} for name, part in shape.items()]
