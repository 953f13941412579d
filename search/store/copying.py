"""Trees from one store into another, verified row by row: to merge stores, and to save what is whole of a damaged one.

Rows keep their checksums, so a copy is the same tree bit for bit, also between SQLite and PostgreSQL.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.exc import DatabaseError

from treewright.search.store.codec import BYTES_KEY, NODE_REST, decode_expansion, decode_header, rest_of, sum_of
from treewright.search.store.database import Database, Shared, database_at
from treewright.search.store.errors import StoreError
from treewright.search.store.models import (
    EXPANSION_COLUMNS,
    HEADER_COLUMNS,
    NODE_COLUMNS,
    blobs,
    expansions,
    journal,
    nodes,
    runs,
    trees,
)
from treewright.search.store.reading import Blobs, expansion_rows, header_rows
from treewright.search.store.sums import checksum
from treewright.search.store.values import Row, expand
from treewright.search.tree import Tree, TreeHeader

__all__ = ["Copied", "inner_blobs", "merge", "repair"]

INNER = re.compile(rf'"{re.escape(BYTES_KEY)}":"([0-9a-f]{{32}})"')
NODE_AT = {name: NODE_COLUMNS.index(name) for name in ("ids", "observation", "parts")}
EXPANSION_AT = {name: EXPANSION_COLUMNS.index(name) for name in ("observation", "parts", "drafts")}
CREATED = HEADER_COLUMNS.index("created")
END = tuple(c.name for c in trees.columns)[len(HEADER_COLUMNS) + 2 :]  # status and what follows


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of a tree.

    how    copied, extended (the target had its beginning), present (the target has all of it), cut (only its beginning
           was whole and was copied), differs (the target has another tree of this name: left alone), lost
    why    what was damaged or different; empty if nothing
    """

    tree_id: str
    how: str
    expansions: int
    why: str = ""


@dataclass(slots=True)
class _Whole:
    """What is whole of a tree: `why` says what is not."""

    header: TreeHeader
    rows: tuple[Row, Row]
    popped: list[tuple[Row, list[Row]]]
    journal: list[Any] = field(default_factory=list)
    why: str = ""


def merge(target: str | Path, sources: Sequence[str | Path]) -> Iterator[Copied]:
    """Copies every tree of the sources that the target lacks, and what it lacks of trees that went on elsewhere.

    A damaged tree is left out and named (`lost`). Nobody else may write the target meanwhile.
    """
    yield from _copy(target, sources, salvage=False)


def repair(source: str | Path, target: str | Path) -> Iterator[Copied]:
    """Copies what is whole into a new store; the damaged one stays as it is.

    Of a damaged tree the expansions before the damage are kept: it becomes `interrupted`, and a search goes on from
    there. Raises StoreError if the target has trees already.
    """
    yield from _copy(target, [source], salvage=True)


def _copy(target: str | Path, sources: Sequence[str | Path], salvage: bool) -> Iterator[Copied]:
    into = database_at(target)
    with ExitStack() as stack:
        stack.callback(into.release)
        into.own(exclusive=True)
        if salvage:
            with into.reader().connect() as connection:
                if connection.execute(select(func.count()).select_from(trees)).scalar_one():
                    raise StoreError(f"{into.name} has trees already; repair into a new file")
        for source in sources:
            out = database_at(source, read_only=True)
            if out.name == into.name:
                raise StoreError(f"{into.name} cannot be copied into itself; name another file")
            with ExitStack() as inner:
                inner.callback(out.release)
                out.verify()
                reading = inner.enter_context(out.reader().connect())
                writing = inner.enter_context(into.writer().connect())
                facts = inner.enter_context(closing(into.facts(writing)))
                for key, name in reading.execute(select(trees.c.key, trees.c.id).order_by(trees.c.key)).all():
                    with into.transaction(writing, durable=True):
                        done = _one(reading, key, name, into, writing, facts, salvage)
                    yield done


def _one(
    reading: Connection, key: int, name: str, into: Database, writing: Connection, facts: Shared, salvage: bool
) -> Copied:
    try:
        found = _read(reading, key, name)
    except (StoreError, DatabaseError, ValueError, TypeError) as error:
        return Copied(name, "lost", 0, str(error).splitlines()[0])
    if found.why and not salvage:
        return Copied(name, "lost", 0, found.why)
    there = writing.execute(select(trees.c.key).where(trees.c.id == name)).scalar_one_or_none()
    if there is None:
        try:
            _keep_blobs(reading, found, facts)
        except (StoreError, DatabaseError) as error:
            return Copied(name, "lost", 0, str(error).splitlines()[0])
        new = _insert(reading, key, found, into, writing, facts)
        _journal(found, writing, new)
        return Copied(name, "cut" if found.why else "copied", len(found.popped), found.why)
    return _extend(reading, key, name, found, there, into, writing, facts)


def _extend(
    reading: Connection,
    key: int,
    name: str,
    found: _Whole,
    there: int,
    into: Database,
    writing: Connection,
    facts: Shared,
) -> Copied:
    def told(connection: Connection, of: int) -> list[str]:
        query = select(expansions.c.checksum).where(expansions.c.tree == of).order_by(expansions.c.seq)
        return list(connection.execute(query).scalars())

    ours, theirs = told(writing, there), told(reading, key)
    both = min(len(ours), len(theirs))
    mine, root = header_rows(writing, there)
    same = (mine[:CREATED], root) == (found.rows[0][:CREATED], found.rows[1])
    if not same or ours[:both] != theirs[:both]:
        return Copied(name, "differs", len(ours), "the target has another tree of this name")
    if len(theirs) <= len(ours):
        return Copied(name, "present", len(ours))
    if writing.execute(select(journal.c.id).where(journal.c.tree == there)).first():
        return Copied(name, "differs", len(ours), "the target has irreversible actions of this tree in its journal")
    rest = _Whole(found.header, found.rows, found.popped[both:], found.journal)
    _keep_blobs(reading, rest, facts)
    _grow(rest, there, into, writing)
    writing.execute(update(trees).where(trees.c.key == there).values(_ending(reading, key, found)))
    _journal(found, writing, there)
    return Copied(name, "extended", len(theirs))


def _read(connection: Connection, key: int, name: str) -> _Whole:
    """The tree as far as its rows and contents are whole. Raises what its header raises."""
    rows, fetch = header_rows(connection, key), Blobs(connection)
    header = decode_header(*rows, fetch)
    if header.tree_id != name:
        raise StoreError(f"tree {name}: its header belongs to tree {header.tree_id}")
    found, tree = _Whole(header, rows, []), Tree.start(header)
    try:
        for row, below in expansion_rows(connection, key, name):
            tree.apply(decode_expansion(row, below, header.policy_version, fetch))
            found.popped.append((row, below))
        query = select(trees.c.chosen).where(trees.c.key == key)
        if (connection.execute(query).scalar_one() or 0) >= len(tree):
            found.why = "its chosen node does not exist"
    except Exception as error:  # whatever damage does to values: it is named, and what came before is whole
        found.why = str(error).splitlines()[0]
    try:
        found.journal = list(connection.execute(select(journal).where(journal.c.tree == key).order_by(journal.c.id)))
    except DatabaseError as error:
        found.why = found.why or f"its journal cannot be read: {error.orig}"
    return found


def _insert(reading: Connection, key: int, found: _Whole, into: Database, writing: Connection, facts: Shared) -> int:
    row, root = found.rows
    values = dict(
        zip((*HEADER_COLUMNS, "checksum"), (*row, checksum(row, rest_of(root, NODE_REST))), strict=True)
    ) | _ending(reading, key, found)
    ended = reading.execute(select(runs.c.ended).where(runs.c.run == values["run"])).scalar_one_or_none()
    facts.add(runs, [(values["run"], values["created"], ended)])
    new = int(writing.execute(insert(trees).values(values).returning(trees.c.key)).scalar_one())
    writing.exec_driver_sql(into.insertion(nodes), [(new, *root, 0)])
    _grow(found, new, into, writing)
    return new


def _ending(reading: Connection, key: int, found: _Whole) -> dict[str, Any]:
    """The end columns; of a tree that was cut only that it can go on."""
    if found.why:
        return {"status": "interrupted"}
    ended = dict(reading.execute(select(*(trees.c[n] for n in END)).where(trees.c.key == key)).one()._mapping)
    return ended | ({"status": "interrupted"} if ended["status"] == "running" else {})


def _grow(found: _Whole, key: int, into: Database, writing: Connection) -> None:
    rows = [(key, *row, sum_of(row, below)) for row, below in found.popped]
    if rows:
        writing.exec_driver_sql(into.insertion(expansions), rows)
    below = [(key, *r, len(r[NODE_AT["ids"]]) // 4) for _, drafts in found.popped for r in drafts]
    if below:
        writing.exec_driver_sql(into.insertion(nodes), below)


def _journal(found: _Whole, writing: Connection, new: int) -> None:
    ids: dict[int, int] = {}
    for row in found.journal:
        values = dict(row._mapping) | {"tree": new, "entry": ids.get(row.entry)}
        del values["id"]
        ids[row.id] = int(writing.execute(insert(journal).values(values).returning(journal.c.id)).scalar_one())


def inner_blobs(text: str | None) -> list[str]:
    """Digests of contents that a stored JSON text names."""
    return INNER.findall(text) if text else []


def _keep_blobs(reading: Connection, found: _Whole, facts: Shared) -> None:
    """Everything the rows refer to, verified; compressed as it was."""
    row, root = found.rows
    named = {row[HEADER_COLUMNS.index("task")], row[HEADER_COLUMNS.index("settings")]}
    for r in (root, *(r for _, below in found.popped for r in below)):
        named |= {r[NODE_AT["observation"]], *inner_blobs(r[NODE_AT["parts"]])}
    for r, _ in found.popped:
        named |= {r[EXPANSION_AT["observation"]], *inner_blobs(r[EXPANSION_AT["parts"]])}
    for step in found.journal:
        named |= {step.observation, *inner_blobs(step.parts)}
    left = [name for name in named if name is not None]
    kept: set[str] = set()
    while left:
        batch, left = left[:500], left[500:]
        rows = [tuple(r) for r in reading.execute(select(blobs).where(blobs.c.digest.in_(batch)))]
        if missing := set(batch) - {r[0] for r in rows}:
            raise StoreError(f"blob {min(missing)} is missing; restore the file from a copy")
        for name, codec, data in rows:
            inside = inner_blobs(expand(name, codec, data).decode("utf-8", "replace"))
            left += [inner for inner in inside if inner not in kept and inner not in batch]
        kept.update(batch)
        facts.add(blobs, rows)
