"""JSON lines as they come: whatever is wrong with a line is said of that line, and the rest is read.

Byte order marks are passed over, wherever files were joined. Lines end with a line feed, a carriage return or both;
other separators, such as U+2028 or a form feed, belong to the text, since JSON may hold them in strings.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["BadLine", "json_lines", "json_value", "whole_text"]

BOM = "\ufeff"
DEEPEST = 200
WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
NOT_UTF8 = range(0xDC80, 0xDD00)  # what "surrogateescape" makes of a byte that is none
HALVES = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that holds no JSON, and why."""

    why: str


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(number of the line, from 1, and its value, or BadLine) for every line that is not blank.

    Raises OSError where the file cannot be read.
    """
    with path.open("rb") as file:
        wide = file.read(2) in WIDE
    with path.open(encoding="utf-16" if wide else "utf-8", errors="replace" if wide else "surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            text = line.strip(BOM + " \t\r\n")
            if text:
                yield number, _value(text)


def json_value(text: str | bytes, hook: Callable[[dict[str, Any]], Any] | None = None, *, finite: bool = False) -> Any:
    """What a JSON text from outside says; `hook` as json.loads has it.

    finite  refuses NaN, Infinity and numbers as large as that, which Python reads and JSON does not have: for what is
    given back as JSON
    Raises json.JSONDecodeError (a ValueError) for whatever is wrong with it: bytes that are no UTF-8, numbers of too
    many digits, and nesting beyond DEEPEST, which nobody means and whatever walks the value would break on.
    """
    try:
        whole = text if isinstance(text, str) else text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise json.JSONDecodeError(f"it is not UTF-8 text, see byte {error.start}", "", 0) from None
    try:
        strict: dict[str, Any] = {"parse_constant": _no_number, "parse_float": _finite} if finite else {}
        value = json.loads(whole, object_hook=hook, **strict)
        if whole.count("{") + whole.count("[") > DEEPEST and _depth(value) > DEEPEST:
            raise RecursionError
        return value
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError(f"it is nested deeper than {DEEPEST} levels", whole, 0) from None
    except ValueError as error:  # a whole number of too many digits
        raise json.JSONDecodeError(str(error).partition(";")[0], whole, 0) from None


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text[:20])


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        level = [part for one in level for part in (one.values() if isinstance(one, dict) else one)]
    return depth


def _value(text: str) -> Any:
    at = next((i for i, character in enumerate(text) if ord(character) in NOT_UTF8), -1)
    if at >= 0:
        return BadLine(f"not UTF-8: byte 0x{ord(text[at]) - 0xDC00:02x} at column {at + 1}")
    try:
        return json_value(text)
    except json.JSONDecodeError as error:
        return BadLine(f"not valid JSON: {error.msg} at column {error.colno}")


def whole_text(value: Any) -> Any:
    """The JSON value with U+FFFD for half surrogates, which no file and no server takes; the same object without."""
    if isinstance(value, str):
        return value.translate(HALVES) if any("\ud800" <= c <= "\udfff" for c in value) else value
    if isinstance(value, list):
        return [whole_text(v) for v in value]
    if isinstance(value, dict):
        return type(value)((whole_text(k), whole_text(v)) for k, v in value.items())
    return value
