"""A pytest plugin of both builds: runs the tests that a file names and no others, and notes what each of them cost.

TREEWRIGHT_PAIR_NAMES  a file with node ids, one a line; all tests where it is not given
TREEWRIGHT_PAIR_LISTED a file to write the node ids of what was collected to
TREEWRIGHT_PAIR_COSTS  a folder; each process writes JSON lines there: test, seconds of processor and of wall clock, end
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

NAMES, LISTED, COSTS = (os.environ.get(f"TREEWRIGHT_PAIR_{name}", "") for name in ("NAMES", "LISTED", "COSTS"))


def spent() -> float:
    """Seconds of processor that this process and its children that ended have taken."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


def pytest_collection_finish(session: pytest.Session) -> None:
    if LISTED:
        Path(LISTED).write_text("\n".join(item.nodeid for item in session.items))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not NAMES:
        return
    wanted = set(Path(NAMES).read_text().splitlines())
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in wanted])
    items[:] = [item for item in items if item.nodeid in wanted]


class Costs:
    """What each test of this process cost, its fixtures included: those that several share count for the first."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / f"{os.getpid()}.jsonl"
        self.ends: dict[str, str] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        before, began = spent(), time.monotonic()
        try:
            return (yield)
        finally:
            row = [item.nodeid, spent() - before, time.monotonic() - began, self.ends.pop(item.nodeid, "")]
            with self.file.open("a") as out:
                out.write(json.dumps(row) + "\n")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, Any, Any]:
        report = yield
        if report.when == "call" or report.outcome != "passed":
            self.ends[report.nodeid] = report.outcome
        return report


def pytest_configure(config: pytest.Config) -> None:
    at_work = hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None)
    if COSTS and at_work:
        config.pluginmanager.register(Costs(Path(COSTS)))
