"""The tables of a store, as SQLAlchemy Core: the same on SQLite and on PostgreSQL.

The columns of nodes and outcomes follow from the fields that a node has, see `treewright.search.schema`.

Rows are only ever inserted, with two exceptions: the end columns of `trees` (status and everything below it) are
updated when a search pauses, resumes or ends, and `tasks` is a queue. What executing a popped draft gave stands in the
row of the expansion that executed it, what executing a draft at birth gave stands in the row of the node.

NaN is stored as NULL. Token ids are little-endian int32; log-probs are a type code, 'f' or 'd', followed by
little-endian float32 or float64: float32 only where every value survives it unchanged. Long texts are in `blobs`,
once each, named by their content.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

from treewright.search.fields import FIRST_SCHEMA
from treewright.search.schema import DRAWN, EXECUTED, SPENT, FieldKind, NodeField, by_schema

__all__ = [
    "APPLICATION_ID",
    "EXPANSION_COLUMNS",
    "HEADER_COLUMNS",
    "INHERITED",
    "NODE_COLUMNS",
    "OUTCOME_COLUMNS",
    "SCHEMA_VERSION",
    "SPENT_COLUMNS",
    "blobs",
    "expansions",
    "journal",
    "meta",
    "metadata",
    "nodes",
    "runs",
    "tasks",
    "trees",
]

APPLICATION_ID: Final = 0x74777374  # "twst", in the header of every SQLite file that is a store
SCHEMA_VERSION: Final = 5

ARRAY_COLUMNS: Final = ("born", "mult", "share", "reward", "status", "n_tokens")

metadata = MetaData()


def _blob(name: str, nullable: bool = True) -> Column[Any]:
    return Column(name, String(32), ForeignKey("blobs.digest"), nullable=nullable)


def _observation() -> tuple[Column[Any], ...]:
    return (_blob("observation"), Column("fingerprint", Text), Column("provenance", Text), Column("parts", Text))


TYPES: Final[dict[FieldKind, Any]] = {
    FieldKind.INT: Integer,
    FieldKind.WIDE: BigInteger,
    FieldKind.REAL: Double,
    FieldKind.BOOL: Boolean,
    FieldKind.TEXT: Text,
    FieldKind.NAME: String(16),
    FieldKind.IDS: LargeBinary,
    FieldKind.REALS: LargeBinary,
    FieldKind.ACTION: Text,
}
INHERITED: Final = ("policy_version",)  # NULL where it is the tree's


def _columns(given: Sequence[NodeField], nullable: bool) -> list[Column[Any]]:
    """The columns of some fields. NaN and None are NULL; `nullable` columns may have no value at all."""
    out: list[Column[Any]] = []
    for f in given:
        if f.kind is FieldKind.SEEN:
            out += _observation()
        else:
            empty = nullable or f.optional or f.kind is FieldKind.REAL or f.column in INHERITED
            out.append(Column(f.column, TYPES[f.kind], nullable=empty, server_default=_server_default(f)))
    return out


def _server_default(f: NodeField) -> str | None:
    """What nodes of an older schema have in a column that came later."""
    plain = f.since > FIRST_SCHEMA and f.default is not None and f.default == f.default
    return str(int(f.default) if isinstance(f.default, bool) else f.default) if plain else None


def _node_columns() -> list[Column[Any]]:
    """Draft and completion, then the outcome at birth, whose `status` is NULL if the node was not executed then.

    What a later schema brought stands behind everything older: checksums of older rows leave it out.
    """
    drawn = {f.column for f in DRAWN}
    given = by_schema([*DRAWN, *EXECUTED])
    return [c for f in given for c in _columns([f], f.column not in drawn)]


def _expansion_columns() -> list[Column[Any]]:
    """What the pop cost, then the outcome of the popped draft, all NULL if it was not executed."""
    spent = {id(f) for f in SPENT}
    return [
        c
        for f in by_schema([*SPENT, *EXECUTED])
        for c in ([_spent(f)] if id(f) in spent else _columns([f], nullable=True))
    ]


def _spent(f: NodeField) -> Column[Any]:
    kind = Double if f.kind is FieldKind.REAL else BigInteger
    return Column(f"spent_{f.column}", kind, server_default=_server_default(f))


meta = Table("meta", metadata, Column("name", String(64), primary_key=True), Column("value", Text, nullable=False))
"""Who made the file: 'treewright' holds the version that wrote the schema. Kept readable for every later version."""

runs = Table(
    "runs",
    metadata,
    Column("run", String(255), primary_key=True),
    Column("created", Double, nullable=False),
    Column("ended", Double),  # when an episode of its own ended by itself; NULL for everything else
)

blobs = Table(
    "blobs",
    metadata,
    Column("digest", String(32), primary_key=True),
    Column("codec", String(8), nullable=False),  # raw | zlib
    Column("data", LargeBinary, nullable=False),
)
"""Content by its 128-bit digest, taken before compression."""

trees = Table(
    "trees",
    metadata,
    Column("key", Integer, primary_key=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("run", String(255), ForeignKey("runs.run"), nullable=False),
    Column("suite", String(255), nullable=False),
    Column("task_id", Text, nullable=False),
    Column("split", String(32), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("policy_version", String(255), nullable=False),
    _blob("task", nullable=False),
    _blob("settings", nullable=False),
    Column("continues_tree", String(32)),
    Column("continues_node", Integer),
    Column("created", Double, nullable=False),
    Column("checksum", String(32), nullable=False),
    Column("status", String(16), nullable=False),  # running | interrupted | done
    Column("ended", Double),
    Column("chosen", Integer),
    Column("stopped_by", Text),
    Column("reasons", Text),
    Column("final", Text),
    Column("outcome", Double),
    Column("success", Boolean),
    Column("count", Integer),
    *map(_spent, by_schema(SPENT)),
    Index("trees_by_run", "run", "suite"),
    Index("trees_by_status", "status"),
)

expansions = Table(
    "expansions",
    metadata,
    Column("tree", Integer, ForeignKey("trees.key"), primary_key=True, autoincrement=False),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("node", Integer, nullable=False),
    Column("closing", Boolean, nullable=False),
    Column("drawn", Integer, nullable=False),
    Column("first", Integer, nullable=False),
    Column("drafts", Integer, nullable=False),
    Column("fault", Text),
    *_expansion_columns(),
    Column("checksum", String(32), nullable=False),
)
"""One row per pop. `first` is the id of its first draft, `checksum` covers this row and the rows of its drafts."""

nodes = Table(
    "nodes",
    metadata,
    Column("tree", Integer, ForeignKey("trees.key"), primary_key=True, autoincrement=False),
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("parent", Integer),  # NULL at the root
    Column("born", Integer, nullable=False),  # seq of the expansion; -1 at the root
    *_node_columns(),
    Column("n_tokens", Integer, nullable=False),  # length of `ids`, derived
    ForeignKeyConstraint(("tree", "parent"), ("nodes.tree", "nodes.id")),
    Index("nodes_by_parent", "tree", "parent", "id", *ARRAY_COLUMNS),
)
"""The index holds what the estimators read: their arrays come from it alone, without a look at texts and tokens."""

journal = Table(
    "journal",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("entry", Integer, ForeignKey("journal.id")),  # id of the intent; NULL on the intent itself
    Column("tree", Integer, ForeignKey("trees.key"), nullable=False),
    Column("node", Integer, nullable=False),
    Column("call", Integer, nullable=False),
    Column("action", Text, nullable=False),
    Column("state", String(16), nullable=False),
    *_observation(),
    Column("at", Double, nullable=False),
    Column("reward", Double),  # of a row that is done: what the world gave, and whether it ended the episode
    Column("over", Boolean),
    Index("journal_by_tree", "tree"),
    Index("journal_by_entry", "entry"),
)
"""What happened to irreversible actions, one row per step: intent, dispatched, then done, failed or in_doubt."""

tasks = Table(
    "tasks",
    metadata,
    Column("tree", String(32), primary_key=True),  # id of the tree it will become
    Column("run", String(255), nullable=False),
    Column("position", Integer, nullable=False),
    Column("state", String(16), nullable=False),  # waiting | leased | done | failed
    Column("owner", Text),
    Column("token", BigInteger, nullable=False),  # grows with every lease: the fence
    Column("until", Double),  # end of the lease, seconds since the epoch by the database's clock
    Column("tries", Integer, nullable=False),
    Column("why", Text),  # why it failed
    Index("tasks_by_run", "run", "state", "position"),
)
"""Work for many processes: who grows which tree, and until when nobody else may."""


def _names(table: Table, *without: str) -> tuple[str, ...]:
    return tuple(column.name for column in table.columns if column.name not in without)


NODE_COLUMNS: Final = _names(nodes, "tree", "n_tokens")
EXPANSION_COLUMNS: Final = _names(expansions, "tree", "checksum")
OUTCOME_COLUMNS: Final = tuple(c.name for c in _columns(by_schema(EXECUTED), nullable=True))
SPENT_COLUMNS: Final = tuple(f.column for f in by_schema(SPENT))
HEADER_COLUMNS: Final = _names(trees)[1 : _names(trees).index("checksum")]
