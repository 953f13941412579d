"""JSON lines as they come: whatever is wrong with a line is said of that line, and the rest is read.

Byte order marks are passed over, wherever files were joined. Lines end with a line feed, a carriage return or both;
other separators, such as U+2028 or a form feed, belong to the text, since JSON may hold them in strings.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["BadLine", "json_lines", "whole_text"]

BOM = "\ufeff"
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


def _value(text: str) -> Any:
    at = next((i for i, character in enumerate(text) if ord(character) in NOT_UTF8), -1)
    if at >= 0:
        return BadLine(f"not UTF-8: byte 0x{ord(text[at]) - 0xDC00:02x} at column {at + 1}")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return BadLine(f"not valid JSON: {error.msg} at column {error.colno}")
    except (RecursionError, ValueError) as error:
        return BadLine(f"not valid JSON: {error}")


def whole_text(value: Any) -> Any:
    """The JSON value with U+FFFD for half surrogates, which no file and no server takes; the same object without."""
    if isinstance(value, str):
        return value.translate(HALVES) if any("\ud800" <= c <= "\udfff" for c in value) else value
    if isinstance(value, list):
        return [whole_text(v) for v in value]
    if isinstance(value, dict):
        return type(value)((whole_text(k), whole_text(v)) for k, v in value.items())
    return value
