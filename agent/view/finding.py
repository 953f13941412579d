"""Full text over goals, answers, actions, observations and errors, in an index of the viewer's own.

Stores are opened read-only, so nothing is added to them: the index is one SQLite file for each store in the user's
cache folder (`$TREEWRIGHT_CACHE`, else `$XDG_CACHE_HOME/treewright`, else `~/.cache/treewright`), private to the user,
made once and then brought up to date with what was added. Where that folder cannot be written it lives in memory.

Texts are split into runs of three characters, so that parts of words are found in every script. Each text is held
once, however many nodes show it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import RLock
from typing import Any

from sqlalchemy import Connection, func, select

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action
from treewright.search.store import TreeStore
from treewright.search.store.models import blobs, expansions, nodes, trees
from treewright.search.store.reading import Blobs
from treewright.search.store.values import unescape

__all__ = ["KINDS", "Finder", "Hit", "terms_of"]

KINDS = ("goal", "said", "action", "observation", "error")
GOAL, SAID, ACTION, SEEN, ERROR = range(len(KINDS))
FORMAT = "1"
SHORT = 3  # characters below which a term is looked for in every text
KEPT = 50  # trees that are taken in at once
AROUND = 60  # characters on either side of a hit
LONGEST = 2_000_000  # characters of a text that are indexed
SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE trees (key INTEGER PRIMARY KEY, id TEXT, created REAL, seqs INTEGER, done INTEGER);
CREATE TABLE known (key TEXT PRIMARY KEY, text INTEGER) WITHOUT ROWID;
CREATE TABLE places (tree INTEGER, node INTEGER, kind INTEGER, text INTEGER,
                     PRIMARY KEY (tree, node, kind, text)) WITHOUT ROWID;
CREATE INDEX places_by_text ON places (text, tree, node);
CREATE VIRTUAL TABLE texts USING fts5(body, tokenize='trigram');
"""


@dataclass(frozen=True, slots=True)
class Hit:
    """Where a tree first shows what was looked for.

    node     the node; 0 for a goal
    kind     one of KINDS
    before, found, after   the words there, with what stands around them
    nodes    how many nodes of the tree show it
    """

    node: int
    kind: str
    before: str
    found: str
    after: str
    nodes: int


def terms_of(text: str) -> list[str]:
    """The words of a search; what stands in "double quotes" is one term."""
    found = re.findall(r'"([^"]+)"|(\S+)', text)
    return [term for quoted, bare in found if (term := (quoted.strip() or bare.replace('"', "")))]


def _cache_folder() -> Path:
    if named := os.environ.get("TREEWRIGHT_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "treewright"


class Finder:
    """The index of one store; safe in any thread. Close it."""

    def __init__(self, store: TreeStore) -> None:
        self.store = store
        self._lock = RLock()
        self._done_with: tuple[Any, ...] | None = None
        self._own = _open(store.name)
        self._own.create_function("holds", 2, _holds, deterministic=True)

    def close(self) -> None:
        with self._lock:
            self._own.close()

    # -- making it ------------------------------------------------------------------------------------------------

    def update(self, seconds: float | None = None) -> float:
        """Takes in what is new, newest trees first, for about so long; gives the share of trees that it holds now."""
        until = None if seconds is None else time.monotonic() + seconds
        with self._lock, _spoken(), self.store.snapshot() as connection:
            state = _state(connection)
            if state == self._done_with:
                return 1.0
            self._own.execute("BEGIN IMMEDIATE")
            try:
                share = self._take_in(connection, until)
                self._own.commit()
            except BaseException:
                self._own.rollback()
                raise
            self._done_with = state if share == 1.0 else None
        return share

    def _take_in(self, connection: Connection, until: float | None) -> float:
        t = trees.c
        there = connection.execute(select(t.key, t.id, t.created, t.status).order_by(t.key.desc())).all()
        mine = {row[0]: row[1:] for row in self._own.execute("SELECT key, id, created, seqs, done FROM trees")}
        for key in mine.keys() - {row.key for row in there}:
            self._drop(key)
        left = taken = 0
        for key, name, created, status in there:
            before = mine.get(key)
            if before is not None and before[:2] != (name, created):
                self._drop(key)
                before = None
            if before is not None and before[3]:
                continue
            if until is not None and time.monotonic() > until:
                left += before is None
                continue
            seqs = self._tree(connection, key, 0 if before is None else before[2], before is None)
            row = (key, name, created, seqs, status == "done")
            self._own.execute("INSERT OR REPLACE INTO trees VALUES (?, ?, ?, ?, ?)", row)
            taken += 1
            if taken % KEPT == 0:  # what was read stays, also if the rest is broken off
                self._own.commit()
                self._own.execute("BEGIN IMMEDIATE")
        return 1.0 if not there else 1.0 - left / len(there)

    def _drop(self, key: int) -> None:
        self._own.execute("DELETE FROM trees WHERE key = ?", (key,))
        self._own.execute("DELETE FROM places WHERE tree = ?", (key,))

    def _tree(self, connection: Connection, key: int, since: int, new: bool) -> int:
        """Takes in a tree's expansions from `since` on; gives how many it has."""
        n, x = nodes.c, expansions.c
        shown = (n.observation, n.outcome_error, n.outcome_fault)
        drawn = select(n.id, n.text, n.action, n.error, *shown).where(n.tree == key, n.born >= (-1 if new else since))
        later = select(x.node, x.observation, x.outcome_error, x.outcome_fault, x.fault)
        rows = connection.execute(drawn).all()
        ends = connection.execute(later.where(x.tree == key, x.seq >= since)).all()
        seen = {row.observation for row in (*rows, *ends) if row.observation is not None}
        known = self._contents(connection, seen)
        places = [(key, row.id, SEEN, known[row.observation]) for row in rows if row.observation is not None]
        places += [(key, row.node, SEEN, known[row.observation]) for row in ends if row.observation is not None]
        for node, text, action, *rest in rows:
            said = unescape(text)
            places += self._say(key, node, SAID, said)
            if action is not None and (done := _action(action)) != said:
                places += self._say(key, node, ACTION, done)
            for why in (rest[0], *rest[2:]):
                places += self._say(key, node, ERROR, unescape(why or ""))
        for node, _, *whys in ends:
            for why in whys:
                places += self._say(key, node, ERROR, unescape(why or ""))
        if new:
            task = connection.execute(select(trees.c.task).where(trees.c.key == key)).scalar_one()
            places += self._say(key, 0, GOAL, goal_of(Blobs(connection)(task)))
        self._own.executemany("INSERT OR IGNORE INTO places VALUES (?, ?, ?, ?)", places)
        return since + len(ends)

    def _say(self, key: int, node: int, kind: int, text: str) -> Iterator[tuple[int, int, int, int]]:
        if text.strip():
            name = "t" + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
            yield key, node, kind, self._text(name, lambda: text)

    def _contents(self, connection: Connection, digests: set[str]) -> dict[str, int]:
        """The texts behind the digests of observations; only new ones are read."""
        found: dict[str, int] = {}
        for name in digests:
            row = self._own.execute("SELECT text FROM known WHERE key = ?", (f"b{name}",)).fetchone()
            if row is not None:
                found[name] = row[0]
        fetch, wanted = Blobs(connection), sorted(digests - found.keys())
        for at in range(0, len(wanted), 500):
            fetch.read(select(blobs).where(blobs.c.digest.in_(wanted[at : at + 500])))
        for name in wanted:
            found[name] = self._text(f"b{name}", lambda name=name: fetch(name).decode("utf-8", "surrogatepass"))
        return found

    def _text(self, name: str, read: Any) -> int:
        row = self._own.execute("SELECT text FROM known WHERE key = ?", (name,)).fetchone()
        if row is not None:
            return int(row[0])
        at = self._own.execute("INSERT INTO texts (body) VALUES (?)", (_normal(read()[:LONGEST]),)).lastrowid
        self._own.execute("INSERT INTO known VALUES (?, ?)", (name, at))
        return int(at or 0)

    # -- asking it ------------------------------------------------------------------------------------------------

    def trees_with(self, term: str) -> set[int]:
        """Keys of the trees that show a term anywhere."""
        where, word = _where([term])
        query = f"SELECT DISTINCT tree FROM places WHERE text IN (SELECT rowid FROM texts WHERE {where})"
        with self._lock, _spoken():
            return {key for (key,) in self._own.execute(query, word)}

    def hits(self, keys: Sequence[int], terms: Sequence[str]) -> dict[int, Hit]:
        """For each of some trees the first node that shows all terms at once, else one of them."""
        found: dict[int, Hit] = {}
        with self._lock, _spoken():
            for some in ([list(terms)] if len(terms) > 1 else []) + [[term] for term in terms]:
                left = [key for key in keys if key not in found]
                found |= self._first(left, some) if left else {}
        return found

    def _first(self, keys: Sequence[int], terms: list[str]) -> dict[int, Hit]:
        where, words = _where(terms)
        query = (
            "SELECT tree, min(node), kind, text, count(DISTINCT node) FROM places "
            f"WHERE tree IN ({','.join(str(int(key)) for key in keys)}) "
            f"AND text IN (SELECT rowid FROM texts WHERE {where}) GROUP BY tree"
        )
        out = {}
        for tree, node, kind, text, count in self._own.execute(query, words).fetchall():
            (body,) = self._own.execute("SELECT body FROM texts WHERE rowid = ?", (text,)).fetchone()
            out[tree] = Hit(node, KINDS[kind], *_around(body, terms[0]), count)
        return out


def goal_of(task: bytes) -> str:
    """The goal of a task as the store keeps it."""
    return str(json.loads(task.decode("utf-8", "surrogatepass"))["goal"])


def _where(terms: Sequence[str]) -> tuple[str, list[str]]:
    """A condition on `texts` that all terms are in one of them, with its values."""
    normal = [_normal(term) for term in terms]
    long = ['"' + term.replace('"', '""') + '"' for term in normal if len(term) >= SHORT]
    short = [term.casefold() for term in normal if len(term) < SHORT]
    parts = (["texts MATCH ?"] if long else []) + ["holds(body, ?)"] * len(short)
    return " AND ".join(parts), ([" AND ".join(long)] if long else []) + short


def _holds(body: str, term: str) -> bool:
    return term in body.casefold()


def _normal(text: str) -> str:
    text = text.replace("\0", " ").encode("utf-8", "replace").decode()
    return unicodedata.normalize("NFC", text)


@lru_cache(256)
def _pattern(term: str) -> re.Pattern[str]:
    return re.compile(re.escape(_normal(term)), re.IGNORECASE)


def _around(body: str, term: str) -> tuple[str, str, str]:
    match = _pattern(term).search(body)
    start, end = match.span() if match else (0, 0)
    before, after = body[max(0, start - AROUND) : start], body[end : end + AROUND]
    before = ("…" if start > AROUND else "") + before
    return before, body[start:end], after + ("…" if end + AROUND < len(body) else "")


@lru_cache(20_000)
def _action(key: str) -> str:
    return str(Action.from_key(unescape(key)))


def _state(connection: Connection) -> tuple[Any, ...]:
    """Cheap to ask and different after every change of what is to be found."""
    t = trees.c
    counts = select(func.count(), func.max(t.key), func.sum(t.created), func.count().filter(t.status == "done"))
    growing = select(func.count()).where(expansions.c.tree.in_(select(t.key).where(t.status != "done")))
    return (*connection.execute(counts.select_from(trees)).one(), connection.execute(growing).scalar_one())


@contextmanager
def _spoken() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise TreewrightError(
            f"the index of texts in {_cache_folder()} failed ({error}); remove it, it is made again, or set "
            "TREEWRIGHT_CACHE to another folder"
        ) from error


def _open(name: str) -> sqlite3.Connection:
    """The index of the store of this name, made if there is none; in memory where no file can be written."""
    folder = _cache_folder() / "find"
    at = str(Path(name).resolve()) if "://" not in name else name
    file = folder / f"{hashlib.blake2b(at.encode('utf-8', 'surrogateescape'), digest_size=12).hexdigest()}.sqlite"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _forget_gone(folder)
        return _made(str(file), at)
    except (OSError, sqlite3.Error):
        with _spoken():
            return _made(":memory:", at)


def _made(file: str, at: str) -> sqlite3.Connection:
    if file != ":memory:":
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    own = sqlite3.connect(file, timeout=60, isolation_level=None, check_same_thread=False)
    try:
        own.execute("PRAGMA journal_mode = WAL")
        own.execute("PRAGMA synchronous = OFF")  # what a crash of the machine spoils is made again
        own.execute("BEGIN IMMEDIATE")
        found = dict(_meta(own))
        if found.get("format") != FORMAT:
            names = [row[0] for row in own.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for table in sorted(names, key=lambda name: name != "texts"):
                if table in ("texts", "meta", "trees", "known", "places"):
                    own.execute(f"DROP TABLE {table}")
            for statement in SCHEMA.split(";"):
                own.execute(statement)
            own.executemany("INSERT INTO meta VALUES (?, ?)", [("format", FORMAT), ("store", at)])
        own.execute("COMMIT")
    except BaseException:
        own.close()
        raise
    return own


def _meta(own: sqlite3.Connection) -> Mapping[str, str]:
    if own.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone() is None:
        return {}
    return dict(own.execute("SELECT name, value FROM meta"))


def _forget_gone(folder: Path) -> None:
    """Removes indexes of files that are no longer there."""
    for file in folder.glob("*.sqlite"):
        try:
            own = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=0)
            try:
                at = _meta(own).get("store", "")
            finally:
                own.close()
        except sqlite3.Error:
            continue
        if at and "://" not in at and not Path(at).exists():
            for gone in (file, *(file.with_name(file.name + end) for end in ("-wal", "-shm"))):
                gone.unlink(missing_ok=True)
