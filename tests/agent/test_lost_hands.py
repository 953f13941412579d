"""A collector that dies is begun again, here and on Ray; a rank that dies ends the others with a line that resumes."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from databases import execute
from ranks_loop import dies
from speed import patient
from typer.testing import CliRunner

from treewright.agent.cli.main import app
from treewright.agent.config import Config, ConfigError, load_config
from treewright.agent.runs.collectors import Crew, collector
from treewright.agent.runs.ranks import LOST, launch
from treewright.agent.runs.workers import ray_place
from treewright.training.track import read_metrics

NO_RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'treewright[ray]'"
)


def kill_one(url: str, killed: list[int]) -> None:
    """Kills the first process that is seen to hold a tree."""
    end = time.monotonic() + patient(60)
    while not killed and time.monotonic() < end:
        for (owner,) in execute(url, "SELECT owner FROM tasks WHERE state = 'leased' LIMIT 1"):
            pid = int(owner.split()[-1])
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        time.sleep(0.02)


@pytest.mark.parametrize("collectors", ["2", pytest.param("ray://local?workers=2", marks=NO_RAY, id="ray")])
def test_a_collector_that_is_killed_is_replaced_and_its_tree_goes_on(
    collectors: str, new_database: Callable[[], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = new_database()
    words = ("loop", "--suites", "kg", "--set", f"folder={tmp_path}", "--set", f"store={url}", "--set", "loop.tasks=6",
             "--set", "loop.iterations=2", "--set", "loop.lease=2", "--set", f'loop.collectors="{collectors}"',
             "--set", "train.minibatches=1")  # fmt: skip
    first = CliRunner().invoke(app, [*words[:-2], "--set", "loop.collectors=-1"])
    assert isinstance(first.exception, ConfigError) and "give a number of processes" in str(first.exception)
    killed: list[int] = []
    from treewright.search.store import TreeStore

    TreeStore.open(url).close()  # the table that is looked at
    killer = threading.Thread(target=kill_one, args=(url, killed))
    killer.start()
    done = CliRunner().invoke(app, words)
    killer.join()
    assert done.exception is None, (done.output, done.exception)
    assert killed and any("a collector ended" in r.message and "is replaced" in r.message for r in caplog.records)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == [1, 2] and [row["inexact"] for row in rows] == [0, 0]
    with TreeStore.open(url, read_only=True) as store:
        assert len(store.trees()) == 12 and {row.status for row in store.trees()} == {"done"} and store.check() == []


def test_a_rank_that_dies_ends_the_others_and_the_launcher_says_how_to_go_on() -> None:
    said: list[str] = []
    began = time.monotonic()
    assert launch(dies, 2, [], said.append) == LOST
    assert time.monotonic() - began < patient(30)
    (line,) = said
    assert "rank 1 of 2 was ended by SIGKILL" in line and "the same line again goes on from the last" in line


def test_tasks_of_a_ray_cluster_that_end_are_begun_again_and_the_rest_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a stand-in for its interface; `make test-ray` kills a collector of the real one."""
    done: dict[int, int | Exception] = {}
    told: list[Any] = []

    class Lost(Exception):
        pass

    def remote(**options: Any) -> Any:
        numbers = count()

        def begin(function: Any, given: Any) -> int:
            told.append((options, function, given))
            return next(numbers)

        return lambda function: SimpleNamespace(remote=lambda *given: begin(function, given))

    def get(task: int) -> int:
        found = done[task]
        if isinstance(found, Exception):
            raise found
        return found

    stand_in = SimpleNamespace(
        init=lambda **given: told.append(given), remote=remote, get=get, exceptions=SimpleNamespace(RayError=Lost),
        wait=lambda tasks, num_returns, timeout: ([t for t in tasks if t in done], [t for t in tasks if t not in done]),
        cancel=lambda task, force: told.append((task, force)), shutdown=lambda: told.append("shutdown"),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    settings = [f"folder={tmp_path}", "store=postgresql://host/x", 'loop.collectors="ray://head:10001?workers=2"']
    crew = Crew(load_config(None, settings))
    assert told.pop()["address"] == "ray://head:10001" and crew._replace() == 0 and len(told) == 2
    options, function, given = told.pop()
    assert options == {"max_retries": 0} and function is collector and given[1:] == ("postgresql://host/x", 30.0)
    assert Config.model_validate_json(given[0]).home == tmp_path.resolve()
    done |= {0: 3, 1: Lost("the worker died\nand more")}
    assert crew._replace() == 2 and crew.replaced == 2 and crew._replace() == 0
    crew.close(finished=False)
    assert told[-3:] == [(2, True), (3, True), "shutdown"]


def test_places_of_collectors_are_numbers_or_a_ray_cluster() -> None:
    assert ray_place("ray://head:10001?workers=12") == ("ray://head:10001", 12)
    assert ray_place("ray://local?workers=2") == ("local", 2) and ray_place("4") is None
    for given, kept in (("3", 3), ('"ray://head:10001?workers=12"', "ray://head:10001?workers=12"), ("0", 0)):
        assert load_config(None, [f"loop.collectors={given}"]).loop.collectors == kept
    for wrong in ("-1", '"many"', '"ray://head:10001"', '"ray://head:10001?workers=0"'):
        with pytest.raises(ConfigError, match=r"ray://HOST:PORT\?workers=N"):
            load_config(None, [f"loop.collectors={wrong}"])
