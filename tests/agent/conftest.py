"""What tests of this floor share: a folder for indexes, a browser, pages of the viewer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from view_trees import walks, write_store


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Indexes that the viewer makes go to a folder of the tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TREEWRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Any]:
    from view_pages import drawing_browser

    async with drawing_browser() as launched:
        yield launched


@pytest_asyncio.fixture(loop_scope="module")
async def view(browser: Any, tmp_path: Path) -> AsyncIterator[Any]:
    """A page over a small store, served."""
    from view_pages import looking, serving

    from treewright.search.store import TreeStore

    with TreeStore.open(write_store(tmp_path / "t.sqlite", walks(4)), read_only=True) as store:
        async with serving(store) as address, looking(browser, address) as (page, watched):
            yield page
            assert not watched.errors and not watched.outside(address)


@pytest.fixture
def page_file(tmp_path: Path) -> str:
    """The address of a page in a file over the same store."""
    from treewright.agent.view import write_page
    from treewright.search.store import TreeStore

    with TreeStore.open(write_store(tmp_path / "t.sqlite", walks(4)), read_only=True) as store:
        return write_page(tmp_path / "t.html", store).as_uri()
