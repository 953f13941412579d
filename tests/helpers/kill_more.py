"""Trials that are more than one line and one fate: a server with clients, small and read-only disks, two processes on
one run, a big tree that is taken up again. See kill_trials.py."""

from __future__ import annotations

import http.server
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import forked
from kill_trials import (
    MARK,
    POINTS,
    Counts,
    Fate,
    Line,
    Whole,
    environment,
    left,
    looked_at,
    must,
    sentences,
    stores,
    typed,
)
from speed import patient

from treewright.search.store import TreeStore

KEY = "tw-kill-key-0123456789"
SAYS = """
import secrets
def says(task, turns, tools, rng):
    return secrets.token_hex(8)
"""


# -- serve: what a client got an answer for is recorded ---------------------------------------------------------------


def serve_line(port: int) -> Line:
    words = ("serve", "--policy", "scripted:serve_says:says", "--store", "served.sqlite", "--port", str(port))
    return Line("serve", words, lambda folder: None, lambda folder: None, env={"TREEWRIGHT_KEY": KEY})


def served(folder: Path, fate: Fate, counts: Counts) -> int:
    """A server with a client meets its fate, is started again on the same port and answers; how many calls were
    acknowledged."""
    folder.mkdir()
    (folder / "serve_says.py").write_text(SAYS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        line = serve_line(free.getsockname()[1])
    told: list[str] = []
    for again in (False, True):
        env = environment(line, folder, Fate("int") if again else fate)
        child = forked.start([POINTS, *line.words], folder, env)
        _asked(child, int(line.words[-1]), told, 3 if again else None, 0.0 if again else fate.after)
        if again or fate.after is not None:
            how = signal.SIGINT if again or fate.how == "int" else getattr(signal, f"SIG{fate.how.upper()}")
            child.send(how)
        done = child.wait(60)
        said = done.stdout + done.stderr
        where = ("serve", fate, again, done.returncode, said[-1500:])
        must("Traceback" not in said, "tracebacks", where)
        if again or fate.how != "kill":
            must(done.returncode in (0, 130, 143), "stops_unsaid", where)
            counts["stops_asked"] += 1
        else:
            assert done.returncode == -signal.SIGKILL, where
            counts["kills"] += 1
        must(not left(env[MARK]), "kills_orphans", where)
        with TreeStore.open(folder / "served.sqlite", read_only=True) as store:
            must(store.check() == [], "stores_damaged", where)
            kept = {text for row in store.trees() for text in store.load(row.tree_id).text}
        must(set(told) <= kept, "kills_lost", (where, set(told) - kept))
    return len(told)


def _asked(child: forked.Running, port: int, told: list[str], most: int | None, seconds: float | None) -> None:
    """Calls until the server is dead, so many were answered, or so many seconds have passed since the first answer."""
    until, first, count = time.monotonic() + patient(60), 0.0, 0
    while time.monotonic() < until and child.alive():
        body = {"model": "m", "messages": [{"role": "user", "content": f"go {secrets.token_hex(3)}"}]}
        head = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        url = f"http://127.0.0.1:{port}/s/{secrets.token_hex(3)}/v1/chat/completions"
        try:
            asked = urllib.request.Request(url, json.dumps(body).encode(), head)
            with urllib.request.urlopen(asked, timeout=30) as got:
                told.append(json.load(got)["choices"][0]["message"]["content"])
        except (urllib.error.URLError, OSError, ValueError):
            time.sleep(0.05)
            continue
        first, count = first or time.monotonic(), count + 1
        if (most is not None and count >= most) or (seconds and time.monotonic() > first + seconds):
            return


# -- disks ------------------------------------------------------------------------------------------------------------


@contextmanager
def disk(home: Path, size: int) -> Iterator[Path]:
    """A file system in memory of so many bytes. Raises PermissionError where it cannot be mounted: it takes root."""
    folder = home / f"disk {secrets.token_hex(4)}"
    folder.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(line, capture_output=True, check=False).returncode:
        raise PermissionError("file systems cannot be mounted here: it takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        Path(f"{folder / 'in'}.told").unlink(missing_ok=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def used(folder: Path) -> int:
    return sum((file.stat().st_size + 4095) // 4096 * 4096 + 4096 for file in folder.rglob("*"))


def small_disk(line: Line, base: Path, home: Path, whole: Whole, room: int, counts: Counts) -> bool:
    """The line on a disk with `room` bytes free; once there is more, typed again. True if it was through at once."""
    with disk(home, used(base) + room + 8192) as folder:
        inner = folder / "in"
        shutil.copytree(base, inner, symlinks=True)
        env = environment(line, inner, None)
        env["TREEWRIGHT_ACKNOWLEDGED"] = f"{home / inner.parent.name}.told"
        done = forked.run([POINTS, *line.words], inner, env, timeout=240)
        said = done.stdout + done.stderr
        where = (line.name, room, done.returncode, said[-1500:])
        must("Traceback" not in said, "tracebacks", where)
        must(done.returncode == 0 or (done.returncode == 2 and sentences(said) == 1), "errors_unsaid", where)
        remount(folder, "size=1g")
        told = Path(env["TREEWRIGHT_ACKNOWLEDGED"])
        if told.exists():
            shutil.move(told, f"{inner}.told")
        looked_at(line, inner, where)
        again = line.again or typed
        if done.returncode:
            counts["writes_failed"] += 1
            again(line, inner)
        must(line.found(inner) == whole.found, "kills_digest_changed", where)
        return done.returncode == 0


def read_only(line: Line, base: Path, home: Path, whole: Whole, counts: Counts) -> None:
    """Nothing can be written: one sentence, and what is there stays."""
    with disk(home, 1 << 30) as folder:
        inner = folder / "in"
        shutil.copytree(base, inner, symlinks=True)
        before = {p: p.read_bytes() for p in inner.rglob("*") if p.is_file()}
        remount(folder, "ro")
        try:
            env = environment(line, inner, None)
            del env["TREEWRIGHT_ACKNOWLEDGED"]
            done = forked.run([POINTS, *line.words], inner, env, timeout=240)
        finally:
            remount(folder, "rw")
        said = done.stdout + done.stderr
        where = (line.name, "read-only", done.returncode, said[-1500:])
        must("Traceback" not in said, "tracebacks", where)
        must(done.returncode == 2 and sentences(said) == 1, "errors_unsaid", where)
        must(before == {p: p.read_bytes() for p in inner.rglob("*") if p.is_file()}, "changed_read_only", where)
        counts["read_only"] += 1
        (line.again or typed)(line, inner)
        must(line.found(inner) == whole.found, "kills_digest_changed", where)


# -- two at once ------------------------------------------------------------------------------------------------------


def two_at_once(line: Line, base: Path, folder: Path, whole: Whole, counts: Counts) -> None:
    """The same line twice at the same time: one does it, the other says why not, or finds it done."""
    shutil.copytree(base, folder, symlinks=True)
    both = [forked.start([POINTS, *line.words], folder, environment(line, folder, None)) for _ in range(2)]
    done = [child.wait(240) for child in both]
    said = [one.stdout + one.stderr for one in done]
    where = (line.name, "two at once", [one.returncode for one in done], said[0][-1000:], said[1][-1000:])
    must("Traceback" not in said[0] + said[1], "tracebacks", where)
    must(all(one.returncode in (0, 2) for one in done), "errors_unsaid", where)
    must(any(one.returncode == 0 for one in done), "races_lost_by_both", where)
    looked_at(line, folder, where)
    must(line.found(folder) == whole.found, "kills_digest_changed", where)
    counts["races"] += 1


# -- a big tree -------------------------------------------------------------------------------------------------------


WALKER = """
def walks(task, turns, tools, rng):
    return 'move {"to": "' + str(rng.randrange(10**6)) + '"}'
"""


def taken_up(folder: Path, nodes: int) -> tuple[float, float]:
    """Seconds, and seconds of the processor, from typing a line whose process was killed with so many nodes stored to
    the next expansion that is acknowledged, the beginning of the process included."""
    folder.mkdir()
    (folder / "big_walker.py").write_text(WALKER)
    draws = 16
    words = (
        "collect",
        "--name",
        "big",
        "--suites",
        "maze",
        "--tasks",
        "1",
        "--policy",
        "scripted:big_walker:walks",
        "--set",
        f"search.expansions={nodes}",
        "--set",
        f"search.draws={draws}",
        "--set",
        "search.max_tokens=64",
    )
    line = Line("resume", words, lambda folder: None, lambda folder: None)
    told = Path(f"{folder}.told")

    def lines() -> int:
        return told.read_bytes().count(b"\n") if told.exists() else 0

    child = forked.start([POINTS, *words], folder, environment(line, folder, None))
    while child.alive() and _nodes(folder) < nodes:
        time.sleep(0.5)
    child.send(signal.SIGKILL)
    child.wait(60)
    looked_at(line, folder)
    before, began = lines(), time.monotonic()
    child = forked.start([POINTS, *words], folder, environment(line, folder, None))
    while child.alive() and lines() <= before:
        time.sleep(0.01)
    took, worked = time.monotonic() - began, processor_seconds(child.pid)
    child.send(signal.SIGKILL)
    said = child.wait(60)
    assert lines() > before, said.stdout + said.stderr
    return took, worked


def processor_seconds(pid: int) -> float:
    """Of a process that runs; 0 for one that is gone."""
    try:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    except (OSError, ValueError):
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _nodes(folder: Path) -> int:
    for path in stores(folder):
        with TreeStore.open(path, read_only=True) as store:
            return sum(row.nodes for row in store.trees())
    return 0


# -- a site -----------------------------------------------------------------------------------------------------------


NAV = "<nav><a href=/>home</a><a href=/lamps>lamps</a><a href=/help>help</a></nav>"
PAGES = {
    "/": f"<title>home</title>{NAV}<h1>Welcome</h1>",
    "/lamps": f"<title>lamps</title>{NAV}<h1>Lamps</h1><a href=/lamp>lamp</a>",
    "/help": f"<title>help</title>{NAV}<h1>Help</h1>",
    "/lamp": f"<title>lamp</title>{NAV}<h1>Lamp</h1>",
}


class _Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = PAGES.get(self.path, "").encode()
        self.send_response(200 if body else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is told."""


@contextmanager
def site() -> Iterator[str]:
    """The address of a few pages."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def explored(folder: Path) -> Any:
    """The tasks that it named. After a kill, steps of going back count, too: trees may end earlier."""
    return (folder / "runs" / "explore" / "tasks.jsonl").read_text()


def explore_line(url: str) -> Line:
    return Line("explore", ("explore", url, "--steps", "8"), lambda folder: folder.mkdir(), explored)
