"""Columns that the database joined are those of its rows; pops taken at once leave what pops taken in turn leave."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from databases import execute
from sqlalchemy import select
from stored_columns import columns_of, header_of

from treewright.search.store import StoreError, TreeStore
from treewright.search.store.arrays import DRAFT, LOST, STATUSES, _Grown, _Pops, grow_at_once, grow_in_order
from treewright.search.store.bulk import Columns, load_trees
from treewright.search.store.models import nodes
from treewright.search.store.scanning import scan


def wide_columns(kinds: int) -> Columns:
    """300 nodes whose rewards have that many values."""
    rng, n = np.random.default_rng(kinds), 300
    return columns_of(
        (1,) * n,
        parent=np.arange(n) // 3,
        text=["a"] * n,
        seed=np.arange(n),
        mult=rng.integers(1, 4, n),
        action=[None] * n,
        seen=rng.integers(-1, 2, n),
        reward=np.array([-0.0, *rng.random(kinds - 1)])[rng.integers(0, kinds, n)],
        status=[("open", "terminal", "truncated")[i] for i in rng.integers(0, 3, n)],
    )


@pytest.mark.parametrize("kinds", [1, 3, 40, 300])
def test_what_the_database_joined_is_what_its_rows_hold(store_url: str, kinds: int) -> None:
    load_trees(store_url, [(header_of("other"), columns_of()), (header_of("a"), wide_columns(kinds))])
    others = ("share", "reward", "status", "fingerprint")
    with TreeStore.open(store_url, read_only=True) as store, store.snapshot() as connection:
        (key,) = [row.key for row in connection.execute(select(nodes.c.tree.label("key")).where(nodes.c.id == 300))]
        query = select(*(nodes.c[name] for name in ("id", "mult", *others))).where(nodes.c.tree == key)
        rows = [tuple(row) for row in connection.execute(query.order_by(nodes.c.id))]
        (ids, mult), found = scan(connection, nodes, key, "id", ["mult"], others)
        columns = [ids.tolist(), mult.tolist(), *([values[i] for i in codes.tolist()] for codes, values in found)]
        assert list(zip(*columns, strict=True)) == rows
        reward = store.arrays([header_of("a").tree_id])["reward"]
        wanted = np.array([np.nan if row[4] is None else row[3] for row in rows], np.float32)
        assert np.array_equal(reward[1:], wanted[1:], equal_nan=True)
        assert np.array_equal(np.signbit(reward), np.signbit(wanted))


def test_a_number_or_a_node_that_is_missing_is_named(store_url: str) -> None:
    load_trees(store_url, [(header_of("a"), columns_of())])
    with TreeStore.open(store_url, read_only=True) as store:
        with (
            store.snapshot() as connection,
            pytest.raises(StoreError, match=r"parent FROM nodes .* is no whole number"),
        ):
            scan(connection, nodes, 1, "id", ["parent"], ["share"])
        execute(store_url, "DELETE FROM nodes WHERE id = 3")
        with pytest.raises(StoreError, match="nodes of it are missing; restore"):
            store.arrays([header_of("a").tree_id])
        with pytest.raises(StoreError, match="tree nothing is not in this store"):
            store.arrays([header_of("a").tree_id, "nothing"])


def random_pops(rng: np.random.Generator) -> tuple[Any, Any, _Pops, _Grown]:
    """Parents, multiplicities, pops of distinct nodes in random order, and the nodes as they were born."""
    popped, parent, first = [0], [-1], []
    at: Any = 0
    for _ in range(20):
        first.append(len(parent))
        parent += [at] * int(rng.integers(0, 4))
        left = sorted(set(range(len(parent))) - set(popped))
        if not left:
            break
        at = rng.choice(left)
        popped.append(int(at))
    popped, size = popped[: len(first)], len(parent)
    drafts = np.diff([*first, size])
    known = [code for code in range(len(STATUSES)) if code != LOST]
    born = _Grown(np.zeros(size, np.int32), rng.random(size), rng.random(size), rng.choice(known, size).astype(np.int8))
    codes = np.where(rng.random(len(first)) < 0.5, DRAFT, rng.choice(known, len(first))).astype(np.int8)
    no = np.zeros(len(first), np.bool_)
    pops = _Pops(
        np.array(popped), drafts * rng.integers(1, 3), np.array(first), drafts, no, no, codes, rng.random(len(first))
    )
    return np.array(parent), np.ones(size, np.int64), pops, born


def test_pops_taken_at_once_leave_what_pops_in_turn_leave() -> None:
    for seed in range(200):
        parent, mult, pops, born = random_pops(np.random.default_rng(seed))
        assert pops.once()
        none: Any = None  # no connection: where every node is popped once, nothing more is read
        fast, slow = grow_at_once(pops, born), grow_in_order(none, 1, parent, mult, pops, born)
        for name in ("drawn", "share", "reward", "status"):
            assert np.array_equal(getattr(fast, name), getattr(slow, name)), (seed, name)
