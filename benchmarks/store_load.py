"""`treewright bench store`: how fast nodes go in, come out as arrays and are looked up.

Nodes carry 200 token ids, their log-probs and a text of 200 characters; trees have 10,000 of them. Nothing is timed
before a small store of the same kind was loaded, checked and read back equal.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from treewright.envs.types import Action, Observation, Task
from treewright.search.store.bulk import Columns, load_trees
from treewright.search.store.database import database_at
from treewright.search.store.errors import StoreError
from treewright.search.store.models import nodes
from treewright.search.store.tree_store import TreeStore
from treewright.search.tree import TreeHeader
from treewright.search.types import NodeStatus, Outcome

__all__ = ["Figures", "main"]

TOKENS, WIDTH, TREE = 200, 4, 10_000  # tokens of a node, children of a node, nodes of a tree
LOOKUPS = 5000
POSTGRES = "TREEWRIGHT_BENCH_POSTGRES"

Figures = dict[str, tuple[float, str]]


def main(
    quick: bool = False,
    json_path: str | None = None,
    plot_path: str | None = None,
    more: Callable[[str], Figures] | None = None,
) -> Figures:
    """{name: (value, unit)}: store_rows_per_s, arrays_s, arrays_nodes, child_lookup_p99_ms, and postgres_rows_per_s.

    store_append_rows_per_s   the same nodes pop by pop, as the engine writes them, into a file
    store_load_resident_mb    MB that a process of its own holds at most while it loads, above what it held before
    postgres_arrays_s         arrays of what went into PostgreSQL

    Figures of PostgreSQL need an empty database, named in TREEWRIGHT_BENCH_POSTGRES. `json_path` gets figures alone;
    the command line adds hardware, versions and commit. `more` measures something else on the same file.
    Raises StoreError if what comes back is not equal.
    """
    total = 50_000 if quick else 1_000_000
    with tempfile.TemporaryDirectory(prefix="treewright-bench-") as folder:
        _gate(Path(folder) / "gate.db")
        path = str(Path(folder) / "trees.db")
        figures = _measure(path, total)
        if more is not None:
            figures |= more(path)
    if (url := os.environ.get(POSTGRES)) is not None:
        rows, seconds = _load(url, total // 10)
        figures["postgres_rows_per_s"] = (rows / seconds, "rows/s")
        figures["postgres_arrays_s"] = (_arrays(url, rows), "s")
    if json_path is not None:
        _write(Path(json_path), figures, quick)
    if plot_path is not None:
        _plot(Path(plot_path), figures)
    return figures


def _measure(path: str, total: int) -> Figures:
    rows, seconds = _load(path, total)
    with tempfile.TemporaryDirectory(prefix="treewright-bench-") as folder:
        appended = _apart("append", folder, total // 10)
    with tempfile.TemporaryDirectory(prefix="treewright-bench-") as folder:
        loaded = _apart("load", folder, total)
    return {
        "store_rows_per_s": (rows / seconds, "rows/s"),
        "store_append_rows_per_s": (max(total // 10 // TREE, 1) * TREE / appended["seconds"], "rows/s"),
        "store_load_resident_mb": (loaded["resident_mb"], "MB"),
        "arrays_s": (_arrays(path, rows), "s"),
        "arrays_nodes": (float(rows), "nodes"),
        "child_lookup_p99_ms": (_lookups(path, max(total // TREE, 1)), "ms"),
        "store_bytes_per_row": (Path(path).stat().st_size / rows, "B"),
    }


def _arrays(url: str, rows: int) -> float:
    """Seconds for the arrays of every tree."""
    with TreeStore.open(url, read_only=True) as store:
        names = [row.tree_id for row in store.trees()]
        with _timed() as took:
            columns = store.arrays(names)
    if len(columns["node"]) != rows:
        raise StoreError(f"{rows} rows of nodes were written, {len(columns['node'])} came back")
    return took()


def _apart(way: str, place: str, rows: int) -> dict[str, Any]:
    """What `store_ways` prints, of a process of its own. Raises StoreError if that fails."""
    command = [sys.executable, "-m", "treewright.benchmarks.store_ways", way, place, str(rows)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise StoreError(f"{' '.join(command[2:])} ended with {ran.returncode}: {ran.stderr.strip()[-500:]}")
    return dict(json.loads(ran.stdout))


def _load(url: str, total: int) -> tuple[int, float]:
    """Rows written and seconds: of the writing alone, the columns were made before."""
    some = [_columns(seed) for seed in range(4)]
    given = [(_header(i), some[i % len(some)]) for i in range(max(total // TREE, 1))]
    with _timed() as took:
        rows = load_trees(url, given)
    return rows, took()


def _lookups(path: str, trees: int) -> float:
    """99th percentile in milliseconds of reading the children of a random node by the driver's own cursor."""
    database, rng = database_at(path, read_only=True), np.random.default_rng(0)
    asked = zip(
        rng.integers(1, trees + 1, LOOKUPS).tolist(), rng.integers(0, TREE // WIDTH, LOOKUPS).tolist(), strict=True
    )
    times = []
    try:
        with database.reader().connect() as connection:
            cursor = connection.connection.cursor()
            sql = f"SELECT id, text, action, status, reward, score FROM {nodes.name} WHERE tree = ? AND parent = ?"
            for tree, parent in asked:
                began = time.perf_counter()
                found = cursor.execute(sql, (tree, parent)).fetchall()
                times.append(time.perf_counter() - began)
                if not found:
                    raise StoreError(f"tree number {tree}: node {parent} has no children")
    finally:
        database.release()
    return float(np.percentile(times, 99) * 1000)


def _gate(path: Path) -> None:
    """A tree that went in as columns is whole and comes out equal."""
    columns = _columns(0)
    load_trees(path, [(_header(0), columns)])
    with TreeStore.open(path, read_only=True) as store:
        damage, (row,) = store.check(), store.trees()
        tree = store.load(row.tree_id)
    if damage or tree.parent[1:] != columns.parent.tolist() or tree.ids[-1] != tuple(columns.ids[-TOKENS:].tolist()):
        raise StoreError(f"the store does not give back what went in: {damage or 'another tree'}")


def _header(index: int) -> TreeHeader:
    root = Outcome(Observation("the first page"), NodeStatus.OPEN)
    return TreeHeader(
        run="bench",
        task=Task("bench", f"{index}", "measure"),
        attempt=0,
        seed=index,
        policy_version="v1",
        settings={},
        root=root,
    )


def _columns(seed: int) -> Columns:
    rng, n = np.random.default_rng(seed), TREE - 1
    words = [f"w{i:02d} " for i in range(50)]
    return Columns(
        parent=np.arange(n) // WIDTH,
        text=["".join(words[(i + j) % 50] for j in range(50)) for i in range(n)],
        sizes=np.full(n, TOKENS),
        ids=rng.integers(0, 150_000, n * TOKENS, dtype=np.int32),
        logprobs=-rng.random(n * TOKENS, dtype=np.float32),
        seed=rng.integers(0, 2**62, n),
        action=[Action.of("click", ref=f"e{i % 50}").key for i in range(n)],
        score=rng.random(n),
        pages=[Observation(f"page {i} " * 200, f"f{i}") for i in range(20)],
        seen=rng.integers(0, 20, n),
        reward=np.zeros(n),
    )


@contextmanager
def _timed() -> Iterator[Callable[[], float]]:
    began, ended = time.perf_counter(), [0.0]
    yield lambda: ended[0]
    ended[0] = time.perf_counter() - began


def _write(path: Path, figures: Figures, quick: bool) -> None:
    body: dict[str, Any] = {"figures": {k: {"value": v, "unit": unit} for k, (v, unit) in figures.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body | {"quick": quick}, indent=1) + "\n")


def _plot(path: Path, figures: Figures) -> None:
    try:
        drawing = import_module("matplotlib.figure")
    except ImportError:
        raise StoreError("a plot needs matplotlib: pip install 'treewright[plot]', or leave --plot out") from None
    figure = drawing.Figure(figsize=(6, 2.5))
    axes = figure.subplots()
    names = [name for name, (_, unit) in figures.items() if unit == "rows/s"]
    axes.barh(names, [figures[name][0] for name in names])
    axes.set_xlabel("node rows per second")
    figure.savefig(path, bbox_inches="tight")
