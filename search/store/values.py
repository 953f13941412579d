"""Single values as databases keep them, and back."""

from __future__ import annotations

import math
import struct
import sys
import zlib
from array import array
from collections.abc import Sequence
from typing import Any, Final

from treewright.envs.types import digest
from treewright.search.store.errors import StoreError

__all__ = [
    "Part",
    "Row",
    "compress",
    "escape",
    "expand",
    "pack_floats",
    "pack_ids",
    "real",
    "unescape",
    "unpack",
    "unpack_floats",
    "unreal",
]

Row = tuple[Any, ...]
Part = Sequence[Sequence[Any]]
"""Rows as their columns."""

ESCAPED: Final = "\ufffe"  # a noncharacter: marks texts that databases cannot hold as they are
NEGATIVE_ZERO: Final = -5e-324  # SQLite keeps no sign of zero, and the sign shows in a tree's digest
WORTH_COMPRESSING: Final = 128


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


def little(values: array[Any]) -> bytes:
    """The bytes of numbers in little-endian order."""
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def unpack(code: str, raw: bytes) -> tuple[Any, ...]:
    """Numbers of a type code out of little-endian bytes."""
    values: array[Any] = array(code, raw)
    if sys.byteorder == "big":
        values.byteswap()
    return tuple(values)


def pack_ids(ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(ids)}i", *ids) if ids else b""


def pack_floats(values: Sequence[float]) -> bytes:
    """'f' + float32 where nothing is lost, else 'd' + float64; empty for no values."""
    if not values:
        return b""
    try:
        small = struct.pack(f"<{len(values)}f", *values)
    except OverflowError:
        small = b""
    if small and struct.unpack(f"<{len(values)}f", small) == tuple(values):
        return b"f" + small
    return b"d" + struct.pack(f"<{len(values)}d", *values)


def unpack_floats(raw: bytes) -> tuple[float, ...]:
    return unpack(chr(raw[0]), raw[1:]) if raw else ()


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
