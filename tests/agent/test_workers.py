"""Workers share tasks over a database: killed and stopped ones are replaced, and every tree is the one tree."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from databases import execute
from not_none import not_none
from speed import patient

from treewright.agent.config import Config, load_config
from treewright.agent.runs import collectors, workers
from treewright.agent.runs.workers import Job, Processes, collect_with_workers
from treewright.envs.errors import TreewrightError
from treewright.search.store import StoreError, TreeStore

TASKS = 6


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Config:
    here = os.path.join(os.path.dirname(__file__), "..", "helpers")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.abspath(here), os.environ.get("PYTHONPATH", "")]))
    return load_config(
        None,
        ["name=w", "policy.spec=scripted:slow_walker:make", 'worlds.suites=["maze"]', "search.expansions=6",
         "search.max_tokens=64", "worlds.sessions=2"],
    )  # fmt: skip


def digests(url: str) -> dict[str, Any]:
    with TreeStore.open(url, read_only=True) as store:
        assert store.check() == []
        rows = store.trees()
        assert {row.status for row in rows} == {"done"}
        return {row.tree_id: store.load(row.tree_id).digest() for row in rows}


@pytest.fixture
async def expected(config: Config) -> dict[str, Any]:
    """What one process without a store grows."""
    from treewright.agent.policies.opening import open_policy
    from treewright.agent.runs.collect import collect, open_worlds
    from treewright.agent.runs.loop import budget_of, evaluator_of, rule_of, tasks_for
    from treewright.search.engine import Settings

    section = config.search
    async with open_worlds(["maze"], 2) as worlds:
        trees = await collect(
            tasks_for(worlds, "train", 0, TASKS), worlds, open_policy(config.policy.spec), rule=rule_of(section),
            budget=budget_of(section), evaluator=evaluator_of(section),
            settings=Settings(run="w", in_flight=section.in_flight, max_tokens=64, close=True),
        )  # fmt: skip
    return {tree.tree_id: tree.digest() for tree in trees}


def when(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + patient(seconds)
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.05)


def test_killed_and_stopped_workers_are_replaced_and_the_trees_are_the_same(
    config: Config, new_database: Callable[[], str], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, crews = new_database(), []
    monkeypatch.setenv("SLOW_WALKER", "0.03")

    class Watched(Processes):
        def __init__(self, job: Any, count: int) -> None:
            super().__init__(job, count)
            crews.append(self)

    monkeypatch.setattr(workers, "Processes", Watched)
    result = {}
    run = threading.Thread(
        target=lambda: result.update(collect_with_workers(config, url, 3, tasks=TASKS, lanes=1, lease_seconds=1.5))
    )
    run.start()
    try:
        when(lambda: crews)
        processes = crews[0].processes
        with TreeStore.open(url) as store:

            def busy(process: ForkServerProcess) -> bool:
                owners = execute(url, "SELECT owner FROM tasks WHERE state = 'leased'")
                return any(owner.split()[-1] == str(process.pid) for (owner,) in owners)

            when(lambda: busy(processes[0]) and busy(processes[1]))
            os.kill(not_none(processes[0].pid), signal.SIGKILL)
            os.kill(not_none(processes[1].pid), signal.SIGSTOP)
            when(lambda: store.queue.counts("w")["done"] == TASKS)
        os.kill(not_none(processes[1].pid), signal.SIGCONT)
        run.join(60)
        assert not run.is_alive() and processes[0].exitcode == -signal.SIGKILL
    finally:
        for process in crews[0].processes if crews else ():
            process.kill()
        run.join(30)
    assert result["done"] == TASKS and digests(url) == expected


def test_the_same_line_again_finds_everything_done(
    config: Config, new_database: Callable[[], str], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_database()
    seen: list[Any] = []
    assert collect_with_workers(config, url, 1, tasks=TASKS, on_progress=seen.append)["done"] == TASKS
    assert seen and seen[-1].keys() == {"waiting", "leased", "done", "failed"}
    monkeypatch.setattr(workers, "Processes", None)
    assert collect_with_workers(config, url, 1, tasks=TASKS)["done"] == TASKS
    assert digests(url) == expected


def test_workers_grow_trees_of_own_tasks(config: Config, new_database: Callable[[], str], tmp_path: Path) -> None:
    own = tmp_path / "tasks.jsonl"
    lines = ({"id": f"t{i}", "goal": "find the exit", "seed": i, "split": "train"} for i in range(2))
    own.write_text("".join(json.dumps(line) + "\n" for line in lines))
    worlds = config.worlds.model_copy(update={"tasks_file": own, "reward": "slow_walker:reward"})
    url = new_database()
    assert collect_with_workers(config.model_copy(update={"worlds": worlds}), url, 1, tasks=2)["done"] == 2
    with TreeStore.open(url, read_only=True) as store:
        assert {row.suite for row in store.trees()} == {"own"}
        tree = store.load(store.trees()[0].tree_id)
        assert {tree.outcome_of(leaf) for leaf in tree.leaves()} <= {0.0, 0.25}


def test_impossible_settings_are_refused_before_anything_starts(
    config: Config, tmp_path: Path, new_database: Callable[[], str]
) -> None:
    with pytest.raises(StoreError, match="use a postgresql:// store"):
        collect_with_workers(config, str(tmp_path / "t.db"), 2)
    for wrong in ("0", "many", "ray://host:1", "ray://?workers=3"):
        with pytest.raises(TreewrightError, match="HOST:PORT"):
            collect_with_workers(config, "postgresql://nowhere/x", wrong)
    if importlib.util.find_spec("ray") is None:
        with pytest.raises(TreewrightError, match=r"treewright\[ray\]"):
            collect_with_workers(config, new_database(), "ray://local?workers=1", tasks=1)


async def test_a_collector_ends_with_the_loop_that_started_it(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parent, as the system tells it, is the server that it was forked from, which lives as long as it does."""
    url, dead = f"sqlite:///{tmp_path / 't.db'}", threading.Event()
    monkeypatch.setattr(collectors, "alone", dead.is_set)
    job = Job(config.model_copy(update={"folder": tmp_path}).model_dump_json(), url, 0)
    waiting = asyncio.create_task(collectors.Collector(job).run())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 1)
    dead.set()
    assert await asyncio.wait_for(waiting, patient(10)) == 0


def test_a_job_says_everything_a_worker_needs() -> None:
    job = Job("{}", "postgresql://x", 3)
    assert replace(job, lanes=2).lanes == 2 and job.lease_seconds > 0


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install ray")
def test_ray_launches_the_same_workers(
    config: Config, new_database: Callable[[], str], expected: dict[str, Any]
) -> None:
    url = new_database()
    assert collect_with_workers(config, url, "ray://local?workers=2", tasks=TASKS)["done"] == TASKS
    assert digests(url) == expected
