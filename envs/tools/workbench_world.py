"""The small office of the suite `workbench`: its state, what each tool does to it, and how it is kept on disk.

The server (workbench_server.py) works on the SQLite file and the folder. `apply` says the same in pure Python; the
oracle and the judge read it, and a test holds the two against each other.
"""

from __future__ import annotations

import json
import random
import re
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from treewright.envs.types import digest

__all__ = [
    "DATABASE",
    "DAYS",
    "FILES",
    "STATUSES",
    "Office",
    "apply",
    "first_office",
    "free_event",
    "is_file_name",
    "load",
    "save",
]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


DATABASE = "office.sqlite"
FILES = "files"
DAYS = ("mon", "tue", "wed", "thu", "fri")
STATUSES = ("open", "paid", "sent", "held")
PEOPLE = _words(
    "ada ben cora dan eva finn gina hugo iris jack kim leo mia ned olga paul quin rosa sam tara uma vera will zoe "
)
TEAMS = _words("red blue green gold gray pink teal brown")
ITEMS = _words("lamp desk chair phone cable mouse shelf clock paper stapler")
TITLES = _words("sync review lunch call demo plan")
FILE_NAMES = _words("notes plan todo draft memo log list inbox idea brief stock trip goals budget team news")
CODES = _words("amber cedar coral delta ember flint ivory lunar maple onyx pearl ridge")

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,30}")
# Small pages: a snapshot carries the whole file.
_SCHEMA = """
pragma page_size=512;
create table contacts (name text primary key, mail text not null, team text not null);
create table orders (id text primary key, buyer text not null, item text not null, status text not null);
create table events (id text primary key, who text not null, title text not null, day text not null);
create table mails (address text not null, subject text not null);
"""


@dataclass(frozen=True, slots=True)
class Office:
    """The whole state. Treated as immutable: `apply` returns another one.

    contacts  name → (mail, team)
    orders    id → (buyer, item, status)
    events    id → (who, title, day)
    mails     (address, subject) of every mail sent, sorted
    files     name → text
    """

    contacts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    orders: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    events: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    mails: tuple[tuple[str, str], ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return digest(json.dumps(asdict(self), sort_keys=True))


@lru_cache(maxsize=1024)
def first_office(seed: int) -> Office:
    """The office of a seed: 5 people, 4 orders, 3 events, 5 files (two name an order, two hold a code)."""
    rng = random.Random(seed)
    people = rng.sample(PEOPLE, 5)
    contacts = {name: (f"{name}{rng.randrange(10, 100)}@corp.io", rng.choice(TEAMS)) for name in people}
    numbers = rng.sample(range(10, 100), 4)
    orders = {f"k{n}": (rng.choice(people), rng.choice(ITEMS), rng.choice(STATUSES)) for n in numbers}
    hosts = rng.sample(people, 3)
    events = {f"e{i + 1}": (who, rng.choice(TITLES), rng.choice(DAYS)) for i, who in enumerate(hosts)}
    named = rng.sample(sorted(orders), 2)
    codes = [f"{word}{rng.randrange(10, 100)}" for word in rng.sample(CODES, 2)]
    texts = [f"order {named[0]} is late", f"check order {named[1]}", f"code {codes[0]}", f"code {codes[1]}"]
    texts.append(f"call {rng.choice(people)}")
    files = dict(zip(rng.sample(FILE_NAMES, 5), texts, strict=True))
    return Office(contacts, orders, events, (), files)


def is_file_name(name: str) -> bool:
    """One flat, lower-case name; nothing that could leave the folder."""
    return _NAME.fullmatch(name) is not None


def free_event(taken: Mapping[str, Any]) -> str:
    """The id of the next event: the lowest that is free, so that cancelling and creating again gives the same state."""
    return next(f"e{i}" for i in range(1, len(taken) + 2) if f"e{i}" not in taken)


def apply(office: Office, name: str, arguments: Mapping[str, Any]) -> Office:
    """The office after one call; the same one after a call that only reads, or that the server refuses."""
    files, orders, events = office.files, office.orders, office.events
    match name, dict(arguments):
        case "write_file", {"name": str(file), "text": str(text)} if is_file_name(file):
            return replace(office, files={**files, file: text})
        case "append_file", {"name": str(file), "text": str(text)} if file in files:
            return replace(office, files={**files, file: f"{files[file]}\n{text}"})
        case "delete_file", {"name": str(file)} if file in files:
            return replace(office, files={k: v for k, v in files.items() if k != file})
        case "update_order", {"id": str(key), "status": str(status)} if key in orders:
            return replace(office, orders={**orders, key: (*orders[key][:2], status)})
        case "create_event", {"who": str(who), "title": str(title), "day": str(day)} if who in office.contacts:
            return replace(office, events={**events, free_event(events): (who, title, day)})
        case "move_event", {"id": str(key), "day": str(day)} if key in events:
            return replace(office, events={**events, key: (*events[key][:2], day)})
        case "cancel_event", {"id": str(key)} if key in events:
            return replace(office, events={k: v for k, v in events.items() if k != key})
        case "send_mail", {"to": str(address), "subject": str(subject)} if "@" in address:
            return replace(office, mails=tuple(sorted([*office.mails, (address, subject)])))
    return office


def save(office: Office, folder: Path) -> None:
    """Writes the SQLite file and the text files into an empty folder."""
    (folder / DATABASE).write_bytes(_database(office))
    (folder / FILES).mkdir()
    for name, text in office.files.items():
        (folder / FILES / name).write_bytes(text.encode())


def _database(office: Office) -> bytes:
    base = sqlite3.connect(":memory:")
    try:
        base.executescript(_SCHEMA)
        for table in ("contacts", "orders", "events"):
            rows = [(key, *row) for key, row in getattr(office, table).items()]
            base.executemany(f"insert into {table} values ({', '.join('?' * len(rows[0]))})" if rows else "", rows)
        base.executemany("insert into mails values (?, ?)", office.mails)
        base.commit()
        return base.serialize()
    finally:
        base.close()


def load(folder: Path) -> Office:
    """Reads what `save` or the server wrote."""
    base = sqlite3.connect(folder / DATABASE)
    try:
        contacts = {name: (mail, team) for name, mail, team in base.execute("select * from contacts")}
        orders = {key: (buyer, item, status) for key, buyer, item, status in base.execute("select * from orders")}
        events = {key: (who, title, day) for key, who, title, day in base.execute("select * from events")}
        mails = tuple(sorted(base.execute("select address, subject from mails")))
    finally:
        base.close()
    files = {path.name: path.read_bytes().decode() for path in sorted((folder / FILES).iterdir())}
    return Office(contacts, orders, events, mails, files)
