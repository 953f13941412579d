"""Formats of one's own: a function that gives rows for a tree, written as a table beside the built-in ones.

    def turns(view: View, least: int = 1):     # treewright export data --formats mymod:turns --set least=2
        '''One row a tree.'''
        if len(view.tree) >= least:
            yield {"tree": view.tree.tree_id, "goal": view.tree.task.goal, "nodes": len(view.tree)}

Named `module:function`, or by an entry point of `treewright.exporters`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from treewright.envs.doors import Door, call, nearest, options_of
from treewright.envs.errors import TreewrightError
from treewright.envs.naming import place_of
from treewright.training.export.columns import BUILT_IN
from treewright.training.export.peers import PEERS
from treewright.training.export.view import Row, View, clean

__all__ = ["DOOR", "OwnFormat", "own_formats"]

DOOR = Door(kind="format", group="treewright.exporters", built_in=lambda: {**dict.fromkeys(BUILT_IN), **PEERS})


@dataclass(frozen=True, slots=True)
class OwnFormat:
    """One exporter that somebody else wrote.

    name      as it was asked for;  table  the folder of its tables: letters, digits and underscores
    function  (view, **options) → rows, mappings from a column's name to a value that JSON can hold; arrays become lists
    columns   types by column as in `export.columns`, from the function's attribute `columns`; None: read off the rows
    """

    name: str
    table: str
    function: Callable[..., Any]
    options: Mapping[str, Any]
    columns: dict[str, Any] | None

    @property
    def about(self) -> str:
        """The first line of its docstring, for the card."""
        return (self.function.__doc__ or "Rows of an exporter of one's own.").strip().partition("\n")[0]

    def rows(self, view: View) -> Iterator[Row]:
        """The rows of one tree. Raises TreewrightError where the function raises, or gives what is no row."""
        try:
            for row in call(self.function, self.options, f"format {self.name!r}", view=view) or ():
                yield self._row(row)
        except TreewrightError:
            raise
        except Exception as error:
            raise TreewrightError(
                f"format {self.name!r} raised {type(error).__name__}: {error}{place_of(error)}; "
                f"it had tree {view.tree.tree_id}"
            ) from error

    def _row(self, row: Any) -> Row:
        if not isinstance(row, Mapping) or not row or not all(isinstance(key, str) for key in row):
            raise TreewrightError(
                f"format {self.name!r} gave {_shown(row)}; a row is a mapping from column names to values"
            )
        out = {key: self._plain(value, key) for key, value in row.items()}
        if self.columns is not None and (extra := next((key for key in out if key not in self.columns), None)):
            raise TreewrightError(
                f"format {self.name!r} gave a column {extra!r} that its `columns` lack; {nearest(extra, self.columns)}"
            )
        return out

    def _plain(self, value: Any, key: str) -> Any:
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, str):
            return clean(value)
        if isinstance(value, (np.generic, np.ndarray)):
            return self._plain(value.tolist(), key)
        if isinstance(value, Mapping):
            return {str(k): self._plain(v, key) for k, v in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
            return [self._plain(v, key) for v in value]
        raise TreewrightError(f"format {self.name!r}: column {key!r} holds {_shown(value)}, which no table can hold")


def _shown(value: Any) -> str:
    return f"a {type(value).__name__}" if len(repr(value)) > 60 else f"{value!r}"


def own_formats(names: Sequence[str], options: Mapping[str, Any]) -> dict[str, OwnFormat]:
    """Those of the names that are not built in, opened, each with the options that it takes.

    Raises TreewrightError for an unknown name, for an option that none of them takes, and for two of one table.
    """
    found = {name: DOOR.find(name) for name in names if name not in BUILT_IN}
    for name, function in found.items():
        if not callable(function):
            raise TreewrightError(f"format {name!r} is a {type(function).__name__}; name a function (view) -> rows")
    known = {name: options_of(function, ("view",)) for name, function in found.items()}
    for option in options:
        if not any(taken is None or option in taken for taken in known.values()):
            every = [o for taken in known.values() for o in taken or ()]
            what = f"of {', '.join(map(repr, found))} has" if found else "of the built-in formats has"
            raise TreewrightError(f"no format {what} an option {option!r}; {nearest(option, every)}")
    out: dict[str, OwnFormat] = {}
    for name, function in found.items():
        taken = known[name]
        own = {key: value for key, value in options.items() if taken is None or key in taken}
        table = re.sub(r"\W+", "_", name, flags=re.ASCII)
        if table in BUILT_IN or any(table == other.table for other in out.values()):
            raise TreewrightError(f"format {name!r} would share the table {table!r} with another; rename the function")
        columns = getattr(function, "columns", None)
        out[name] = OwnFormat(name, table, function, own, dict(columns) if columns is not None else None)
    return out
