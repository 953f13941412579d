"""The larger office of the suite `office`: what it holds, how it begins, and how it is kept on disk.

The state is a set of tables, treated as immutable; the tools (office_tools.py) are functions from one state to the
next. On disk the tables are an SQLite file, and the texts of files lie in a folder beside it.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from treewright.envs.types import digest

__all__ = [
    "COLUMNS",
    "DATABASE",
    "DAYS",
    "FILES",
    "STATUSES",
    "Office",
    "first_office",
    "load",
    "save",
    "update",
    "write_changes",
]

DATABASE = "office.sqlite"
FILES = "files"
DAYS = ("mon", "tue", "wed", "thu", "fri")
STATUSES = ("open", "paid", "sent", "held")

Row = tuple[str, ...]
Table = Mapping[str, Row]

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "people": ("mail", "team", "manager"),
    "events": ("who", "topic", "day", "room", "guests"),
    "orders": ("buyer", "item", "status", "agent"),
    "invoices": ("orders", "amount", "state"),
    "tickets": ("reporter", "orders", "state", "agent", "note"),
    "messages": ("sender", "topic", "folder"),
    "projects": ("lead", "file", "code"),
    "sent": ("times",),
}
"""Tables of the database and their columns beside the key. `sent` counts mails by "address topic"."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Ada Ben Cora Dan Eva Finn Gina Hugo Iris Jack Kim Leo Mia Ned Olga Paul Quin Rosa Sam Tara Uma Vera Zoe"
)
TEAMS = _words("red blue green gold gray pink teal brown")
ITEMS = _words("lamp desk chair phone cable mouse shelf clock paper stapler")
TOPICS = _words("late hello thanks budget welcome news review lunch demo trip audit launch")
PLACES = _words("notes plan todo draft memo log list idea brief stock goals team")
WORDS = _words("amber cedar coral delta ember flint ivory lunar maple onyx pearl ridge")


@dataclass(frozen=True, slots=True)
class Office:
    """The whole state: `tables` by the names in COLUMNS, key → row; `files` by name, their text."""

    tables: Mapping[str, Table] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return digest(json.dumps([self.tables, self.files], sort_keys=True))


def update(office: Office, table: str, key: str, row: Row | None) -> Office:
    """The office with another row under that key; None takes it out."""
    rows = {k: v for k, v in office.tables[table].items() if k != key}
    if row is not None:
        rows[key] = row
    return replace(office, tables={**office.tables, table: rows})


@lru_cache(maxsize=1024)
def first_office(seed: int) -> Office:
    """The office of a seed: 6 people, 6 orders with invoices, 4 tickets, 4 events, 5 messages, 3 projects, 8 files.

    Two files name an order, two hold a code, three belong to projects. Orders 0 and 1 are open and have open invoices,
    order 2 is paid, the others are as they fall; tickets 0 and 1 are assigned to nobody.
    """
    rng = random.Random(seed)
    people = rng.sample(NAMES, 6)
    topics = rng.sample(TOPICS, len(TOPICS))
    codes = [f"{word}-{rng.randrange(10, 100)}" for word in rng.sample(WORDS, 5)]
    orders = [f"k{n}" for n in rng.sample(range(10, 100), 6)]
    invoices = [f"i{n}" for n in rng.sample(range(10, 100), 6)]
    tickets = [f"t{n}" for n in rng.sample(range(10, 100), 4)]
    projects = [f"p{n}" for n in rng.sample(range(10, 100), 3)]
    places = [f"{name}.txt" for name in rng.sample(PLACES, 8)]
    status = ["open", "open", "paid", *(rng.choice(STATUSES) for _ in range(3))]
    managers = [people[(i + rng.randrange(1, 6)) % 6] for i in range(6)]
    texts = [f"order {orders[0]} waits", f"see order {orders[3]}", f"code {codes[3]}", f"code {codes[4]}"]
    texts += [f"for project {p}" for p in projects] + [f"ask {people[5]}"]
    tables: dict[str, Table] = {
        "people": {
            who: (f"{who.lower()}{rng.randrange(10, 100)}@corp.io", f"team-{rng.choice(TEAMS)}", managers[i])
            for i, who in enumerate(people)
        },
        "events": {
            f"e{i + 1}": (who, f"#{rng.choice(TOPICS)}", rng.choice(DAYS), "none", "none")
            for i, who in enumerate(rng.sample(people, 4))
        },
        "orders": {
            key: (rng.choice(people), rng.choice(ITEMS), status[i], rng.choice(people)) for i, key in enumerate(orders)
        },
        "invoices": {
            key: (orders[i], str(rng.randrange(10, 1000)), "open" if status[i] == "open" else "paid")
            for i, key in enumerate(invoices)
        },
        "tickets": {
            key: (rng.choice(people), orders[(i + 2) % 6], "open", "none" if i < 2 else rng.choice(people), "none")
            for i, key in enumerate(tickets)
        },
        "messages": {
            f"m{i + 1}": (f"client{rng.randrange(10, 100)}@corp.io", f"#{topics[i]}", "inbox") for i in range(5)
        },
        "projects": {key: (rng.choice(people), places[4 + i], codes[i]) for i, key in enumerate(projects)},
        "sent": {},
    }
    return Office(tables, dict(zip(places, texts, strict=True)))


# -- on disk --------------------------------------------------------------------------------------------------------

# Small pages: a snapshot carries the whole file.
_SCHEMA = "pragma page_size=512;" + "".join(
    f"create table {name} (key text primary key, {', '.join(f'{column} text not null' for column in columns)});"
    for name, columns in COLUMNS.items()
)


def save(office: Office, folder: Path) -> None:
    """Writes the SQLite file and the text files into an empty folder."""
    base = sqlite3.connect(":memory:")
    try:
        base.executescript(_SCHEMA)
        for table, rows in office.tables.items():
            marks = ", ".join("?" * (1 + len(COLUMNS[table])))
            base.executemany(f"insert into {table} values ({marks})", [(key, *row) for key, row in rows.items()])
        base.commit()
        (folder / DATABASE).write_bytes(base.serialize())
    finally:
        base.close()
    (folder / FILES).mkdir()
    for name, text in office.files.items():
        (folder / FILES / name).write_bytes(text.encode())


def load(folder: Path) -> Office:
    """Reads what `save` or `write_changes` wrote."""
    base = sqlite3.connect(folder / DATABASE)
    try:
        tables = {
            table: {row[0]: tuple(row[1:]) for row in base.execute(f"select * from {table} order by rowid")}
            for table in COLUMNS
        }
    finally:
        base.close()
    files = {path.name: path.read_bytes().decode() for path in sorted((folder / FILES).iterdir())}
    return Office(tables, files)


def write_changes(before: Office, after: Office, folder: Path) -> None:
    """Makes the folder hold `after` where it holds `before`; touches only what differs."""
    changed = [table for table in COLUMNS if after.tables[table] != before.tables[table]]
    if changed:
        base = sqlite3.connect(folder / DATABASE)
        try:
            # The folder is a scratch copy: it need not survive a power cut, and no journal may lie beside it.
            base.executescript("pragma synchronous=off; pragma journal_mode=memory;")
            with base:
                for table in changed:
                    _write_rows(base, table, before.tables[table], after.tables[table])
        finally:
            base.close()
    for name in before.files.keys() - after.files.keys():
        (folder / FILES / name).unlink()
    for name, text in after.files.items():
        if before.files.get(name) != text:
            (folder / FILES / name).write_bytes(text.encode())


def _write_rows(base: sqlite3.Connection, table: str, before: Table, after: Table) -> None:
    gone = [(key,) for key in before if key not in after]
    base.executemany(f"delete from {table} where key = ?", gone)
    marks = ", ".join("?" * (1 + len(COLUMNS[table])))
    rows = [(key, *row) for key, row in after.items() if before.get(key) != row]
    base.executemany(f"insert or replace into {table} values ({marks})", rows)
