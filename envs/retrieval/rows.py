"""Reading other people's files: encodings, byte order marks, odd characters, and rows that cannot be used.

A row that cannot be used is left out and counted with its place; the file goes on. Only a file of which nothing is
left, or that is no JSON at all, is refused.
"""

from __future__ import annotations

import codecs
import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.envs.lines import json_value

__all__ = ["CorpusError", "LeftOut", "clean", "decoded", "one_line", "records", "rows_of"]

log = logging.getLogger("treewright")

MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
         (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
SHOWN = 5  # places that a warning names
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class CorpusError(TreewrightError, ValueError):
    """A corpus or question file, or a list of documents, that cannot be used; the message says where."""


class LeftOut:
    """The rows of one file that were left out: where each stands and why, in the order of the file."""

    def __init__(self, path: Path) -> None:
        self.path, self.why = path, list[str]()

    def __len__(self) -> int:
        return len(self.why)

    def add(self, why: object) -> None:
        self.why.append(str(why).removeprefix(f"{self.path} "))

    def told(self) -> str:
        """The first places in words, and how many more there are."""
        more = f"; and {len(self.why) - SHOWN} more" if len(self.why) > SHOWN else ""
        return "; ".join(self.why[:SHOWN]) + more

    def close(self, kept: int, what: str, form: str) -> tuple[str, ...]:
        """Warns of what was left out and returns it. Raises CorpusError if nothing was kept; `form` says what helps."""
        if not kept:
            why = f", {self.told()}" if self.why else ""
            raise CorpusError(f"{self.path} holds no {what} that can be used{why}; {form}")
        if self.why:
            log.warning("%s: left out %d of %d: %s", self.path, len(self), kept + len(self), self.told())
        return tuple(self.why)


def clean(text: str) -> str:
    """The text with half surrogates and NUL, which no encoder and no database takes, replaced by U+FFFD."""
    if not _UNSTORABLE.search(text):
        return text
    whole = text.encode("utf-16-le", "surrogatepass").decode(
        "utf-16-le", "replace"
    )  # joins halves that belong together
    return whole.replace("\0", "\ufffd")


def one_line(text: str) -> str:
    """The text with every run of blanks and line ends of any kind as one blank."""
    return " ".join(text.split())


def decoded(raw: bytes) -> str:
    """Text of UTF-8, or of the encoding that a byte order mark names. Raises UnicodeDecodeError."""
    return raw.decode(_encoding(raw))


def _encoding(raw: bytes) -> str:
    return next((name for mark, name in MARKS if raw.startswith(mark)), "utf-8")


def rows_of(path: Path, left_out: LeftOut) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Each JSON object of a file of JSON lines: its place in words, the number of its line, and the object.

    Raises CorpusError if the file cannot be opened. Lines that hold something else go into `left_out`.
    """
    try:
        with path.open("rb") as file:
            encoding = _encoding(file.read(4))
        # Bytes that are no text come as half surrogates, which JSON's own escapes do not: the line is told apart.
        errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
        with path.open(encoding=encoding, errors=errors) as lines:
            for number, line in enumerate(lines, start=1):
                where = f"{path} line {number}"
                line = line.strip("\ufeff\r\n\x1e")
                if line.strip() and (row := _parsed(line, where, left_out)) is not None:
                    yield where, number, row
    except OSError as error:
        raise CorpusError(
            f"cannot read {path}: {error.strerror}; name a file of JSON lines, or a folder of texts"
        ) from error
    except UnicodeError as error:  # UTF-16 that is cut short
        raise CorpusError(f"{path} is not {encoding} text: {error}; save it as UTF-8") from error


def _parsed(line: str, where: str, left_out: LeftOut) -> dict[str, Any] | None:
    try:
        line.encode()
        row = json_value(line)
        if isinstance(row, dict):
            return row
        left_out.add(f"{where}: expected a JSON object, got {type(row).__name__}")
    except UnicodeEncodeError as error:
        left_out.add(f"{where}: not UTF-8 text at character {error.start + 1}")
    except json.JSONDecodeError as error:
        left_out.add(f"{where}, column {error.colno}: not JSON ({error.msg})")
    return None


def records(path: Path, left_out: LeftOut) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Like `rows_of`, of one JSON list too; places are then counted from record 0."""
    try:
        with path.open("rb") as file:
            head = file.read(256)
            listed = head.decode(_encoding(head), "ignore").lstrip("\ufeff \t\r\n").startswith("[")
        rows = json_value(decoded(path.read_bytes())) if listed else None
    except OSError as error:
        raise CorpusError(
            f"cannot read {path}: {error.strerror}; name a file of JSON lines, or a folder of texts"
        ) from error
    except ValueError as error:
        if not str(error).startswith("Extra data"):  # else these are lines, and the first is an odd one
            raise CorpusError(f"{path} is not JSON: {error}; write one object a line, or one list of them") from error
        rows = None
    if rows is None:
        yield from rows_of(path, left_out)
        return
    yield from _objects(path, rows, left_out)


def _objects(path: Path, rows: Iterable[Any], left_out: LeftOut) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for i, row in enumerate(rows):
        if isinstance(row, dict):
            yield f"{path} record {i}", i, row
        else:
            left_out.add(f"{path} record {i}: expected a JSON object, got {type(row).__name__}")
