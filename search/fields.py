"""How the fields of a node's records are kept, where their names and types do not say it already."""

from __future__ import annotations

from dataclasses import field
from typing import Any

__all__ = ["FIRST_SCHEMA", "stored"]

FIRST_SCHEMA = 2
"""Schema of the stores whose columns every later one begins with."""


def stored(
    *,
    default: Any,
    column: str | None = None,
    tree: str | None = None,
    since: int = FIRST_SCHEMA,
    late: bool = False,
) -> Any:
    """A field of Completion, Draft, Outcome or Standing with a default; plain fields are kept under their own name.

    column  its name in stores and exports, where another record has a field of the same name;  tree  that in a Tree
    since   the schema that brought it: a migration adds the column, nodes stored before have the default
    late    set after its node was applied: stored when the tree ends
    """
    return field(default=default, metadata={"column": column, "tree": tree, "since": since, "late": late})
