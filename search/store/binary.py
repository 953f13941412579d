"""Rows in the binary form of PostgreSQL's COPY, made from columns: numbers by numpy, texts and bytes as they are.

The slow way, which the tests compare with, is psycopg's own `Copy.write_row`, value by value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Table
from sqlalchemy.types import BigInteger, Boolean, Double, Integer, LargeBinary

from treewright.search.store.values import Part

__all__ = ["END", "START", "Rows"]

START = b"PGCOPY\n\xff\r\n\0" + bytes(8)
END = b"\xff\xff"

NULL = b"\xff\xff\xff\xff"
NUMBERS = ((BigInteger, ">i8"), (Integer, ">i4"), (Double, ">f8"), (Boolean, ">i1"))


class Rows:
    """Makes rows of a table in which some columns have one value.

    names   the columns that the rows have; others are NULL in all of them
    """

    def __init__(self, table: Table, constants: Mapping[str, Any]) -> None:
        columns = [c for c in table.columns if constants.get(c.name, c) is not None or c.server_default is not None]
        self.names = [c.name for c in columns]
        head = len(columns).to_bytes(2, "big")
        self._columns: list[
            tuple[bytes, str | None, bool]
        ] = []  # what stands before a column, its dtype, whether bytes
        for column in columns:
            dtype = next((code for kind, code in NUMBERS if isinstance(column.type, kind)), None)
            raw = isinstance(column.type, LargeBinary)
            if column.name in constants:
                head += _field(constants[column.name], dtype, raw)
            else:
                self._columns.append((head, dtype, raw))
                head = b""
        self._tail = head

    def of(self, part: Part) -> bytes:
        """The rows of a part, see `Database.load`. Raises OverflowError for a number that its column cannot hold."""
        size = len(part[0])
        fixed: list[bytes | NDArray[Any]] = []
        pieces: list[Sequence[bytes]] = []
        for (head, dtype, raw), values in zip(self._columns, part, strict=True):
            if dtype is not None and None not in values:
                fixed += [head + _length(np.dtype(dtype).itemsize), _array(values, dtype)]
                continue
            data = _data(values, dtype, raw)
            lengths = list(map(len, data))
            if None in values:
                lengths = [-1 if value is None else length for value, length in zip(values, lengths, strict=True)]
            pieces += [_joined([*fixed, head, np.array(lengths, ">i4")], size), data]
            fixed = []
        pieces.append(_joined([*fixed, self._tail], size))
        return b"".join(chain.from_iterable(zip(*pieces, strict=True)))


def _field(value: Any, dtype: str | None, raw: bool) -> bytes:
    if value is None:
        return NULL
    (data,) = [_array([value], dtype).tobytes()] if dtype is not None else _data([value], None, raw)
    return _length(len(data)) + data


def _length(size: int) -> bytes:
    return size.to_bytes(4, "big")


def _array(values: Sequence[Any], dtype: str) -> NDArray[Any]:
    if dtype == ">f8":
        return np.array(values, dtype)
    wide = np.array(values, np.int64)
    narrow = wide.astype(dtype)
    if (narrow != wide).any():
        raise OverflowError(f"{wide[narrow != wide][0]} does not fit into {np.dtype(dtype).itemsize} bytes")
    return narrow


def _data(values: Sequence[Any], dtype: str | None, raw: bool) -> Sequence[bytes]:
    """The bytes of each value, none for NULL."""
    if dtype is not None:
        return [b"" if value is None else _array([value], dtype).tobytes() for value in values]
    if raw:
        return [value or b"" for value in values]
    return [value.encode() if value else b"" for value in values]


def _joined(pieces: Sequence[bytes | NDArray[Any]], size: int) -> list[bytes]:
    """Bytes that every row has and numbers, one for each row, side by side: a bytes object for each row."""
    one = b"".join(piece if isinstance(piece, bytes) else bytes(piece.itemsize) for piece in pieces)
    width, at = len(one), 0
    out = np.empty((size, width), np.uint8)
    out[:] = np.frombuffer(one, np.uint8)
    for piece in pieces:
        if isinstance(piece, bytes):
            at += len(piece)
        else:
            np.ndarray((size,), piece.dtype, out.data, at, (width,))[:] = piece
            at += piece.itemsize
    raw = out.tobytes()
    return [raw[start : start + width] for start in range(0, size * width, width)] if width else [b""] * size
