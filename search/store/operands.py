"""What a filter compares a field with: every value has the type of the field's column before a database sees it.

SQLite sorts any text above all numbers, so `nodes < "3k"` would hold for every tree; PostgreSQL ends with an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from numbers import Integral, Real
from typing import Any, Final

import numpy as np
from sqlalchemy import BigInteger, Boolean, Column, Double, Integer, type_coerce

from treewright.envs.lines import json_value
from treewright.search.store.errors import StoreError

__all__ = ["column_for", "operand", "typed"]

ORDERED: Final = ("<", "<=", ">", ">=")
MOMENTS: Final = ("created", "ended")
FLAGS: Final = {"true": True, "yes": True, "false": False, "no": False}
YEAR_OR_DAY: Final = re.compile(r"\d{4}(\d{4})?")  # as seconds they would be of the year 1970
SHOWN: Final = 60  # characters of a value in a message


def _text(value: object) -> str:
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    if not isinstance(value, str):
        raise ValueError
    return value


def _whole(value: object) -> int | float:
    """An int of 64 bits; a float where there is a fraction."""
    given = _real(value)
    if isinstance(value, Integral) or given.is_integer():
        whole = int(value)  # type: ignore[call-overload]
        if not -(2**63) <= whole < 2**63:
            raise ValueError
        return int(whole)
    if not np.isfinite(given):
        raise ValueError
    return given


def _real(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or value != value:
        raise ValueError
    return float(value)


def _moment(value: object) -> float:
    """Seconds since the epoch; without a time zone UTC is meant."""
    when = datetime.fromisoformat(value) if isinstance(value, str) else value
    if isinstance(when, date) and not isinstance(when, datetime):
        when = datetime.combine(when, time())
    if not isinstance(when, datetime):
        return _real(when)
    return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()


def _flag(value: object) -> bool:
    if isinstance(value, str) and value.lower() in FLAGS:
        return FLAGS[value.lower()]
    if not isinstance(value, bool | np.bool_):
        raise ValueError
    return bool(value)


TAKES: Final[dict[Callable[[object], Any], str]] = {
    _text: "text",
    _whole: "a whole number of at most 64 bits",
    _real: "a number",
    _moment: "seconds since 1970 or an ISO date or time in UTC such as 2020-01-31",
    _flag: "true, false, yes or no",
}


def _reader(column: Column[Any]) -> Callable[[object], Any]:
    if column.name in MOMENTS:
        return _moment
    if isinstance(column.type, Boolean):
        return _flag
    if isinstance(column.type, Integer):
        return _whole
    return _real if isinstance(column.type, Double) else _text


def operand(name: str, column: Column[Any], sign: str, value: object) -> Any:
    """The value by the column's type; None, for NULL, only after = and !=. Raises StoreError for what does not fit."""
    if value is None and sign in ("=", "!="):
        return None
    read = _reader(column)
    if (sign in ORDERED and read is _flag) or (sign == "like" and read is not _text):
        raise StoreError(f"{name} takes {TAKES[read]}, and no {sign!r} {_shown(value)}; use = or !=")
    try:
        found = read(value)
    except (ValueError, OverflowError):
        raise StoreError(f"{name} takes {TAKES[read]}, not {_shown(value)}") from None
    if read is _whole and isinstance(found, float) and sign not in ORDERED:
        raise StoreError(f"{name} takes {TAKES[read]}, not {_shown(value)}: only < <= > >= compare with a fraction")
    return found


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:
        return "one of thousands of digits"
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def typed(column: Column[Any], text: str) -> object:
    """What was typed after an operator, to be given to `operand`.

    `null` is None where the column may have no value. A text stands as it was typed, but for one in double quotes,
    which is read as JSON.
    """
    if text == "null" and column.nullable:
        return None
    read = _reader(column)
    if read is _flag or (read is _text and not (text[:1] == text[-1:] == '"')):
        return text
    if read is _moment and YEAR_OR_DAY.fullmatch(text):
        return text
    try:
        value = json_value(text, finite=True)
    except json.JSONDecodeError:
        return text
    return value if isinstance(value, str) == (read is _text) and value is not None else text


def column_for(column: Column[Any], values: list[Any]) -> Any:
    """The column, to be compared with these values as they are: 64 bits, and fractions, also where it has fewer."""
    if not isinstance(column.type, Integer):
        return column
    return type_coerce(column, Double() if any(isinstance(v, float) for v in values) else BigInteger())
