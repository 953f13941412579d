"""Where stores under test are kept: every test that asks for `store_url` runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from databases import cluster, missing


@pytest.fixture(scope="session")
def new_database() -> Iterator[Callable[[], str]]:
    """Makes URLs of empty PostgreSQL databases in a cluster that lives as long as the tests."""
    if (why := missing()) is not None:
        pytest.skip(why)
    with cluster() as new:
        yield new


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "runs" / "trees.db")
    return str(request.getfixturevalue("new_database")())


@pytest.fixture
def postgres_url(new_database: Callable[[], str]) -> str:
    return new_database()
