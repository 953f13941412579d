"""Stores of older schemas are upgraded, newer ones refused, and every way to a schema ends at the same tables."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import KW_ONLY, replace
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from databases import execute
from sqlalchemy import create_engine

from treewright.search.store import JournalState, StoreError, TreeStore
from treewright.search.store.migrate import STEPS, revision_of
from treewright.search.store.models import SCHEMA_VERSION, metadata

FIRST = Path(__file__).parent / "data" / "schema1.store"  # written by the code that made schema 1
DIGESTS = {
    "4d86b551a80235164d573e6046437d6c": "2ef724e0eddaa2431281b028b7902824",
    "5242c2b3dd85b5b7c61ce5557c1fe304": "e497f9079ab6b486679d7124d9623cab",
}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copy(FIRST, tmp_path / "old.db"))


def differences(url: Path | str) -> Any:
    text = str(url)
    engine = create_engine(text.replace("postgresql:", "postgresql+psycopg:") if "://" in text else f"sqlite:///{text}")
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), metadata)
    engine.dispose()
    return found


async def test_a_store_of_the_first_schema_is_upgraded_with_every_tree_in_it(old: Path) -> None:
    with TreeStore.open(old) as store:
        assert {row.tree_id: store.load(row.tree_id).digest() for row in store.trees()} == DIGESTS
        assert store.check() == []
        assert [entry.state for entry in store.journal.pending()] == [JournalState.DISPATCHED]
        done, growing = store.trees()
        assert (done.status, done.success, growing.status) == ("done", True, "interrupted")
        assert store.arrays(list(DIGESTS))["n_tokens"].tolist() == [0, 3, 5, 0, 3, 3]
        await store.append(growing.tree_id, replace(store.expansions(growing.tree_id)[0], seq=1), growing.nodes)
    assert sqlite3.connect(old).execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    with TreeStore.open(old, read_only=True) as store:
        assert len(store.load(growing.tree_id)) == 5


def test_a_new_store_bears_the_stamp_that_alembic_itself_would_leave(tmp_path: Path) -> None:
    with TreeStore.open(tmp_path / "ours.db"):
        pass
    engine = create_engine(f"sqlite:///{tmp_path / 'its.db'}")
    with engine.begin() as connection:
        MigrationContext.configure(connection).stamp(ScriptDirectory(str(STEPS)), revision_of(SCHEMA_VERSION))
    engine.dispose()

    def stamp(name: str) -> tuple[list[str], list[Any]]:
        with contextlib.closing(sqlite3.connect(tmp_path / name)) as file:
            made = file.execute("SELECT sql FROM sqlite_master WHERE tbl_name = 'alembic_version'").fetchall()
            return sorted(map(str, made)), file.execute("SELECT * FROM alembic_version").fetchall()

    assert stamp("ours.db") == stamp("its.db")


def test_a_store_is_made_and_opened_without_alembic(tmp_path: Path) -> None:
    code = "import sys; from treewright.search.store import TreeStore; TreeStore.open(sys.argv[1]).close(); print('alembic' in sys.modules)"  # noqa: E501
    for _ in range(2):
        words = [sys.executable, "-P", "-c", code, str(tmp_path / "t.db")]
        assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "False\n"


def test_an_old_store_opened_to_read_says_how_to_upgrade_it_and_stays_as_it_is(old: Path) -> None:
    before = old.read_bytes()
    with pytest.raises(StoreError, match="has schema 1, this version reads schema 5: open it once for writing"):
        TreeStore.open(old, read_only=True)
    assert old.read_bytes() == before


def test_an_upgrade_that_fails_leaves_the_old_store(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: KW_ONLY) -> None:
        raise sqlite3.OperationalError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("alembic.operations.Operations.create_table", fail)
        with pytest.raises(sqlite3.OperationalError):
            TreeStore.open(old)
    assert execute(old, "PRAGMA user_version") == [(1,)]
    assert "n_tokens" not in {row[1] for row in execute(old, "PRAGMA table_info(nodes)")}
    with TreeStore.open(old) as store:
        assert store.check() == []


def test_an_upgraded_and_a_new_store_have_the_same_tables(old: Path, store_url: str) -> None:
    for url in (old, store_url):
        TreeStore.open(url).close()
        assert differences(url) == []


def test_a_database_of_a_newer_schema_is_refused(postgres_url: str) -> None:
    TreeStore.open(postgres_url).close()
    execute(
        postgres_url,
        "UPDATE alembic_version SET version_num = '0007'",
        "UPDATE meta SET value = '9.1.0' WHERE name = 'treewright'",
    )
    for read_only in (True, False):
        with pytest.raises(StoreError, match=r"schema 7, written by treewright 9\.1\.0.*pip install 'treewright>=9"):
            TreeStore.open(postgres_url, read_only=read_only)


def test_databases_that_are_not_there_are_named_without_their_password(postgres_url: str) -> None:
    with pytest.raises(StoreError, match="there is no store at postgresql://tester@/postgres"):
        TreeStore.open(postgres_url, read_only=True)
    with pytest.raises(StoreError, match=r"cannot open postgresql://me:.{3}@127.0.0.1:1/x as a store"):
        TreeStore.open("postgresql://me:secret@127.0.0.1:1/x")
