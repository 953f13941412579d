"""Load for a long time, and whether anything grows: memory, files, processes, connections, latency.

    python -P tests/faults/soak.py [--quick] [--minutes 30] [--only NAME …] [--json FILE]

mazes     200 maze tasks at once, round after round, in a store
browsers  32 browser contexts of the market at once, round after round
store     a store of 1e6 nodes (--nodes) that is written while three viewers and an export read it
loop      `treewright loop` on the packaged model: collects, trains, serves; --minutes long after 1,200 updates, the
          others a sixth of it

How a slope is told from noise: `tests/helpers/slopes.py`. --quick takes seconds for each, fewer tasks and nodes, leaves
the loop out, and minds only what rises twenty times as much: caches are still filling then.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from mazewalk import walker
from slopes import Sampler, Slope

from treewright.agent.runs.collect import collect, open_worlds
from treewright.agent.runs.figures import write_figures
from treewright.envs import suite
from treewright.envs.types import Suite, Task
from treewright.search.engine import Settings
from treewright.search.rules import best_first
from treewright.search.store import TreeStore
from treewright.search.types import Budget

__all__ = ["SCENES", "Size", "main", "rounds"]

LEAST = 25  # samples of a scene: two for each block of what is left after warming up
COMMAND = [sys.executable, "-P", "-m", "treewright"]


@dataclass(frozen=True, slots=True)
class Size:
    """How long and how much."""

    seconds: float
    loop_seconds: float
    warm: float = 120.0  # seconds of rounds before the first sample: until then SQLite fills its cache of pages
    updates: int = 1200  # of the loop before its first sample: it remembers the last thousand
    tasks: int = 200
    contexts: int = 32
    nodes: int = 1_000_000
    patience: float = 1.0  # by which what must be seen to rise is multiplied
    folder: Path = field(default_factory=Path)


QUICK = Size(seconds=5.0, loop_seconds=0.0, warm=0.0, tasks=20, contexts=2, nodes=30_000, patience=20.0)


async def rounds(
    work: Callable[[int], Awaitable[Any]], seconds: float, sampler: Sampler, least: int = LEAST, warm: float = 0.0
) -> int:
    """Does rounds of work for so long, and at least `least` of them; a sample after each, with its latency.

    warm  seconds of rounds before, without samples
    """
    first = await _warmed(work, warm)
    began, count = time.monotonic(), 0
    while count < least or time.monotonic() - began < seconds:
        at = time.perf_counter()
        await work(first + count)
        sampler(time.perf_counter() - at)
        count += 1
    return count


async def _warmed(work: Callable[[int], Awaitable[Any]], seconds: float) -> int:
    """The number of rounds done."""
    began, count = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        await work(count)
        count += 1
    return count


async def grow(
    found: Suite,
    tasks: Sequence[Task],
    sessions: int,
    run: str,
    store: TreeStore | None = None,
    policy: Any = walker,
    expansions: int = 3,
) -> None:
    """One batch of trees, all at once, with pools of its own."""
    async with open_worlds([found], sessions=sessions) as worlds:
        trees = await collect(
            tasks, worlds, policy, rule=best_first(2, 2), budget=Budget(expansions=expansions),
            settings=Settings(run=run, max_tokens=64), store=store, concurrency=len(tasks),
        )  # fmt: skip
    if len(trees) != len(tasks):
        raise RuntimeError(f"{len(tasks) - len(trees)} of {len(tasks)} tasks of {found.name} failed")


def many(found: Suite, count: int) -> list[Task]:
    """So many tasks of a suite, under names of their own where it has fewer."""
    some = list(found.tasks("train", count))
    return [replace(some[i % len(some)], id=f"{some[i % len(some)].id}-{i}") for i in range(count)]


def mazes(size: Size, sampler: Sampler) -> int:
    found = suite("maze")
    tasks = many(found, size.tasks)
    with TreeStore.open(size.folder / "mazes.sqlite") as store:
        return asyncio.run(
            rounds(lambda i: grow(found, tasks, size.tasks, f"r{i}", store), size.seconds, sampler, warm=size.warm)
        )


def browsers(size: Size, sampler: Sampler) -> int:
    from treewright.agent.policies.scripted import ScriptedPolicy

    found = suite("market")
    tasks = list(found.tasks("train", size.contexts))
    policy = ScriptedPolicy(lambda task, turns, tools, rng: f'click {{"ref": "e{rng.randint(1, 6)}"}}', name="clicks")
    kept = replace(found, close=None)  # one browser, new contexts: that is what a long run has

    async def all_rounds() -> int:
        try:
            return await rounds(
                lambda i: grow(kept, tasks, size.contexts, f"r{i}", policy=policy, expansions=1), size.seconds, sampler
            )
        finally:
            assert found.close is not None
            await found.close()

    return asyncio.run(all_rounds())


def store(size: Size, sampler: Sampler) -> int:
    """Rounds of the writer; three viewers are asked all the time, and an export runs again and again."""
    from treewright.benchmarks.store_load import _load

    path = size.folder / "large.sqlite"
    _load(str(path), size.nodes)
    found = suite("maze")
    tasks = many(found, 20)
    over, waits, exports = threading.Event(), list[float](), list[int]()
    viewers = [viewer(path) for _ in range(3)]
    asking = [threading.Thread(target=ask, args=(base, over, waits)) for _, base in viewers]
    asking.append(threading.Thread(target=export, args=(path, size.folder, over, exports)))
    try:
        with TreeStore.open(path) as held:
            asyncio.run(grow(found, tasks, 20, "first", held))
            for thread in asking:
                thread.start()

            async def work(i: int) -> None:
                await grow(found, tasks, 20, f"r{i}", held)
                await held.flush()

            count = asyncio.run(rounds(work, size.seconds, sampler, warm=size.warm))
    finally:
        over.set()
        for thread in asking:
            thread.join() if thread.is_alive() else None
        for process, _ in viewers:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
    if not exports or min(exports) < 0 or len(waits) < count:
        raise RuntimeError(f"{len(exports)} exports, {len(waits)} answers of viewers: the readers were not at work")
    sampler.values["latency_s"] = waits  # of the readers: the writer's own work grows with nothing
    return count


def viewer(path: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [*COMMAND, "view", str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://\S+/", line):
            return process, found[0]
    raise RuntimeError("a viewer ended without an address")


def ask(base: str, over: threading.Event, waits: list[float]) -> None:
    """Lists, a tree and a path, as a page that is open asks for them."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(page: str) -> bytes:
        at = time.perf_counter()
        with opener.open(base + page, timeout=120) as answer:
            raw: bytes = answer.read()
        waits.append(time.perf_counter() - at)
        return raw

    while not over.is_set():
        rows = json.loads(get("api/list?run=first"))["rows"]
        for row in rows[:2]:
            tree = urllib.request.quote(row["id"], safe="")  # type: ignore[attr-defined]
            get(f"api/tree/{tree}"), get(f"api/path/{tree}/1"), get("api/pulse")


def export(path: Path, folder: Path, over: threading.Event, done: list[int]) -> None:
    while not over.is_set():
        line = ["export", str(folder / f"out{len(done)}"), "--store", str(path), "--run", "first", "--formats", "raw",
                "--file-type", "jsonl", "--inexact"]  # fmt: skip
        ended = subprocess.run([*COMMAND, *line], capture_output=True, text=True, timeout=600, check=False)
        if ended.returncode:
            print(ended.stdout[-500:], ended.stderr[-500:], file=sys.stderr)
        done.append(-1 if ended.returncode else 1)


def loop(size: Size, sampler: Sampler) -> int:
    """The command itself, from outside: a sample every second.

    Its latency is the processor's time for 1,000 tokens sampled, read and trained on: what the policy learns changes
    how long its episodes are, and other programs how long a second of the processor takes.
    """
    line = ["loop", "--name", "soak", "--suites", "kg", "--policy", "seedling", "--set", "loop.iterations=100000",
            "--set", "loop.tasks=6", "--set", "search.expansions=4"]  # fmt: skip
    process = subprocess.Popen([*COMMAND, *line], cwd=size.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    sampler.pid = process.pid
    metrics = size.folder / "runs" / "soak" / "metrics.jsonl"
    try:
        work, costs = Work(process.pid, metrics), list[float]()
        while work.rows < size.updates and process.poll() is None:
            time.sleep(1.0)
            work.costs()
        sampler.began = time.monotonic()
        while time.monotonic() < sampler.began + size.loop_seconds and process.poll() is None:
            time.sleep(1.0)
            sampler()
            costs += work.costs()
        if process.poll() is not None:
            assert process.stderr is not None
            raise RuntimeError(f"the loop ended by itself: {process.stderr.read().decode()[-800:]}")
    finally:
        if process.poll() is None:
            process.terminate()  # heard in the background of a shell, too
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=120)
        process.kill()
    rows = [json.loads(row) for row in metrics.read_text().splitlines()]
    if sum(row["trained_tokens"] > 0 for row in rows) < len(rows) / 2:
        raise RuntimeError("fewer than half of the updates had anything to learn from: that is no load")
    sampler.values["latency_s"] = costs
    return len(rows)


class Work:
    """What a loop's work has cost since it was last asked: processor seconds for 1,000 tokens."""

    LEAST = 20_000  # tokens of one figure: some updates
    KINDS = ("sampled_tokens", "prompt_computed", "trained_packed")

    def __init__(self, pid: int, metrics: Path) -> None:
        self.stat, self.metrics, self.at = Path(f"/proc/{pid}/stat"), metrics, 0
        self.tokens, self.spent, self.rows = 0.0, 0.0, 0

    def costs(self) -> list[float]:
        """One figure, or none while too little was done."""
        if not self.metrics.exists():
            return []
        with self.metrics.open("rb") as file:
            file.seek(self.at)
            rows = file.read().rpartition(b"\n")[0]
        self.at += len(rows) + bool(rows)
        self.rows += len(rows.splitlines())
        self.tokens += sum(json.loads(row)["meter"][kind] for row in rows.splitlines() for kind in self.KINDS)
        if self.tokens < self.LEAST:
            return []
        used = sum(map(int, self.stat.read_text().rpartition(")")[2].split()[11:15])) / os.sysconf("SC_CLK_TCK")
        before, tokens = self.spent, self.tokens
        self.spent, self.tokens = used, 0.0
        return [1000 * (used - before) / tokens] if before else []  # the first holds the start of the program


SCENES: dict[str, Callable[[Size, Sampler], int]] = {"mazes": mazes, "browsers": browsers, "store": store, "loop": loop}


def report(name: str, slopes: dict[str, Slope], count: int) -> dict[str, tuple[float, str]]:
    """The figures of one scene, which are printed as well."""
    out = {f"soak_{name}_rounds": (float(count), "rounds")}
    for measure, s in slopes.items():
        mark = "  ABOVE NOISE" if s.above_noise else ""
        print(f"{name:9} {measure:12} mean {s.mean:10.3f}  rise {s.rise:+9.3f} [{s.low:+.3f}, {s.high:+.3f}]{mark}")
        unit = {"memory_mib": "MiB", "latency_s": "s"}.get(measure, measure)
        for part in ("mean", "rise", "low", "high"):
            out[f"soak_{name}_{measure}_{part}"] = (float(getattr(s, part)), unit)
    out[f"soak_{name}_slopes_above_noise"] = (float(sum(s.above_noise for s in slopes.values())), "slopes")
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the loop; the others take a sixth")
    parser.add_argument("--nodes", type=int, help="of the store; 1,000,000, with --quick 30,000")
    parser.add_argument("--only", nargs="+", choices=list(SCENES))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    whole = Size(seconds=asked.minutes * 10, loop_seconds=asked.minutes * 60)
    size = QUICK if asked.quick else whole
    size = replace(size, nodes=asked.nodes or size.nodes)
    figures: dict[str, tuple[float, str]] = {}
    left_out, began = [], time.monotonic()
    for name in asked.only or SCENES:
        if name == "loop" and not size.loop_seconds:
            left_out.append(name)
            continue
        with tempfile.TemporaryDirectory(prefix="tw-soak-") as folder:
            # In a process of its own: nothing of another scene is in its memory.
            figures |= apart(name, replace(size, folder=Path(folder)))
    total = sum(value for key, (value, _) in figures.items() if key.endswith("_slopes_above_noise"))
    figures["soak_slopes_above_noise"] = (total, "slopes")
    figures["soak_minutes"] = ((time.monotonic() - began) / 60, "minutes")
    print(f"{total:.0f} slopes above noise{'; left out: ' + ', '.join(left_out) if left_out else ''}")
    if asked.json:
        write_figures(asked.json, figures, quick=asked.quick, left_out=left_out)
    return 1 if total else 0


def apart(name: str, size: Size) -> dict[str, tuple[float, str]]:
    """One scene in a forked process; its figures. Raises RuntimeError where it failed, its error stands above."""
    told = size.folder / "figures.json"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            sampler = Sampler()
            count = SCENES[name](size, sampler)
            told.write_text(json.dumps(report(name, sampler.slopes(size.patience), count)))
            sys.stdout.flush()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1] or not told.exists():
        raise RuntimeError(f"the scene {name} failed; its error stands above")
    return {key: (float(value), str(unit)) for key, (value, unit) in json.loads(told.read_text()).items()}


if __name__ == "__main__":
    sys.exit(main())
