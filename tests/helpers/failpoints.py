"""The command `treewright` as it is typed, with something that happens to it at a named point.

    python failpoints.py collect --suites kg          # WHERE and WHAT come by the environment

Points are what the process does to files below TREEWRIGHT_POINTS: `open`, `rename`, `remove`, `mkdir`, `rmdir` and
`sync`, by Python's own audit events, and `commit` and `committed` of a store; each with the file's name. The product
knows nothing of them. TREEWRIGHT_POINT is the number of the point at which TREEWRIGHT_FATE comes: `kill`, `term`,
`int`, `stop`, or `full`, which is an OSError of a full disk there and at every later point until the process ends.
`clock` moves the clock of the day by hours at every point. The points are written to TREEWRIGHT_POINTS_LOG, what the
store acknowledged to TREEWRIGHT_ACKNOWLEDGED: each one line in one write, so that they outlive the process.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT, "stop": signal.SIGSTOP}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
NAMES = {"open": "open", "os.rename": "rename", "os.remove": "remove", "os.mkdir": "mkdir", "os.rmdir": "rmdir"}


def line(file: str, text: str) -> None:
    """One line, in one write."""
    out = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(out, f"{text}\n".encode())
    os.close(out)


class Points:
    """Counts the points of this process; its fate comes at one of them."""

    def __init__(self, below: Path, at: int | None, fate: str, log: str) -> None:
        self.below, self.at, self.fate, self.log = f"{below}{os.sep}", at, fate, log
        self.count, self.inside = 0, threading.local()

    def heard(self, event: str, given: tuple[Any, ...]) -> None:
        name = NAMES.get(event)
        if name is None or (event == "open" and not (isinstance(given[2], int) and given[2] & WRITES)):
            return
        file = given[1] if event == "os.rename" else given[0]
        if isinstance(file, str | os.PathLike):
            self.point(name, os.path.abspath(os.fspath(file)))

    def point(self, name: str, file: object) -> None:
        """One point, if the file is one of those that count."""
        if getattr(self.inside, "counts", False) or not str(file).startswith(self.below):
            return
        self.inside.counts = True
        try:
            here, self.count = self.count, self.count + 1
            if self.log:
                line(self.log, f"{name} {str(file)[len(self.below) :]}")
            if self.fate in SIGNALS and here == self.at:
                os.kill(os.getpid(), SIGNALS[self.fate])
        finally:
            self.inside.counts = False
        if self.fate == "full" and self.at is not None and here >= self.at and name not in ("remove", "rmdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))


def watch(points: Points) -> None:
    """Files by audit events, what reaches the disk by os.fsync, stores by their engines' own events."""
    from sqlalchemy import Engine, event

    sys.addaudithook(points.heard)
    sync = os.fsync

    def synced(fd: Any) -> None:
        number = fd if isinstance(fd, int) else fd.fileno()
        points.point("sync", os.readlink(f"/proc/self/fd/{number}"))
        sync(fd)

    os.fsync = synced

    changes: dict[int, int] = {}  # by connection: what was written, when it was last asked
    ended: set[int] = set()

    def commit(connection: Any) -> None:
        raw = connection.connection.driver_connection
        if connection.dialect.name != "sqlite" or raw.total_changes == changes.get(id(raw), 0):
            return
        changes[id(raw)] = raw.total_changes
        ended.add(id(raw))
        store(raw, "commit")

    def begin(connection: Any) -> None:
        raw = connection.connection.driver_connection
        if id(raw) in ended:
            ended.discard(id(raw))
            store(raw, "committed")

    def store(raw: Any, name: str) -> None:
        if points.fate != "full":  # SQLite's own writes fail on a small disk, not here
            points.point(name, raw.execute("PRAGMA database_list").fetchone()[2])

    event.listen(Engine, "commit", commit)
    event.listen(Engine, "begin", begin)


def acknowledge(file: str) -> None:
    """Leaves `TREE EXPANSION` in the file for each that the store has acknowledged, `TREE done` for a finished tree."""
    from treewright.search.store import TreeStore

    append, finish = TreeStore.append, TreeStore.finish

    def told(text: str) -> Any:
        return lambda future: None if future.cancelled() or future.exception() else line(file, text)

    def appended(self: Any, tree_id: str, expansion: Any, first_id: int) -> Any:
        future = append(self, tree_id, expansion, first_id)
        future.add_done_callback(told(f"{tree_id} {expansion.seq}"))
        return future

    def finished(self: Any, tree: Any) -> Any:
        future = finish(self, tree)
        future.add_done_callback(told(f"{tree.tree_id} done"))
        return future

    TreeStore.append = TreeStore.append_nowait = appended  # type: ignore[method-assign]
    TreeStore.finish = finished  # type: ignore[method-assign]


def jumping() -> None:
    """The clock of the day goes back and forward by up to a day, whenever it is looked at. The monotonic one stays."""
    true, rng = time.time, random.Random(0)
    time.time = lambda: true() + rng.uniform(-86_400, 86_400)
    time.time_ns = lambda: int(time.time() * 1e9)


def main() -> None:
    asked, both = os.environ, (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, both)  # what is imported here is not the command's
    point, fate = asked.get("TREEWRIGHT_POINT"), asked.get("TREEWRIGHT_FATE", "")
    if fate == "clock":
        jumping()
    if "TREEWRIGHT_ACKNOWLEDGED" in asked:
        acknowledge(asked["TREEWRIGHT_ACKNOWLEDGED"])
    if "TREEWRIGHT_POINTS" in asked:
        at = None if point is None else int(point)
        watch(Points(Path(asked["TREEWRIGHT_POINTS"]), at, fate, asked.get("TREEWRIGHT_POINTS_LOG", "")))
    from treewright.agent.cli.main import main as command

    sys.argv[0] = "treewright"
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
    except KeyboardInterrupt:
        sys.exit("it had not begun: type the same line again")
    command()


if __name__ == "__main__":
    main()
