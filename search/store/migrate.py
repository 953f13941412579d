"""Schema versions: new stores are made at the newest, old ones are brought to it step by step by Alembic.

Alembic is loaded when a store is upgraded; making and opening one do without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Column, Connection, MetaData, PrimaryKeyConstraint, String, Table, inspect

from treewright import __version__
from treewright.search.store.models import SCHEMA_VERSION, meta, metadata

__all__ = ["make", "revision_of", "schema_of", "upgrade"]

STEPS = Path(__file__).parent / "migrations"
_alembic = MetaData()
_stamped = Table(
    "alembic_version",
    _alembic,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


def revision_of(version: int) -> str:
    """The name that Alembic knows a schema version by."""
    return f"{version:04d}"


def schema_of(connection: Connection) -> int | None:
    """The schema version that a step or `make` left here; None if there is no store or one of schema 1 in a file."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one_or_none()
    return None if found is None else int(found)


def make(connection: Connection) -> None:
    """Every table of a new store, at the newest schema."""
    metadata.create_all(connection)
    connection.execute(meta.insert(), [{"name": "treewright", "value": __version__}])
    _stamp(connection, SCHEMA_VERSION)


def upgrade(connection: Connection, version: int) -> None:
    """Brings a store from schema `version` to the newest, in the transaction of the connection."""
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    if schema_of(connection) is None:
        _stamp(connection, version)
    scripts = ScriptDirectory(str(STEPS))

    def steps(revision: Any, _context: Any) -> Any:
        return scripts._upgrade_revs(revision_of(SCHEMA_VERSION), revision)

    with EnvironmentContext(Config(), scripts, fn=steps) as environment:
        environment.configure(connection=connection, target_metadata=metadata)
        environment.run_migrations()
    connection.execute(meta.update().where(meta.c.name == "treewright").values(value=__version__))


def _stamp(connection: Connection, version: int) -> None:
    """Leaves the version where Alembic looks for it, in the table that Alembic would make."""
    _alembic.create_all(connection)
    connection.execute(_stamped.delete())
    connection.execute(_stamped.insert(), [{"version_num": revision_of(version)}])
