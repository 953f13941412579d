"""Where stores under test are kept: every test that asks for `store_url` runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "runs" / "trees.db")
    return str(request.getfixturevalue("new_database")())


@pytest.fixture
def postgres_url(new_database: Callable[[], str]) -> str:
    return new_database()
