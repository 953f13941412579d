"""Eight processes write one database: every commit acknowledged, how long each takes, stale owners fenced.

    python -P tests/faults/commits.py [--quick] [--commits 100000] [--writers 8] [--json FILE]

A commit is one expansion of three nodes, appended and waited for; PostgreSQL runs in a folder of its own and syncs. It
is timed as its writer sees it. Meanwhile owners of a task are stopped (SIGSTOP) until their lease has ended and another
has gone on; let go on, they must be refused. At last everything that was acknowledged is looked for in the store.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from databases import cluster, missing
from speed import patient

from treewright.agent.runs.figures import write_figures
from treewright.envs.types import Action, Observation, Task
from treewright.search.store import Fenced, StoreError, StoreLost, TreeStore
from treewright.search.tree import TreeHeader
from treewright.search.types import Completion, Draft, Expansion, NodeStatus, Outcome, Spent

__all__ = ["main", "measure"]

QUICK, FULL, WRITERS = 2_000, 100_000, 8
POPS, NODES = 50, 3  # expansions of a tree, nodes of an expansion
LEASE = 0.5


def header(name: str) -> TreeHeader:
    root = Outcome(Observation("root"), NodeStatus.OPEN)
    return TreeHeader(
        run="r", task=Task("kg", name, "g"), attempt=0, seed=1, policy_version="v1", settings={}, root=root
    )


def pop(seq: int) -> Expansion:
    """Three nodes; the pages are those of every other writer, in another order."""
    drafts = []
    for i in range(NODES):
        seen = Outcome(Observation(f"page {(seq * 7 + i * 3) % 20} " * 40, "f"), NodeStatus.OPEN)
        done = Completion("go", (1, 2, 3), (-1.0, -2.0, -3.0), policy_version="v1")
        drafts.append(Draft(after=0, slot=i, mult=1, share=0.25, seed=seq * 4 + i, completion=done,
                            action=Action.of("go", to=i), outcome=seen))  # fmt: skip
    spent = Spent(expansions=1, policy_tokens=9, env_steps=NODES)
    return Expansion(seq=seq, node=0, closing=False, drawn=NODES, outcome=None, drafts=tuple(drafts), spent=spent)


async def write(url: str, name: str, commits: int) -> dict[str, object]:
    """So many commits, one after the other; their seconds, and errors that held one up."""
    seconds, errors = [], []
    with TreeStore.open(url) as store:
        for number in range(0, commits, POPS):
            tree = header(f"{name}-{number}")
            await store.create(tree)
            for seq in range(min(POPS, commits - number)):
                began = time.perf_counter()
                try:
                    await store.append(tree.tree_id, pop(seq), 1 + NODES * seq)
                except StoreError as error:
                    errors.append(str(error))
                    break
                seconds.append(time.perf_counter() - began)
    return {"seconds": seconds, "errors": errors}


async def hold(url: str, name: str) -> None:
    """Leases the task of that name and writes until it is refused; tells each commit, and the refusal."""
    with TreeStore.open(url) as store:
        lease = store.queue.lease(name, "first", LEASE)
        assert lease is not None
        store.hold(lease)
        await store.create(header(name))
        for seq in range(10**6):
            try:
                await store.append(lease.tree_id, pop(seq), 1 + NODES * seq)
            except (Fenced, StoreLost):  # the latter where the server ended a transaction that stood still
                print("refused", flush=True)
                return
            print(seq, flush=True)
            await asyncio.sleep(0.02)


def child(way: str, url: str, name: str, commits: int = 0) -> subprocess.Popen[str]:
    line = [sys.executable, "-P", __file__, "--as", way, "--url", url, "--name", name, "--commits", str(commits)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, text=True)


async def stopped_past_its_lease(url: str, name: str) -> bool:
    """An owner that is stopped until another has gone on is refused, and nothing that it wrote is lost or added."""
    tree = header(name).tree_id
    with TreeStore.open(url) as store:
        store.queue.add(name, [tree])
        first = child("hold", url, name)
        assert first.stdout is not None
        for _ in range(3):
            assert first.stdout.readline().strip().isdigit()
        first.send_signal(signal.SIGSTOP)
        end = time.monotonic() + patient(60)
        while (lease := store.queue.lease(name, "second", 60)) is None:
            assert time.monotonic() < end, "the lease of a stopped process never ended"
            await asyncio.sleep(0.05)
        store.hold(lease)
        kept = len(store.expansions(tree))
        await store.append(tree, pop(kept), 1 + NODES * kept)
        first.send_signal(signal.SIGCONT)
        said = first.communicate(timeout=patient(60))[0].split()
        store.queue.done(lease)
        acknowledged = 3 + sum(word.isdigit() for word in said)
        return said[-1:] == ["refused"] and acknowledged <= kept and len(store.expansions(tree)) == kept + 1


def measure(url: str, commits: int, writers: int, stops: int) -> dict[str, tuple[float, str]]:
    """All of it, in an empty database."""
    shares = [commits // writers + (i < commits % writers) for i in range(writers)]
    running = [child("write", url, f"w{i}", share) for i, share in enumerate(shares)]
    stale = sum(not asyncio.run(stopped_past_its_lease(url, f"held{i}")) for i in range(stops))
    told = [json.loads(one.communicate()[0] or "{}") for one in running]
    failed = sum(one.returncode != 0 for one in running)
    errors = [error for one in told for error in one.get("errors", ())]
    seconds = np.array([s for one in told for s in one.get("seconds", ())])
    with TreeStore.open(url, read_only=True) as store:
        kept = sum((row.nodes - 1) // NODES for row in store.trees() if row.task_id.startswith("w"))
        damage = store.check()
    for error in [*errors[:3], *damage[:3]]:
        print(error, file=sys.stderr)
    return {
        "commits": (float(len(seconds)), "commits"),
        "commits_writers": (float(writers), "processes"),
        "commits_lost": (float(max(len(seconds) - kept, 0)), "commits"),
        "commits_errors": (float(len(errors) + failed + len(damage)), "errors"),
        "commits_p50_ms": (float(np.percentile(seconds, 50)) * 1000, "ms"),
        "commits_p99_ms": (float(np.percentile(seconds, 99)) * 1000, "ms"),
        "commits_slowest_ms": (float(seconds.max()) * 1000, "ms"),
        "commits_stale_owners": (float(stops), "owners"),
        "commits_stale_not_fenced": (float(stale), "owners"),
    }


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} commits")
    parser.add_argument("--commits", type=int, help=f"{FULL}")
    parser.add_argument("--writers", type=int, default=WRITERS)
    parser.add_argument("--stops", type=int, help="owners that are stopped; 10, or 1 with --quick")
    parser.add_argument("--json", type=Path)
    for name in ("--as", "--url", "--name"):  # of the processes that this one starts
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    asked = vars(parser.parse_args(words))
    if asked["as"] == "write":
        print(json.dumps(asyncio.run(write(asked["url"], asked["name"], asked["commits"]))))
        return 0
    if asked["as"] == "hold":
        asyncio.run(hold(asked["url"], asked["name"]))
        return 0
    if (why := missing()) is not None:
        print(why, file=sys.stderr)
        return 1
    quick = asked["quick"]
    with cluster(fsync="on") as new_url:
        stops = asked["stops"] if asked["stops"] is not None else (1 if quick else 10)
        figures = measure(new_url(), asked["commits"] or (QUICK if quick else FULL), asked["writers"], stops)
    for name, (value, unit) in figures.items():
        print(f"{name:28} {value:,.4g} {unit}")
    if asked["json"] is not None:
        write_figures(asked["json"], figures, quick=quick)
    return 1 if any(figures[f"commits_{name}"][0] for name in ("lost", "errors", "stale_not_fenced")) else 0


if __name__ == "__main__":
    sys.exit(main())
