"""A PostgreSQL that goes away and comes back while workers collect: it is waited for, nothing acknowledged is lost."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
from databases import Cluster, cluster, missing
from kill_trials import MARK, digests, left
from speed import patient

from treewright.search.store import TreeStore

LINE = (
    "collect", "--name", "w", "--workers", "1", "--suites", "maze", "--tasks", "3", "--policy",
    "scripted:slow_walker:make", "--set", "search.expansions=4", "--set", "search.max_tokens=64", "--set",
    "worlds.sessions=2", "--set", "loop.lease=1",
)  # fmt: skip


@pytest.fixture
def server() -> Iterator[Cluster]:
    if (why := missing()) is not None:
        pytest.skip(why)
    with cluster() as found:
        yield found


def begun(url: str, folder: Path, slow: str, mark: str = "") -> forked.Running:
    here = os.pathsep.join([str(Path(forked.__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, MARK: mark, "PYTHONPATH": here, "COLUMNS": "200", "NO_COLOR": "1", "SLOW_WALKER": slow}
    return forked.start([forked.COMMAND, *LINE, "--url", url], folder, env)


def when(condition: Callable[[], Any], child: forked.Running) -> None:
    end = time.monotonic() + patient(60)
    while not condition():
        assert time.monotonic() < end, child.said()[-3000:]
        time.sleep(0.05)


def grown(url: str) -> int:
    try:
        with TreeStore.open(url, read_only=True) as store:
            return sum(len(store.expansions(row.tree_id)) for row in store.trees())
    except Exception:  # no tables yet
        return 0


def test_workers_wait_for_their_database_and_go_on_where_they_were(server: Cluster, tmp_path: Path) -> None:
    whole = server()
    assert begun(whole, tmp_path, "0").wait(240).returncode == 0
    url = server()
    child = begun(url, tmp_path, "0.3")  # long enough to be under way when the server has stopped
    when(lambda: grown(url) >= 3, child)
    server.stop()
    when(lambda: "does not answer" in child.said(), child)
    server.start()
    done = child.wait(240)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    assert "Traceback" not in said and "waiting for it" in said and "error: " not in said, said[-3000:]
    assert digests(url) == digests(whole)


def test_workers_end_with_the_process_that_started_them(server: Cluster, tmp_path: Path) -> None:
    url, mark = server(), secrets.token_hex(8)
    child = begun(url, tmp_path, "0.3", mark)
    when(lambda: grown(url), child)
    child.send(signal.SIGKILL)
    assert child.wait().returncode == -signal.SIGKILL
    assert not left(mark)
    with TreeStore.open(url, read_only=True) as store:
        assert store.check() == [] and {row.status for row in store.trees()} != {"done"}


def test_a_database_that_stays_away_ends_the_run_with_one_sentence(server: Cluster, tmp_path: Path) -> None:
    url = server()
    server.stop()
    done = begun(url, tmp_path, "0").wait(240)
    said = done.stdout + done.stderr
    assert done.returncode == 2 and said.count("error: ") == 1 and "Traceback" not in said, said
    server.start()
