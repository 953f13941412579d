"""The ways into a store and out of it, each as a function of a place and a size, to compare builds with.

    python -m treewright.benchmarks.store_ways load FOLDER_OR_URL ROWS

prints {"seconds", "processor", "resident_mb", "digest"}; a place is an empty folder or the URL of an empty database.
Two builds that store the same print the same digest. The names used here are those of every build since `load_trees`.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from treewright.benchmarks import store_load
from treewright.envs.errors import TreewrightError
from treewright.search.store import TreeStore
from treewright.search.store.bulk import load_trees

__all__ = ["WAYS", "Ran", "append", "arrays", "load"]

KINDS = 2  # trees that differ


@dataclass(frozen=True, slots=True)
class Ran:
    """seconds by the clock, processor seconds of this process, MB that were resident at most above before, digest."""

    seconds: float
    processor: float
    resident_mb: float
    digest: str


def load(where: str, rows: int) -> Ran:
    """Whole trees as columns by `load_trees`."""
    path, given = _path(where), _trees(rows)
    return _run(lambda: load_trees(path, iter(given)), lambda _: _stored(path))


def append(where: str, rows: int) -> Ran:
    """The same trees pop by pop through `TreeStore.append`, as the engine writes them; each pop is awaited later."""
    if "://" in where:
        raise TreewrightError(f"cannot append at {where}: trees are made in a file beside it; name a folder")
    path, given = _path(where), _trees(rows)
    beside = f"{path}.before"
    load_trees(beside, given[:1])
    with TreeStore.open(beside, read_only=True) as store:
        grown = store.expansions(given[0][0].tree_id)

    async def write() -> None:
        with TreeStore.open(path) as store:
            for header, _ in given:
                store.create(header)
                at = 1
                for expansion in grown:
                    store.append(header.tree_id, expansion, at)
                    at += len(expansion.drafts)
                await store.flush()

    return _run(lambda: asyncio.run(write()), lambda _: _stored(path))


def arrays(where: str, rows: int) -> Ran:
    """Numpy columns of every tree by `TreeStore.arrays`."""
    path = _path(where)
    load_trees(path, _trees(rows))
    with TreeStore.open(path, read_only=True) as store:
        names = [row.tree_id for row in store.trees()]
        return _run(lambda: store.arrays(names), _columns_digest)


WAYS: dict[str, Callable[[str, int], Ran]] = {"load": load, "append": append, "arrays": arrays}


def _run(work: Callable[[], Any], digest: Callable[[Any], str]) -> Ran:
    before, began, used = _resident(), time.perf_counter(), time.process_time()
    found = work()
    seconds, processor = time.perf_counter() - began, time.process_time() - used
    return Ran(seconds, processor, max(_peak() - before, 0.0), digest(found))


def _path(where: str) -> str:
    return where if "://" in where else str(Path(where) / "trees.db")


def _trees(rows: int) -> list[Any]:
    some = [store_load._columns(seed) for seed in range(KINDS)]
    return [(store_load._header(i), some[i % KINDS]) for i in range(max(rows // store_load.TREE, 1))]


def _stored(path: str) -> str:
    """Over structure, texts, tokens and log-probs of all nodes, as a reader sees them."""
    total = blake2b(digest_size=16)
    with TreeStore.open(path, read_only=True) as store:
        for row in store.trees():
            total.update(store.load(row.tree_id).digest().encode())
    return total.hexdigest()


def _columns_digest(found: Any) -> str:
    total = blake2b(digest_size=16)
    for name in ("tree", "node", "parent", "born", "mult", "drawn", "share", "reward", "status", "n_tokens"):
        total.update(found[name].tobytes())
    return total.hexdigest()


def _resident() -> float:
    """MB resident now. Linux tells; elsewhere the most there ever was."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
    except OSError:
        return _peak()


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0) / 1e6


if __name__ == "__main__":
    way, place, size = sys.argv[1:]
    print(json.dumps(asdict(WAYS[way](place, int(size)))))
