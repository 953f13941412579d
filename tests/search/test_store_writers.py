"""Many processes write one PostgreSQL store: no lock errors, leases that end, owners that are fenced."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from not_none import not_none
from speed import patient

from treewright.envs.types import Action, Observation, Task
from treewright.search.store import Fenced, JournalState, StoreError, TreeStore
from treewright.search.tree import TreeHeader
from treewright.search.types import Completion, Draft, Expansion, NodeStatus, Outcome, Spent

WRITERS, TREES, POPS = 8, 2, 10

COMMON = """
import asyncio, sys, time
from treewright.envs.types import Action, Observation, Task
from treewright.search.store import Fenced, StoreError, TreeStore
from treewright.search.tree import TreeHeader
from treewright.search.types import Completion, Draft, Expansion, NodeStatus, Outcome, Spent

def header_of(name):
    return TreeHeader(
        run="r", task=Task("kg", name, "g"), attempt=0, seed=1, policy_version="v1", settings={"w": 1},
        root=Outcome(Observation("root"), NodeStatus.OPEN),
    )

def pop(seq):
    drafts = []
    for i in range(3):  # the same pages in another order for everyone: many want to keep the same content
        seen = Outcome(Observation(f"page {hash((seq * 7 + i * 3)) % 20} " * 40, "f"), NodeStatus.OPEN)
        done = Completion("go", (1, 2, 3), (-1.0, -2.0, -3.0), policy_version="v1")
        drafts.append(Draft(
            after=0, slot=i, mult=1, share=0.25, seed=seq * 4 + i, completion=done, action=Action.of("go", to=i),
            outcome=seen,
        ))
    spent = Spent(expansions=1, policy_tokens=9, env_steps=3)
    return Expansion(seq=seq, node=0, closing=False, drawn=3, outcome=None, drafts=tuple(drafts), spent=spent)
"""

WRITE = """
async def grow(store, name):
    header = header_of(name)
    await store.create(header)
    for seq in range(int(sys.argv[4])):
        await store.append(header.tree_id, pop(seq), 1 + 3 * seq)
        entry = await store.journal.intent(header.tree_id, 1, seq, "[]")

async def main():
    with TreeStore.open(sys.argv[1]) as store:
        names = [f"{sys.argv[2]}-{i}" for i in range(int(sys.argv[3]))]
        await asyncio.gather(*(grow(store, name) for name in names))

asyncio.run(main())
"""

HOLD = """
async def main():
    with TreeStore.open(sys.argv[1]) as store:
        lease = store.queue.lease("r", "first", 0.5)
        store.hold(lease)
        await store.create(header_of("t"))
        for seq in range(10**6):
            try:
                await store.append(lease.tree_id, pop(seq), 1 + 3 * seq)
            except Fenced as error:
                print("fenced", error, flush=True)
                return
            print(seq, flush=True)
            await asyncio.sleep(0.02)

asyncio.run(main())
"""


def child(code: str, *arguments: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMON + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def header_of(name: str) -> TreeHeader:
    root = Outcome(Observation("root"), NodeStatus.OPEN)
    return TreeHeader(
        run="r", task=Task("kg", name, "g"), attempt=0, seed=1, policy_version="v1", settings={"w": 1}, root=root
    )


def pop(seq: int) -> Expansion:
    seen = Outcome(Observation("a page", "f"), NodeStatus.OPEN)
    done = Completion("go", (1, 2, 3), (-1.0, -2.0, -3.0), policy_version="v1")
    drafts = tuple(
        Draft(
            after=0,
            slot=i,
            mult=1,
            share=0.25,
            seed=seq * 4 + i,
            completion=done,
            action=Action.of("go", to=i),
            outcome=seen,
        )
        for i in range(3)
    )
    return Expansion(
        seq=seq,
        node=0,
        closing=False,
        drawn=3,
        outcome=None,
        drafts=drafts,
        spent=Spent(expansions=1, policy_tokens=9, judge_tokens=0, env_steps=3),
    )


def wait_for_lease(store: Any, seconds: float = 30.0) -> Any:
    """Leases the one task as soon as its first owner's lease has ended."""
    end = time.monotonic() + patient(seconds)
    while (lease := store.queue.lease("r", "second", 30)) is None:
        assert time.monotonic() < end, "the lease of a process that is gone never ended"
        time.sleep(0.05)
    return lease


def test_eight_processes_write_one_database_without_a_lock_error(postgres_url: str) -> None:
    children = [child(WRITE, postgres_url, i, TREES, POPS) for i in range(WRITERS)]
    for one in children:
        _, errors = one.communicate(timeout=300)
        assert one.returncode == 0, errors
    with TreeStore.open(postgres_url, read_only=True) as store:
        rows = store.trees()
        assert len(rows) == WRITERS * TREES and {row.nodes for row in rows} == {1 + 3 * POPS}
        assert len(store.journal.pending()) == WRITERS * TREES * POPS
        assert store.check() == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_the_task_of_a_process_that_is_gone_goes_on_elsewhere_and_its_old_owner_is_fenced(
    postgres_url: str, how: signal.Signals
) -> None:
    with TreeStore.open(postgres_url) as store:
        tree_id = header_of("t").tree_id
        assert store.queue.add("r", [tree_id]) == 1
        first = child(HOLD, postgres_url)
        said = [not_none(first.stdout).readline() for _ in range(5)]
        assert said[-1] == "4\n", not_none(first.stderr).read() if first.poll() else said
        first.send_signal(how)
        lease = await asyncio.to_thread(wait_for_lease, store)
        assert (lease.tree_id, lease.token, lease.tries) == (tree_id, 2, 2)
        store.hold(lease)
        kept = len(store.expansions(tree_id))
        assert kept >= 5
        await store.append(tree_id, pop(kept), 1 + 3 * kept)
        if how == signal.SIGSTOP:
            first.send_signal(signal.SIGCONT)
            out, err = first.communicate(timeout=300)
            assert "fenced" in out and "went to another process" in out, err
        else:
            first.wait(30)
            assert first.returncode == -signal.SIGKILL
        assert len(store.expansions(tree_id)) == kept + 1
        store.queue.done(lease)
        assert store.queue.counts("r") == {"waiting": 0, "leased": 0, "done": 1, "failed": 0}
        assert store.check() == []


async def test_a_stale_owner_cannot_write_anything(postgres_url: str) -> None:
    with TreeStore.open(postgres_url) as old, TreeStore.open(postgres_url) as new:
        tree_id = header_of("t").tree_id
        old.queue.add("r", [tree_id])
        stale = old.queue.lease("r", "old", 0.0)
        old.hold(not_none(stale))
        await old.create(header_of("t"))
        entry = await old.journal.intent(tree_id, 1, 0, "[]")
        fresh = new.queue.lease("r", "new", 30.0)
        new.hold(not_none(fresh))
        await new.append(tree_id, pop(0), 1)
        for late in (
            lambda: old.append(tree_id, pop(0), 1),
            lambda: old.interrupt(tree_id),
            lambda: old.finish(new.load(tree_id)),
            lambda: old.journal.intent(tree_id, 1, 1, "[]"),
            lambda: old.journal.dispatched(entry),
        ):
            with pytest.raises(Fenced):
                await late()
        ways: tuple[Callable[[Any], Any], ...]
        ways = (old.queue.done, old.queue.give_back, lambda lease: old.queue.renew(lease, 9.0))
        for way in ways:
            with pytest.raises(Fenced):
                way(stale)
        await new.journal.dispatched(entry)
        await new.journal.outcome(entry, JournalState.IN_DOUBT)


async def test_two_processes_that_grow_the_same_tree_without_leases_cannot_mix_it_up(postgres_url: str) -> None:
    with TreeStore.open(postgres_url) as one, TreeStore.open(postgres_url) as two:
        await one.create(header_of("t"))
        tree_id = header_of("t").tree_id
        await one.append(tree_id, pop(0), 1)
        await two.append(tree_id, pop(1), 4)
        with pytest.raises(StoreError):
            await one.append(tree_id, pop(1), 4)
        assert len(one.expansions(tree_id)) == 2 and one.check() == []


def test_tasks_are_leased_in_order_once_each_and_fail_after_their_last_try(postgres_url: str) -> None:
    with TreeStore.open(postgres_url) as store:
        queue, trees = store.queue, [header_of(f"t{i}").tree_id for i in range(4)]
        assert (queue.add("r", trees[:3]), queue.add("r", trees)) == (3, 1)
        leases = [queue.lease("r", "me", 60) for _ in range(5)]
        assert [lease and lease.position for lease in leases] == [0, 1, 2, 3, None]
        assert queue.lease("other run", "me", 60) is None
        for tries in (1, 2, 3):
            lease = leases[1] if tries == 1 else queue.lease("r", "me", 60)
            assert (not_none(lease).tree_id, not_none(lease).tries) == (trees[1], tries)
            queue.give_back(not_none(lease), "no root")
        assert queue.failures("r") == {trees[1]: "no root"}
        assert queue.counts("r") == {"waiting": 0, "leased": 3, "done": 0, "failed": 1}
        queue.add("r", trees)
        assert queue.counts("r")["waiting"] == 1


def test_a_file_has_no_queue(tmp_path: Path) -> None:
    with TreeStore.open(tmp_path / "t.db") as store, pytest.raises(StoreError, match="use a postgresql:// store"):
        store.queue  # noqa: B018


def test_upkeep_waits_until_nobody_writes(postgres_url: str) -> None:
    from treewright.search.store.database import database_at

    with TreeStore.open(postgres_url):
        database = database_at(postgres_url)
        with pytest.raises(StoreError, match=r"is being written by treewright \d+"):
            database.own(exclusive=True)
    database = database_at(postgres_url)
    assert database.own(exclusive=True)
    database.release()
