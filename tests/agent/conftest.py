"""A PostgreSQL server for the tests of this floor that need one."""

from __future__ import annotations

import pytest
from databases import cluster, missing


@pytest.fixture(scope="session")
def new_database():
    """Makes URLs of empty PostgreSQL databases in a cluster that lives as long as the tests."""
    if (why := missing()) is not None:
        pytest.skip(why)
    with cluster() as new:
        yield new


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """Indexes that the viewer makes go to a folder of the tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TREEWRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
