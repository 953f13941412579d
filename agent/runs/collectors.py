"""Collectors: processes that grow the trees of a loop's rounds, wherever they run, for one trainer.

The loop writes what the coming round is into `runs/NAME/rounds/now.json`: its run, which weights draw, and what its
rule is told. Its tasks wait in the store's queue. Collectors take the weights, lease tasks and grow trees until none
is left, and wait for the next round. A tree belongs to whoever holds its lease: one that dies is replaced, its trees
go on where they were acknowledged. Run folder and PostgreSQL are all that trainer and collectors share.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import multiprocessing
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from treewright.agent.config import Config
from treewright.agent.policies.opening import open_policy, serve_weights
from treewright.agent.policies.policy import Trusting
from treewright.agent.runs.anew import attempts, lost_in
from treewright.agent.runs.collect import open_worlds, suites_of
from treewright.agent.runs.loop import model_folder
from treewright.agent.runs.ranks import PRELOADED
from treewright.agent.runs.rounds import RoundOrder
from treewright.agent.runs.setup import tasks_of_round
from treewright.agent.runs.workers import POLL_SECONDS, Job, Worker, alone, ray_at, ray_place, run_worker, waited
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Task
from treewright.envs.waiting import together
from treewright.envs.whole import write_whole
from treewright.search.store import Fenced, StoreError, StoreLost, TreeStore
from treewright.search.tree import Tree
from treewright.search.types import layers

__all__ = ["Collector", "Crew", "collector", "crew_of"]

log = logging.getLogger("treewright")

RESTARTS = 20
"""Collectors that are started again without a tree being finished in between; then the loop ends."""


def _place(home: Path) -> Path:
    return home / "rounds" / "now.json"


def _announce(home: Path, order: RoundOrder | None) -> None:
    """None: the loop has ended, collectors may go."""
    write_whole(_place(home), json.dumps(None if order is None else asdict(order)))


def _announced(home: Path) -> tuple[RoundOrder | None, bool]:
    """The present round, and whether the loop has ended."""
    try:
        data = json.loads(_place(home).read_text("utf-8"))
    except FileNotFoundError:
        return None, False
    return (None, True) if data is None else (RoundOrder(**data), False)


# -- a collector ------------------------------------------------------------------------------------------------------


def collector(config: str, url: str, lease_seconds: float = 30.0, stays: bool = False) -> int:
    """One collector: grows trees round after round until the loop has ended; returns how many it finished.

    stays  it goes on when the process that started it has ended
    """
    return run_worker(lambda: Collector(Job(config, url, 0, lease_seconds=lease_seconds), stays))


class Collector(Worker):
    """A worker that goes on from round to round."""

    def __init__(self, job: Job, stays: bool = False) -> None:
        super().__init__(job)
        self.stays = stays

    async def run(self) -> int:
        config = self.config
        store, actor = TreeStore.open(self.job.url), open_policy(config.policy.spec, **config.policy.options)
        done: RoundOrder | None = None
        try:
            async with open_worlds(suites_of(config), config.worlds.sessions or None, config.worlds.deadline) as worlds:
                while self.stays or not alone():
                    order, ended = _announced(config.home)
                    if ended:
                        break
                    if order is None or order == done:
                        await asyncio.sleep(POLL_SECONDS)
                        continue
                    await self._take(actor, order)
                    self.name, self.seed, self.rates = order.run, config.seed + order.index, order.rates
                    found = tasks_of_round(worlds, config.loop, order.index)
                    tasks = attempts(order.run, [(task, 0) for task in found], lost_in(store, order.run))
                    lanes = min(config.search.trees, self.job.lanes, len(tasks)) or 1
                    await together(self._lane(store, worlds, actor, tasks) for _ in range(lanes))
                    done = order
        finally:
            with contextlib.suppress(Fenced, StoreLost):
                store.close()
            await actor.close()
        return self.finished

    async def _take(self, actor: Any, order: RoundOrder) -> None:
        """The weights of the round. A server got them from the trainer; it is only called by their name here."""
        for policy in layers(actor):
            if isinstance(policy, Trusting) and not policy.sure and hasattr(policy, "given"):
                policy.given(order.version)
                return
        if order.version != actor.version:
            await serve_weights(actor, order.weights or model_folder(self.config.policy.spec))


# -- the loop's side --------------------------------------------------------------------------------------------------


class Crew:
    """The collectors of a loop: starts `loop.collectors` of them here, replaces those that end, waits for trees."""

    def __init__(self, config: Config) -> None:
        url = config.store
        if url is None or "://" not in url:
            raise TreewrightError(
                "loop.collectors needs a store that many processes share: --set store=postgresql://USER@HOST/NAME"
            )
        if not url.startswith("postgres"):
            raise StoreError(f"{url}: collectors lease from PostgreSQL; use a postgresql:// store")
        self.config, self.url = config, url
        whole = config.model_copy(update={"folder": config.home.resolve()})
        arguments, asked = (whole.model_dump_json(), url, config.loop.lease), config.loop.collectors or 0
        there = ray_place(asked) if isinstance(asked, str) else None
        self.hands: _Here | _OnRay = _Here(arguments, int(asked)) if there is None else _OnRay(arguments, *there)
        self.replaced = 0
        self._quit = threading.Event()

    async def grow(self, order: RoundOrder, tasks: Sequence[Task]) -> list[Tree]:
        """The round's trees in the order of the tasks; those whose task failed are left out and told of."""
        self._quit.clear()
        try:
            return await asyncio.to_thread(self._grow, order, tasks)
        except asyncio.CancelledError:
            self._quit.set()
            raise

    def _grow(self, order: RoundOrder, tasks: Sequence[Task]) -> list[Tree]:
        with TreeStore.open(self.url) as store:
            lost = lost_in(store, order.run)
            ids = [name for name in attempts(order.run, [(task, 0) for task in tasks], lost) if name not in lost]
            queue = store.queue
            queue.add(order.run, ids)
            _announce(self.config.home, order)
            counts, quiet = queue.counts(order.run), 0
            if not self.hands.count and counts["waiting"]:
                log.warning("waiting for collectors: treewright collector --name %s, on any machine", self.config.name)
            while counts["waiting"] + counts["leased"] and not self._quit.is_set():
                before = counts["done"]
                quiet += self._replace()
                if quiet > RESTARTS:
                    raise TreewrightError(
                        f"collectors ended {quiet} times and no tree was finished meanwhile; mend what they told, then "
                        "type the same line again"
                    )
                time.sleep(POLL_SECONDS / 2)
                counts = waited(lambda: queue.counts(order.run))
                quiet = quiet if counts["done"] == before else 0
            if self._quit.is_set():
                return []
            failed = queue.failures(order.run)
            for tree_id, why in failed.items():
                log.warning("tree %s failed: %s", tree_id, why)
            return [store.load(tree_id) for tree_id in ids if tree_id not in failed]

    def _replace(self) -> int:
        """Starts collectors where there are too few; how many had ended."""
        ended = self.hands.mend()
        for why in ended:
            log.warning("a collector ended (%s) and is replaced", why)
        self.replaced += len(ended)
        return len(ended)

    def close(self, finished: bool) -> None:
        """`finished`: the loop is through, so collectors elsewhere may go as well."""
        self._quit.set()
        if finished:
            _announce(self.config.home, None)
        self.hands.close()


class _Here:
    """Collectors as processes of this machine."""

    def __init__(self, arguments: tuple[str, str, float], count: int) -> None:
        self.arguments, self.count = arguments, count
        self.processes: list[Any] = []
        self._context = multiprocessing.get_context("forkserver")  # heavy packages are loaded once, for all
        self._context.set_forkserver_preload([*PRELOADED, __name__])

    def mend(self) -> list[str]:
        """Starts as many as are missing; how those that are no more have ended."""
        ended = [f"exit {p.exitcode}" for p in self.processes if not p.is_alive()]
        self.processes = [p for p in self.processes if p.is_alive()]
        while len(self.processes) < self.count:
            process = self._context.Process(target=collector, args=self.arguments, name="collector")
            process.start()
            self.processes.append(process)
        return ended

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()


class _OnRay:
    """Collectors as tasks of a Ray cluster, which places them on its machines; all see the run's folder."""

    def __init__(self, arguments: tuple[str, str, float], address: str, count: int) -> None:
        self.arguments, self.count = arguments, count
        self._ray = ray_at(address)
        self._begin = self._ray.remote(max_retries=0)(collector)  # whoever ends is seen here, and begun again
        self.tasks: list[Any] = []

    def mend(self) -> list[str]:
        """As `_Here.mend`."""
        ended: list[str] = []
        if self.tasks:
            done, self.tasks = self._ray.wait(self.tasks, num_returns=len(self.tasks), timeout=0)
            ended = [self._end_of(task) for task in done]
        while len(self.tasks) < self.count:
            self.tasks.append(self._begin.remote(*self.arguments))
        return ended

    def _end_of(self, task: Any) -> str:
        try:
            return f"after {self._ray.get(task)} trees"
        except self._ray.exceptions.RayError as error:
            return str(error).strip().splitlines()[0]

    def close(self) -> None:
        for task in self.tasks:
            self._ray.cancel(task, force=True)
        self._ray.shutdown()


def crew_of(config: Config) -> Crew | None:
    """The collectors that the configuration asks for, None where the loop grows its trees itself."""
    return None if config.loop.collectors is None else Crew(config)
