"""A store written by version 0.1.0 (schema 2) opens, resumes and upgrades; nothing in it changes."""

from __future__ import annotations

import gzip
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from walker import Likelihood, Walker

from treewright.envs.maze import SUITE
from treewright.search.commit import recover
from treewright.search.engine import Settings, search
from treewright.search.rules import best_first
from treewright.search.store import JournalState, StoreError, TreeStore
from treewright.search.store.copying import merge
from treewright.search.types import Budget, NodeStatus

OLD = Path(__file__).parents[1] / "data" / "schema2"
MADE = json.loads((OLD / "made.json").read_text())


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "trees.store"
    path.write_bytes(gzip.decompress((OLD / "trees.store.gz").read_bytes()))
    return path


def test_an_old_store_is_upgraded_and_every_digest_stays(old: Path) -> None:
    with TreeStore.open(old) as store:
        for name, digest in (MADE["done"] | MADE["run"]).items():
            assert store.load(name).digest() == digest
        assert store.check() == []
        said = [d.completion for row in store.trees() for e in store.expansions(row.tree_id) for d in e.drafts]
    assert {(done.share, done.hidden, done.money, done.routes) for done in said} == {(None, 0, 0.0, "")}
    assert sqlite3.connect(old).execute("PRAGMA user_version").fetchone() == (5,)


def test_arrays_of_an_old_store_are_what_they_were(old: Path) -> None:
    with TreeStore.open(old) as store:
        found = store.arrays([*MADE["done"], *MADE["run"]])
    for name, column in MADE["arrays"].items():
        np.testing.assert_array_equal(found[name], np.array([np.nan if v is None else v for v in column]), err_msg=name)


async def test_a_search_interrupted_in_an_old_store_ends_in_the_tree_of_an_uninterrupted_one(old: Path) -> None:
    ((name, digest),) = MADE["cut"].items()
    with TreeStore.open(old) as store:
        assert store.status(name) == "interrupted"
        walker = Walker()
        tree = await search(
            SUITE.tasks("train", 2)[1], SUITE, walker, rule=best_first(), evaluator=Likelihood(),
            budget=Budget(expansions=9), store=store,
            settings=Settings(run="cut", close=True, in_flight=2, max_tokens=48),
        )  # fmt: skip
        assert (tree.tree_id, tree.digest()) == (name, digest)
        assert store.load(name).digest() == digest and store.check() == []


async def test_commits_of_an_old_store_stay_committed(old: Path) -> None:
    ((name, (loaded, recovered)),) = MADE["recovered"].items()
    with TreeStore.open(old) as store:
        tree = store.load(name)
        assert tree.digest() == loaded
        assert await recover(store.journal, tree) == ()
        assert [entry.state for entry in store.journal.entries(name)] == [JournalState.DONE]
    assert tree.status[2] is NodeStatus.COMMITTED and tree.digest() == recovered


def test_a_tree_of_an_old_store_is_the_same_tree_in_a_new_one(old: Path, tmp_path: Path) -> None:
    TreeStore.open(old).close()
    assert {done.how for done in merge(tmp_path / "new.db", [old])} == {"copied"}
    assert {done.how for done in merge(old, [tmp_path / "new.db"])} == {"present"}
    with TreeStore.open(tmp_path / "new.db") as store:
        assert store.check() == []


def test_damage_in_an_upgraded_row_is_named(old: Path) -> None:
    TreeStore.open(old).close()
    with sqlite3.connect(old) as connection:
        connection.execute("UPDATE nodes SET money = 0.5 WHERE id = 3")
    with TreeStore.open(old) as store, pytest.raises(StoreError, match="is damaged"):
        store.load(next(iter(MADE["done"])))
