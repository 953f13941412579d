"""Checksums of rows; alone, this file is a process that sums up the rows which another one writes.

    python -I -S sums.py        jobs on standard input, their checksums on standard output, see `send`

Hashing and writing take about as long, and in one process they wait for each other at every row. The file imports the
standard library alone, so that it starts in no time and without a look at paths.
"""

from __future__ import annotations

import marshal
import sys
from hashlib import blake2b
from itertools import repeat
from typing import IO, Any, NamedTuple

__all__ = ["Job", "checksum", "receive", "send", "sums"]

Row = tuple[Any, ...]


def checksum(*rows: Row) -> str:
    """128 bits over the values of rows as they are in the database, surrogate keys left out; 32 hex digits.

    The digest that contents have, too. marshal's version 2 writes plain values, nothing that depends on their identity,
    and is only ever written here.
    """
    raw = marshal.dumps(rows, 2)
    return blake2b(len(raw).to_bytes(8, "little") + raw, digest_size=16).hexdigest()


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


def send(pipe: IO[bytes], values: Any) -> None:
    """Plain values for another process of this interpreter: a length in 8 bytes, then what marshal makes of them."""
    raw = marshal.dumps(values, 2)
    pipe.write(len(raw).to_bytes(8, "little"))
    pipe.write(raw)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    """What the other side has sent. Raises EOFError at its end, also in the middle of something."""
    head = pipe.read(8)
    raw = pipe.read(int.from_bytes(head, "little"))
    if len(head) < 8 or not raw:
        raise EOFError
    return marshal.loads(raw)


def _serve() -> None:
    while True:
        try:
            job = receive(sys.stdin.buffer)
        except EOFError:
            return
        send(sys.stdout.buffer, sums(Job(*job)))


if __name__ == "__main__":
    _serve()
