"""Checksums of rows."""

from __future__ import annotations

import marshal
from hashlib import blake2b
from itertools import repeat
from typing import Any, NamedTuple

__all__ = ["Job", "checksum", "sums"]

Row = tuple[Any, ...]


def checksum(*rows: Row) -> str:
    """128 bits over the values of rows as they are in the database, surrogate keys left out; 32 hex digits.

    The digest that contents have, too. marshal's version 2 writes plain values, nothing that depends on their identity,
    and is only ever written here.
    """
    raw = marshal.dumps(rows, 2)
    summed = blake2b(len(raw).to_bytes(8, "little"), digest_size=16)
    summed.update(raw)  # gives other threads their turn where there is much
    return summed.hexdigest()


class Job(NamedTuple):
    """Expansions and their drafts, which are the rows of `columns` one after the other.

    expansions  (seq, node, drawn, id of the first draft, drafts) each
    first, rest what follows the first six columns of an expansion: of seq 0, and of all others
    columns     of the drafts: a list with a value for each, or (value,) where all have the same
    """

    expansions: list[tuple[int, int, int, int, int]]
    first: Row
    rest: Row
    columns: list[list[Any] | Row]


def sums(job: Job) -> list[str]:
    """The checksum of each expansion."""
    size = sum(own[4] for own in job.expansions)
    rows = list(zip(*(repeat(c[0], size) if isinstance(c, tuple) else c for c in job.columns), strict=True))
    out, at = [], 0
    for seq, node, drawn, first, drafts in job.expansions:
        row = (seq, node, False, drawn, first, drafts, *(job.rest if seq else job.first))
        out.append(checksum(row, *rows[at : at + drafts]))
        at += drafts
    return out
