"""Columns of a table read as arrays, with no object for a row or a value: the database joins them into texts.

Whole numbers are joined as they are. Other columns mostly have few distinct values; these are read once, and for each
row the number of its value. Only a column with many is read row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Table

from treewright.search.store.errors import StoreError

__all__ = ["Scanned", "scan"]

FEW = 16
"""Distinct values of a column that is read by numbers."""

COMBINATIONS = 256

Scanned = tuple[NDArray[np.int64], list[Any]]
"""[N] where each row's value stands among the values."""


def scan(
    connection: Connection, table: Table, key: int, order: str, numbers: Sequence[str], others: Sequence[str]
) -> tuple[list[NDArray[np.int64]], list[Scanned]]:
    """Columns of one tree's rows, in ascending `order`, which is a column that differs in all of them.

    numbers   SQL of whole numbers, never NULL: [N] int64 each, behind `order` itself
    others    columns of any kind, see `Scanned`
    Raises StoreError where a number is missing.
    """
    where = f"FROM {table.name} WHERE tree = {key:d}"
    cursor = connection.connection.cursor()
    cursor.execute(f"SELECT DISTINCT {', '.join(others)} {where} LIMIT {COMBINATIONS + 1}")
    found = cursor.fetchall()
    known = len(found) <= COMBINATIONS
    values = [list(dict.fromkeys(row[i] for row in found)) for i in range(len(others))]
    few = [i for i, v in enumerate(values) if known and 1 < len(v) <= FEW]
    many = [i for i, v in enumerate(values) if not known or len(v) > FEW]

    sqlite, given = connection.dialect.name == "sqlite", list[Any]()
    mark = "?" if sqlite else "%s"
    asked = [order, *numbers]
    for i in few:
        cases = [(value, code) for code, value in enumerate(values[i]) if value is not None]
        null = values[i].index(None) if None in values[i] else -1
        asked.append(f"CASE {others[i]} {' '.join(f'WHEN {mark} THEN {code}' for _, code in cases)} ELSE {null} END")
        given += [value for value, _ in cases]
    joined = [f"group_concat({sql})" if sqlite else f"string_agg(({sql})::text, ',')" for sql in asked]
    cursor.execute(f"SELECT count(*), {', '.join(joined)} {where}", given)
    ((size, *texts),) = cursor.fetchall()
    arrays = [_parsed(text, size, sql, where) for text, sql in zip(texts, asked, strict=True)]
    place = arrays[0]
    if (place[1:] < place[:-1]).any():
        by = np.argsort(place)
        arrays = [array[by] for array in arrays]

    coded = {i: (codes, values[i]) for i, codes in zip(few, arrays[1 + len(numbers) :], strict=True)}
    if many:
        cursor.execute(f"SELECT {', '.join(others[i] for i in many)} {where} ORDER BY {order}")
        columns = zip(*cursor.fetchall(), strict=True)
        coded |= {i: (np.arange(size), list(column)) for i, column in zip(many, columns, strict=True)}
    alike = np.zeros(size, np.int64)
    return arrays[: 1 + len(numbers)], [coded.get(i, (alike, values[i])) for i in range(len(others))]


def _parsed(text: str | None, size: int, sql: str, where: str) -> NDArray[np.int64]:
    try:
        found = np.fromstring(text or "", np.int64, sep=",") if text else np.empty(0, np.int64)
    except ValueError:
        found = np.empty(0, np.int64)
    if len(found) != size:
        raise StoreError(f"{sql} {where} is no whole number in every row; restore the store from a copy")
    return found
