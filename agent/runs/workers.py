"""Collecting with many processes: each leases tasks from a store in PostgreSQL and grows their trees.

    collect_with_workers(config, "postgresql://me@host/trees", "4", tasks=100)                      # four processes
    collect_with_workers(config, "postgresql://me@host/trees", "ray://head:10001?workers=64", …)    # the same, by Ray

Processes share nothing but the database. A lease lasts `lease_seconds` and is renewed while its search goes on; when a
process dies or stops, the lease ends and another process resumes the tree where it was acknowledged. The old owner, if
it comes back, is fenced: the database refuses what it writes, and it goes on with another task.

A database that goes away is waited for, `AWAY_SECONDS` at most; workers then go on where trees were acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from treewright.agent.config import Config
from treewright.agent.policies.opening import open_policy
from treewright.agent.runs.anew import attempts, lost_in
from treewright.agent.runs.collect import World, collect, open_worlds, refuse_stored, suites_of
from treewright.agent.runs.loop import budget_of, evaluator_of, evidence_of, rates_of, rule_of, settings_of
from treewright.agent.runs.setup import rounds_for
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Task
from treewright.envs.waiting import together
from treewright.search.store import Fenced, Lease, StoreLost, TreeStore
from treewright.search.store.queue import TRIES
from treewright.training.sections import RAY

__all__ = ["Job", "Worker", "alone", "collect_with_workers", "ray_at", "ray_place", "run_worker", "waited", "work"]

log = logging.getLogger("treewright")

POLL_SECONDS = 0.5
AWAY_SECONDS = 60.0
HEAVY = ("treewright.agent.policies.hf", "transformers.models.auto.modeling_auto",
         "transformers.models.auto.tokenization_auto")  # fmt: skip
Counts = dict[str, int]
Answer = TypeVar("Answer")


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

    Raises TreewrightError if tasks are left when every worker has ended, or, before any begins, if the run's stored
    trees are of other tasks, and StoreError if the store is not in PostgreSQL: one machine with one file needs
    `collect` alone. A file of own tasks must be at the same path wherever a worker runs.
    """
    job = Job(config.model_dump_json(), url, tasks, batch, split, lanes, lease_seconds)
    launch = _launcher(workers)
    with TreeStore.open(url) as store:
        queue = store.queue
        queue.add(config.name, asyncio.run(_tree_ids(config, job, store)))
        counts = queue.counts(config.name)
        if not counts["waiting"] + counts["leased"]:
            return counts
        crew = launch(job)
        try:
            while counts["waiting"] + counts["leased"] and crew.alive():
                time.sleep(POLL_SECONDS)
                counts = waited(lambda: queue.counts(config.name))
                if on_progress is not None:
                    on_progress(counts)
            crew.join()
            counts = waited(lambda: queue.counts(config.name))
        finally:
            crew.stop()
        for tree_id, why in queue.failures(config.name).items():
            log.warning("tree %s failed: %s", tree_id, why)
    if counts["waiting"] + counts["leased"]:
        left = counts["waiting"] + counts["leased"]
        raise TreewrightError(f"every worker has ended and {left} tasks are left; the same line again resumes them")
    return counts


def waited(call: Callable[[], Answer], seconds: float | None = None) -> Answer:
    """What the call gives; it is made again while the database does not answer, which is said.

    Raises StoreLost once that has lasted `seconds`; AWAY_SECONDS where None.
    """
    patience, end = AWAY_SECONDS if seconds is None else seconds, 0.0
    while True:
        try:
            return call()
        except StoreLost as error:
            if not end:
                end = time.monotonic() + patience
                log.warning("%s (waiting for it, %.0f s at most)", error, patience)
            if time.monotonic() > end:
                raise
            time.sleep(POLL_SECONDS)


async def _tree_ids(config: Config, job: Job, store: TreeStore) -> list[str]:
    async with open_worlds(suites_of(config), config.worlds.sessions or None, config.worlds.deadline) as worlds:
        found = _of_job(config, job, worlds, lost_in(store, config.name))
        refuse_stored(store, config.name, found.values(), worlds)
        return list(found)


def _of_job(
    config: Config, job: Job, worlds: Mapping[str, World], lost: Collection[str]
) -> dict[str, tuple[Task, int]]:
    """Task and attempt of every tree of a job, by its id; as in `collect`, each task once, in each batch anew."""
    once: dict[tuple[str, str], tuple[Task, int]] = {}
    for task, earlier in rounds_for(worlds, job.split, job.batch, job.tasks):
        once.setdefault((task.suite, task.id), (task, earlier))
    return attempts(config.name, once.values(), lost)


# -- launching --------------------------------------------------------------------------------------------------------


class Processes:
    """Workers as processes of this machine. They are forked from a server that has loaded what all of them need, and
    that has nothing else of this process; of its environment they get what stands there now.
    """

    def __init__(self, job: Job, count: int) -> None:
        context = multiprocessing.get_context("forkserver")  # heavy packages are loaded once, for all
        context.set_forkserver_preload(_needed(json.loads(job.config)["policy"]["spec"]))
        given = (job, dict(os.environ))
        self.processes = [context.Process(target=_forked, args=given, name=f"worker {i}") for i in range(count)]
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


def _needed(spec: str) -> list[str]:
    """What the server of the workers' processes loads: torch only where the policy computes with it."""
    begin = ["treewright.agent.cli.lean_start", __name__]
    return [*begin, *HEAVY] if spec.partition(":")[0] in ("seedling", "hf") else begin


def _forked(job: Job, environment: Mapping[str, str]) -> int:
    os.environ.clear()
    os.environ.update(environment)
    return work(job)


def ray_at(address: str) -> Any:
    """The package ray, connected to a cluster. Raises TreewrightError where it is not installed or does not answer."""
    try:
        ray: Any = import_module("ray")
    except ImportError:
        raise TreewrightError("ray:// workers need Ray: pip install 'treewright[ray]'") from None
    try:
        here = {"include_dashboard": False} if address == "local" else {}
        ray.init(address=address, ignore_reinit_error=True, **here)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise TreewrightError(
            f"no Ray cluster answers at {address} ({error}); begin one with: ray start --head --ray-client-server-port "
            "10001, or write ray://local?workers=N"
        ) from error
    return ray


def ray_place(text: str) -> tuple[str, int] | None:
    """Address and number of workers that ray://HOST:PORT?workers=N names, None for what is written otherwise."""
    found = RAY.fullmatch(text)
    if found is None:
        return None
    place = found["place"]
    return "local" if place == "local" else f"ray://{place}", int(found["count"])


class RayWorkers:
    """The same workers as tasks of a Ray cluster, which places them on its machines."""

    def __init__(self, job: Job, address: str, count: int) -> None:
        self._ray = ray_at(address)
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
    if (there := ray_place(text)) is not None:
        return lambda job: RayWorkers(job, *there)
    if text.startswith("ray://"):
        raise TreewrightError(f"--workers {text}: write ray://HOST:PORT?workers=N")
    if not text.isdigit() or int(text) < 1:
        raise TreewrightError(f"--workers {text}: give a number of processes, or ray://HOST:PORT?workers=N")
    return lambda job: Processes(job, int(text))


# -- working ----------------------------------------------------------------------------------------------------------


def work(job: Job) -> int:
    """One worker: grows trees until no task is left; returns how many it finished. Runs in a process of its own."""
    return run_worker(lambda: Worker(job))


def run_worker(make: Callable[[], Worker]) -> int:
    """Runs a worker; where the database went away another one takes its place once it is back. How many trees were
    finished. It ends, and says why, when it is not back in time, or goes away again and again with no tree finished.
    """
    finished, quiet = 0, 0
    while True:
        worker = make()
        try:
            waited(lambda: TreeStore.open(worker.job.url, read_only=True)).close()  # noqa: B023 - called at once
            asyncio.run(worker.run())
            return finished + worker.finished
        except StoreLost as error:
            finished, quiet = finished + worker.finished, 0 if worker.finished else quiet + 1
            if quiet == TRIES:
                log.warning("%s", error)
                return finished


def alone() -> bool:
    """The process that started this one, if one of ours did, has ended."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


class Worker:
    """Leases tasks of one run and grows their trees."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.config = Config.model_validate_json(job.config)
        self.owner = f"{socket.gethostname()} {os.getpid()}"
        self.finished = 0
        self.name, self.seed = self.config.name, self.config.seed
        self.rates: Mapping[str, float] | None = None

    async def run(self) -> int:
        config, job = self.config, self.job
        store, actor = TreeStore.open(job.url), open_policy(config.policy.spec, **config.policy.options)
        try:
            async with open_worlds(suites_of(config), config.worlds.sessions or None, config.worlds.deadline) as worlds:
                tasks = _of_job(config, job, worlds, lost_in(store, config.name))
                lanes = min(job.lanes, len(tasks)) or 1
                await together(self._lane(store, worlds, actor, tasks) for _ in range(lanes))
        finally:
            with contextlib.suppress(Fenced, StoreLost):
                store.close()
            await actor.close()
        return self.finished

    async def _lane(
        self, store: TreeStore, worlds: Mapping[str, World], actor: Any, tasks: Mapping[str, tuple[Task, int]]
    ) -> None:
        """Takes one task after the other. While others hold the last ones it waits: theirs may come free."""
        queue, run = store.queue, self.name
        while not alone():
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

    async def _grow(
        self, store: TreeStore, worlds: Mapping[str, World], actor: Any, work: tuple[Task, int], lease: Lease
    ) -> None:
        """Grows one tree under its lease; drops it as soon as the lease is somebody else's."""
        store.hold(lease)
        search = asyncio.create_task(self._search(store, worlds, actor, *work))
        beat = asyncio.create_task(self._renew(store, lease))
        queue, task = store.queue, work[0]
        try:
            await asyncio.wait({search, beat}, return_when=asyncio.FIRST_COMPLETED)
            if beat.done() and (error := beat.exception()) is not None:
                raise error
            if beat.done() and not search.done():  # whoever wanted the tree is gone
                await asyncio.to_thread(queue.give_back, lease)
                return
            await search
            await asyncio.to_thread(queue.done, lease)
            self.finished += 1
        except Fenced as error:
            log.warning("%s", error)
        except StoreLost:  # the lease runs out by itself
            raise
        except TreewrightError as error:
            log.warning("task %s/%s: %s", task.suite, task.id, error)
            with contextlib.suppress(Fenced):
                await asyncio.to_thread(queue.give_back, lease, str(error))
        finally:
            for job in (search, beat):
                job.cancel()
            await asyncio.gather(search, beat, return_exceptions=True)

    async def _renew(self, store: TreeStore, lease: Lease) -> None:
        """Until the process that started this one has ended, which may be by a kill."""
        while not alone():
            await asyncio.sleep(self.job.lease_seconds / 3)
            await asyncio.to_thread(store.queue.renew, lease, self.job.lease_seconds)

    async def _search(
        self, store: TreeStore, worlds: Mapping[str, World], actor: Any, task: Task, attempt: int
    ) -> None:
        section = self.config.search
        settings = settings_of(section, run=self.name, seed=self.seed)
        await collect(
            [task],
            worlds,
            actor,
            rule=rule_of(section, rates_of(self.config) if self.rates is None else self.rates),
            budget=budget_of(section),
            settings=settings,
            evaluator=evaluator_of(section, actor),
            evidence=evidence_of(section),
            store=store,
            rounds=[attempt],
            anew=False,  # the lease is for this tree
        )
