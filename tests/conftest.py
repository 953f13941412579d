"""Which files of tests come first: those that take longest, so that no process is left with one of them at the end.

`tests/costs.json` has about how many seconds each file takes; `make test-costs` measures them on an idle machine. They
say nothing but an order: a file that is not named there comes after the others. Garbage is looked for as seldom as in
the command line.
"""

from __future__ import annotations

import collections
import gc
import json
import os
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import forked
import pytest

from treewright.agent.cli.lean import leave_out_sklearn

# Before torch is imported: several threads in each of several processes mostly wait for one another, and wait by
# spinning. On a busy machine an update took ten times the processor time of one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

COSTS = Path(__file__).parent / "costs.json"
MEASURED = os.environ.get("TREEWRIGHT_COSTS", "")  # where to write what was measured


@pytest.fixture(scope="session")
def new_database() -> Iterator[Callable[[], str]]:
    """Makes URLs of empty PostgreSQL databases in a cluster that lives as long as the tests."""
    from databases import cluster, missing

    if (why := missing()) is not None:
        pytest.skip(why)
    with cluster() as new:
        yield new


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    known = json.loads(COSTS.read_text())
    items.sort(key=lambda item: -known.get(_file(item), 0))  # stable: within a file all stays as it is


def pytest_collection_finish() -> None:
    """What the collection has imported stays: no collection of garbage looks through it again."""
    gc.freeze()
    gc.enable()


def _file(item: pytest.Item) -> str:
    return item.nodeid.split("::")[0]


class Clock:
    """How long the tests of each file take, in seconds; the process that the others work for writes it down."""

    def __init__(self, config: pytest.Config) -> None:
        self.config: Any = config
        self.spent: dict[str, float] = collections.defaultdict(float)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        before = time.monotonic()
        try:
            return (yield)
        finally:
            self.spent[_file(item)] += time.monotonic() - before

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        for file, spent in getattr(node, "workeroutput", {}).get("spent", {}).items():
            self.spent[file] += spent

    def pytest_sessionfinish(self) -> None:
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput["spent"] = dict(self.spent)
            return
        most = {file: round(s, 1) for file, s in sorted(self.spent.items(), key=lambda one: -one[1]) if s >= 1}
        Path(MEASURED).write_text(json.dumps(most, indent=0) + "\n")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """The processes of tests fork their programs from one process, which imports what these need once."""
    node.workerinput["forked"] = forked.address()


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # until everything is imported: hardly any of it is garbage
    gc.set_threshold(20_000, 20, 20)  # as the command line sets it
    leave_out_sklearn()  # as the command line does
    if shared := getattr(config, "workerinput", {}).get("forked"):
        forked.use(shared)
    if MEASURED:
        config.pluginmanager.register(Clock(config))
