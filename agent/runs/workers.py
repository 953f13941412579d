"""Collecting with many processes: each leases tasks from a store in PostgreSQL and grows their trees.

    collect_with_workers(config, "postgresql://me@host/trees", "4", tasks=100)                      # four processes
    collect_with_workers(config, "postgresql://me@host/trees", "ray://head:10001?workers=64", …)    # the same, by Ray

Processes share nothing but the database. A lease lasts `lease_seconds` and is renewed while its search goes on; when a
process dies or stops, the lease ends and another process resumes the tree where it was acknowledged. The old owner, if
it comes back, is fenced: the database refuses what it writes, and it goes on with another task.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from urllib.parse import parse_qs, urlsplit

from treewright.agent.config import Config
from treewright.agent.policies.opening import open_policy
from treewright.agent.runs.collect import World, collect, open_worlds, suites_of
from treewright.agent.runs.loop import budget_of, evaluator_of, evidence_of, rates_of, rule_of, settings_of, tasks_for
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Task, digest
from treewright.search.store import Fenced, Lease, StoreError, TreeStore

__all__ = ["Job", "collect_with_workers", "work"]

log = logging.getLogger("treewright")

POLL_SECONDS = 0.5
Counts = dict[str, int]


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs to know; it crosses process and machine borders as it is.

    config    the run's configuration as JSON
    url       of the PostgreSQL store
    tasks, batch, split   which tasks of every suite, as in `collect`
    lanes     trees that a worker grows at once
    lease_seconds   how long a task stays with a worker that says nothing
    """

    config: str
    url: str
    tasks: int
    batch: int = 0
    split: str = "train"
    lanes: int = 4
    lease_seconds: float = 30.0


def collect_with_workers(
    config: Config,
    url: str,
    workers: str | int,
    *,
    tasks: int = 24,
    batch: int = 0,
    split: str = "train",
    lanes: int = 4,
    lease_seconds: float = 30.0,
    on_progress: Callable[[Counts], None] | None = None,
) -> Counts:
    """Grows one tree for each task and returns how many are done and failed. The same call again resumes.

    workers      a number of processes, or ray://HOST:PORT?workers=N
    on_progress  called about twice a second with {"waiting", "leased", "done", "failed"}

    Raises TreewrightError if tasks are left when every worker has ended, and StoreError if the store is not in
    PostgreSQL: one machine with one file needs `collect` alone. A file of own tasks must be at the same path wherever a
    worker runs.
    """
    job = Job(config.model_dump_json(), url, tasks, batch, split, lanes, lease_seconds)
    launch = _launcher(workers)
    with TreeStore.open(url) as store:
        queue = store.queue
        ids = asyncio.run(_tree_ids(config, job))
        queue.add(config.name, ids)
        counts = queue.counts(config.name)
        if not counts["waiting"] + counts["leased"]:
            return counts
        crew = launch(job)
        try:
            while counts["waiting"] + counts["leased"] and crew.alive():
                time.sleep(POLL_SECONDS)
                counts = queue.counts(config.name)
                if on_progress is not None:
                    on_progress(counts)
            crew.join()
            counts = queue.counts(config.name)
        finally:
            crew.stop()
        for tree_id, why in queue.failures(config.name).items():
            log.warning("tree %s failed: %s", tree_id, why)
    if counts["waiting"] + counts["leased"]:
        left = counts["waiting"] + counts["leased"]
        raise TreewrightError(f"every worker has ended and {left} tasks are left; the same line again resumes them")
    return counts


async def _tree_ids(config: Config, job: Job) -> list[str]:
    async with open_worlds(suites_of(config), config.worlds.sessions or None, config.worlds.deadline) as worlds:
        return [tree_id_of(config, task) for task in tasks_for(worlds, job.split, job.batch, job.tasks)]


def tree_id_of(config: Config, task: Task) -> str:
    """The id that the tree of a task gets in this run; see `TreeHeader.tree_id`."""
    return digest(config.name, f"{task.suite}/{task.id}", "0")


# -- launching --------------------------------------------------------------------------------------------------------


class Processes:
    """Workers as processes of this machine, begun afresh: nothing is inherited from this one."""

    def __init__(self, job: Job, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.processes = [context.Process(target=work, args=(job,), name=f"worker {i}") for i in range(count)]
        for process in self.processes:
            process.start()

    def alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def join(self) -> None:
        for process in self.processes:
            process.join()

    def stop(self) -> None:
        """Ends what is left; trees that were being grown are resumed by whoever comes next."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()


class RayWorkers:
    """The same workers as tasks of a Ray cluster, which places them on its machines."""

    def __init__(self, job: Job, address: str, count: int) -> None:
        try:
            self._ray: Any = import_module("ray")
        except ImportError:
            raise TreewrightError("ray:// workers need Ray: pip install 'treewright[ray]'") from None
        self._ray.init(address=address, ignore_reinit_error=True)
        remote = self._ray.remote(max_retries=3)(work)
        self._left = [remote.remote(job) for _ in range(count)]

    def alive(self) -> bool:
        _, left = self._ray.wait(self._left, num_returns=len(self._left), timeout=0)
        return bool(left)

    def join(self) -> None:
        self._ray.wait(self._left, num_returns=len(self._left))

    def stop(self) -> None:
        for one in self._left:
            self._ray.cancel(one, force=True)
        self._ray.shutdown()


def _launcher(workers: str | int) -> Callable[[Job], Processes | RayWorkers]:
    text = str(workers)
    if text.startswith("ray://"):
        parts = urlsplit(text)
        asked = parse_qs(parts.query).get("workers", [""])[0]
        if not parts.netloc or not asked.isdigit() or int(asked) < 1:
            raise TreewrightError(f"--workers {text}: write ray://HOST:PORT?workers=N")
        address = "local" if parts.netloc == "local" else f"ray://{parts.netloc}"
        return lambda job: RayWorkers(job, address, int(asked))
    if not text.isdigit() or int(text) < 1:
        raise TreewrightError(f"--workers {text}: give a number of processes, or ray://HOST:PORT?workers=N")
    return lambda job: Processes(job, int(text))


# -- working ----------------------------------------------------------------------------------------------------------


def work(job: Job) -> int:
    """One worker: grows trees until no task is left; returns how many it finished. Runs in a process of its own."""
    return asyncio.run(_Worker(job).run())


class _Worker:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.config = Config.model_validate_json(job.config)
        self.owner = f"{socket.gethostname()} {os.getpid()}"
        self.finished = 0

    async def run(self) -> int:
        config, job = self.config, self.job
        store, actor = TreeStore.open(job.url), open_policy(config.policy.spec, **config.policy.options)
        try:
            async with open_worlds(suites_of(config), config.worlds.sessions or None, config.worlds.deadline) as worlds:
                tasks = {tree_id_of(config, t): t for t in tasks_for(worlds, job.split, job.batch, job.tasks)}
                lanes = min(job.lanes, len(tasks)) or 1
                await asyncio.gather(*(self._lane(store, worlds, actor, tasks) for _ in range(lanes)))
        finally:
            with contextlib.suppress(Fenced):
                store.close()
            await actor.close()
        return self.finished

    async def _lane(self, store: TreeStore, worlds: Mapping[str, World], actor: Any, tasks: Mapping[str, Task]) -> None:
        """Takes one task after the other. While others hold the last ones it waits: theirs may come free."""
        queue, run = store.queue, self.config.name
        while True:
            lease = await asyncio.to_thread(queue.lease, run, self.owner, self.job.lease_seconds)
            if lease is None:
                counts = await asyncio.to_thread(queue.counts, run)
                if not counts["waiting"] + counts["leased"]:
                    return
                await asyncio.sleep(POLL_SECONDS)
            elif lease.tree_id not in tasks:
                why = "its task is not among those of this worker; start the workers with the same tasks"
                await asyncio.to_thread(queue.give_back, lease, why)
            else:
                await self._grow(store, worlds, actor, tasks[lease.tree_id], lease)

    async def _grow(self, store: TreeStore, worlds: Mapping[str, World], actor: Any, task: Task, lease: Lease) -> None:
        """Grows one tree under its lease; drops it as soon as the lease is somebody else's."""
        store.hold(lease)
        search = asyncio.create_task(self._search(store, worlds, actor, [task]))
        beat = asyncio.create_task(self._renew(store, lease))
        queue = store.queue
        try:
            await asyncio.wait({search, beat}, return_when=asyncio.FIRST_COMPLETED)
            if beat.done():  # it ends only by an error
                raise beat.exception() or StoreError("the renewing of a lease ended")
            await search
            await asyncio.to_thread(queue.done, lease)
            self.finished += 1
        except Fenced as error:
            log.warning("%s", error)
        except TreewrightError as error:
            log.warning("task %s/%s: %s", task.suite, task.id, error)
            with contextlib.suppress(Fenced):
                await asyncio.to_thread(queue.give_back, lease, str(error))
        finally:
            for job in (search, beat):
                job.cancel()
            await asyncio.gather(search, beat, return_exceptions=True)

    async def _renew(self, store: TreeStore, lease: Lease) -> None:
        while True:
            await asyncio.sleep(self.job.lease_seconds / 3)
            await asyncio.to_thread(store.queue.renew, lease, self.job.lease_seconds)

    async def _search(self, store: TreeStore, worlds: Mapping[str, World], actor: Any, tasks: Sequence[Task]) -> None:
        section = self.config.search
        settings = settings_of(section, run=self.config.name, seed=self.config.seed)
        await collect(
            tasks,
            worlds,
            actor,
            rule=rule_of(section, rates_of(self.config)),
            budget=budget_of(section),
            settings=settings,
            evaluator=evaluator_of(section, actor),
            evidence=evidence_of(section),
            store=store,
        )
