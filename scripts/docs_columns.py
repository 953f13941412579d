"""An extension of griffe: lines such as `name   meaning` in docstrings stay columns instead of running together."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

COLUMN = re.compile(r"^\S.*?\s{2,}\S|^ {2,}\S")


class Columns(Extension):
    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = "\n\n".join(map(_kept, re.split(r"\n[ \t]*\n", obj.docstring.value)))


def _kept(paragraph: str) -> str:
    """The paragraph, from its first line of columns on as a block of text."""
    lines = paragraph.splitlines()
    first = next((i for i, line in enumerate(lines) if COLUMN.match(line)), None)
    if first is None:
        return paragraph
    before = "\n".join(lines[:first])
    block = "\n".join(lines[first:])
    return f"{before}\n\n```text\n{block}\n```" if before else f"```text\n{block}\n```"
