"""What goes into PostgreSQL as bytes made from columns is what psycopg writes value by value, also after a kill."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import psycopg
import pytest
from databases import execute
from sqlalchemy import BigInteger, Boolean, Column, Double, Integer, LargeBinary, MetaData, String, Table, Text
from stored_columns import columns_of, header_of

from treewright.search.store import StoreError, TreeStore, bare, bulk
from treewright.search.store.binary import END, START, Rows
from treewright.search.store.bulk import load_trees

KINDS: dict[str, tuple[Any, list[Any]]] = {
    "int4": (Integer, [0, -1, 2**31 - 1]),
    "int8": (BigInteger, [0, -(2**63), 2**62 + 1]),
    "float8": (Double, [0.1, -0.0, float("inf")]),
    "bool": (Boolean, [True, False, True]),
    "bytea": (LargeBinary, [b"", b"\0\xff", b"x" * 300]),
    "text": (Text, ["", "né 漢", "x" * 300]),
    "varchar": (String(9), ["a", "", "é"]),
}
NAMES = [f"{kind}_{i}" for kind in KINDS for i in range(2)]
TYPES = [kind for kind in KINDS for _ in range(2)]
TABLE = Table("kinds", MetaData(), *(Column(name, KINDS[kind][0]) for name, kind in zip(NAMES, TYPES, strict=True)))


def some_rows(seed: int, count: int = 40) -> list[tuple[Any, ...]]:
    """Values of every kind, None among those of the second column of each."""
    rng = np.random.default_rng(seed)
    return [
        tuple(
            None if second and rng.random() < 0.3 else given[rng.integers(3)]
            for _, given in KINDS.values()
            for second in (False, True)
        )
        for _ in range(count)
    ]


def written(url: str, name: str, rows: Sequence[tuple[Any, ...]], chosen: dict[str, Any] | None) -> list[Any]:
    """What is in a new table after the rows went in: by psycopg, or as bytes with those columns as constants."""
    fields = ", ".join(f"{column} {kind}" for column, kind in zip(NAMES, TYPES, strict=True))
    with psycopg.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {name} ({fields})".encode())
        made = Rows(TABLE, chosen or {})
        names = NAMES if chosen is None else made.names
        with cursor.copy(f"COPY {name} ({', '.join(names)}) FROM STDIN (FORMAT BINARY)".encode()) as copy:
            if chosen is None:
                copy.set_types(TYPES)
                for row in rows:
                    copy.write_row(row)
            else:
                free = [i for i, column in enumerate(NAMES) if column not in chosen]
                copy.write(START + made.of([[row[i] for row in rows] for i in free]) + END)
        return cursor.execute(f"SELECT * FROM {name}".encode()).fetchall()


def test_rows_made_from_columns_are_those_of_the_driver(postgres_url: str) -> None:
    for seed in range(3):
        rows = some_rows(seed)
        assert repr(written(postgres_url, f"fast_{seed}", rows, {})) == repr(
            written(postgres_url, f"slow_{seed}", rows, None)
        )


def test_constants_are_in_every_row(postgres_url: str) -> None:
    for seed in range(2):
        rows = some_rows(seed)
        chosen = {name: rows[0][i] for i, name in enumerate(NAMES) if i % 3 == seed}
        same = [tuple(chosen.get(name, value) for name, value in zip(NAMES, row, strict=True)) for row in rows]
        assert repr(written(postgres_url, f"const_{seed}", rows, chosen)) == repr(
            written(postgres_url, f"plain_{seed}", same, None)
        )


def test_a_number_that_does_not_fit_is_no_other_number() -> None:
    table = Table("one", MetaData(), Column("n", Integer))
    with pytest.raises(OverflowError, match="2147483648 does not fit into 4 bytes"):
        Rows(table, {}).of([[1, 2**31]])


def made(url: str) -> set[str]:
    """Keys, references and indexes of the store."""
    here = "(SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
    rows = execute(
        url,
        f"SELECT conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = {here} UNION ALL "
        "SELECT regexp_replace(indexdef, ' ON .* USING', '') FROM pg_indexes WHERE schemaname = current_schema()",
    )
    return {row[0] for row in rows}


def test_what_was_left_out_while_loading_is_made_again(postgres_url: str) -> None:
    with TreeStore.open(postgres_url):
        before = made(postgres_url)
    load_trees(postgres_url, [(header_of("a"), columns_of())])
    assert made(postgres_url) == before
    with pytest.raises(StoreError, match="already"):
        load_trees(postgres_url, [(header_of("b"), columns_of()), (header_of("a"), columns_of())])
    assert made(postgres_url) == before


def test_a_process_that_is_killed_while_loading_leaves_what_the_next_one_completes(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TreeStore.open(postgres_url):
        before = made(postgres_url)
    monkeypatch.setattr(bulk, "ROWS_PER_TRANSACTION", 1)

    def given() -> Any:
        yield header_of("a"), columns_of()
        os._exit(9)

    pid = os.fork()
    if not pid:
        try:
            load_trees(postgres_url, given())
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert len(before - made(postgres_url)) == 10  # five references, two keys with their indexes, an index
    with TreeStore.open(postgres_url) as store:
        assert made(postgres_url) == before
        assert store.check() == [] and [row.nodes for row in store.trees()] == [5]


def test_a_store_with_many_rows_keeps_its_index_while_loading(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_trees(postgres_url, [(header_of("a"), columns_of())])
    before, seen = made(postgres_url), []
    monkeypatch.setattr(bare, "FEW_ROWS", 4)

    def given() -> Any:
        seen.append(made(postgres_url))
        yield header_of("b"), columns_of()

    load_trees(postgres_url, given())
    assert seen == [before]
