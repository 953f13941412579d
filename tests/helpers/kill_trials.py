"""One command, ended in the middle for real, and typed again: what a trial does and what it looks at.

A `Line` is a command as it is typed, the folder it begins in, and what must be there once it is through. Trials copy
that folder, let the command meet its fate (see failpoints.py), look at what is left, type the same line again, and
compare with a run that nothing disturbed.
"""

from __future__ import annotations

import collections
import json
import os
import random
import secrets
import shutil
import signal
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import forked
from failpoints import SIGNALS
from speed import patient

from treewright.search.store import TreeStore

POINTS = str(Path(__file__).parent / "failpoints.py")
MARK = "TREEWRIGHT_TRIAL"
PATIENCE = 10.0  # seconds in which everything that a process had started must be gone
TELLS_HOW = ("Go on with", "type the same line again", "Aborted", "key is that of")
ADDED_TO = ("metrics.jsonl",)  # a kill may end its last line; the next run goes on below it
Counts = collections.Counter[str]


class Broken(AssertionError):
    """A promise does not hold: `what` is the name of the count that should be 0."""

    def __init__(self, what: str, detail: object) -> None:
        super().__init__(f"{what}: {detail}")
        self.what = what


def must(holds: object, what: str, detail: object) -> None:
    """Raises Broken unless it holds."""
    if not holds:
        raise Broken(what, detail)


@dataclass(frozen=True)
class Line:
    """A command.

    words   as they are typed;  begin  makes the folder that it is typed in
    found   what must be as in an undisturbed run, read from the folder. Raises AssertionError for damage
    held    what must hold at any time, also right after a kill
    again   types the line until it is through, where once more is not enough; gives what was printed
    out     names of files and folders that are there whole or not at all
    """

    name: str
    words: tuple[str, ...]
    begin: Callable[[Path], Any]
    found: Callable[[Path], Any]
    held: Callable[[Path], Any] = lambda folder: None
    again: Callable[[Line, Path], str] | None = None
    out: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fate:
    """What happens: `how` at the point of this number, or after so many seconds."""

    how: str
    at: int | None = None
    after: float | None = None


def environment(line: Line, folder: Path, fate: Fate | None, log: str = "") -> dict[str, str]:
    """Of a child: where its points are, and what happens at which of them."""
    env = {
        **os.environ, "COLUMNS": "200", "NO_COLOR": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder),
        "TREEWRIGHT_POINTS": str(folder), "TREEWRIGHT_ACKNOWLEDGED": f"{folder}.told", MARK: secrets.token_hex(8),
        **line.env,
    }  # fmt: skip
    if log:
        env["TREEWRIGHT_POINTS_LOG"] = log
    if fate is not None:
        env["TREEWRIGHT_FATE"] = fate.how
        if fate.at is not None:
            env["TREEWRIGHT_POINT"] = str(fate.at)
    return env


def typed(line: Line, folder: Path, *more: str, code: int | tuple[int, ...] = 0) -> str:
    """The line, undisturbed; what it printed. Raises AssertionError for another exit code and for a traceback."""
    done = forked.run([POINTS, *line.words, *more], folder, environment(line, folder, None), timeout=240)
    said = done.stdout + done.stderr
    assert done.returncode in (code if isinstance(code, tuple) else (code,)), (done.returncode, said[-3000:])
    assert "Traceback" not in said, said[-3000:]
    return said


@dataclass
class Whole:
    """What an undisturbed run leaves, the points it passes, and how long it takes."""

    found: Any
    points: list[str]
    seconds: float


def undisturbed(line: Line, base: Path, home: Path) -> Whole:
    """Raises AssertionError if the command fails by itself."""
    folder, log = home / "whole", f"{home / 'points'}"
    shutil.copytree(base, folder, symlinks=True)
    child = forked.start([POINTS, *line.words], folder, environment(line, folder, None, log))
    began = time.monotonic()  # the process that others are forked from may have begun just now
    done = child.wait(240)
    took = time.monotonic() - began
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    whole_files(folder, line)
    return Whole(line.found(folder), Path(log).read_text().splitlines(), took)


def trial(line: Line, base: Path, folder: Path, whole: Whole, fate: Fate, counts: Counts) -> None:
    """One fate. Counts what it saw; raises Broken, or another AssertionError, where something is not as promised."""
    shutil.copytree(base, folder, symlinks=True)
    env = environment(line, folder, fate)
    child = forked.start([POINTS, *line.words], folder, env)
    if fate.after is not None:
        time.sleep(fate.after)
        try:
            child.send(SIGNALS[fate.how])
        except ProcessLookupError:
            counts["kills_too_late"] += 1
    if fate.how == "stop":
        _stopped(child, counts)
    done = child.wait(240)
    said = done.stdout + done.stderr
    where = (line.name, fate, done.returncode, said[-1500:])
    must("Traceback" not in said, "tracebacks", where)
    _met(done.returncode, said, fate, counts, where)
    must(not left(env[MARK]), "kills_orphans", where)
    looked_at(line, folder, where)
    if done.returncode:
        said = line.again(line, folder) if line.again else typed(line, folder)
    found = line.found(folder)
    must(found == whole.found, "kills_digest_changed", (where, found, whole.found, said[-1500:]))
    whole_files(folder, line)


def sentences(said: str) -> int:
    """How many errors a command told."""
    return sum(row.startswith("error: ") for row in said.splitlines())


def looked_at(line: Line, folder: Path, where: object = "") -> None:
    """Nothing is half written, nothing that was acknowledged is lost, every store is whole."""
    whole_files(folder, line)
    line.held(folder)
    lost = acknowledged(folder)
    must(not lost, "kills_lost", (where, lost))


@contextmanager
def place(home: Path) -> Iterator[Path]:
    """A name for one trial's folder, which is gone afterwards."""
    folder = home / f"trial {secrets.token_hex(4)}"
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        Path(f"{folder}.told").unlink(missing_ok=True)


def _met(code: int, said: str, fate: Fate, counts: Counts, where: Any) -> None:
    """The process ended as its fate wants it, or was through before."""
    if fate.how == "kill":
        # How many transactions there are hangs on how fast rows come: the last points are not met every time.
        assert code in ((-signal.SIGKILL, 0) if fate.at is not None else (-signal.SIGKILL, 0, 2)), where
        counts["kills"] += code == -signal.SIGKILL
        counts["kills_too_late"] += code == 0 and fate.at is not None
    elif fate.how in ("int", "term"):
        if code == -signal.SIGTERM and fate.after is not None and not said:
            counts["kills_too_late"] += 1  # it had not begun
            return
        assert code in (0, 1, 2, 130, 143), where
        assert code in (0, 2) or any(told in said for told in TELLS_HOW), where
        counts["stops_asked"] += code in (1, 130, 143)
    elif fate.how == "full":
        counts["writes_failed"] += 1
        assert code in (0, 2), where  # 0: a file that the command can do without
        must(code == 0 or sentences(said) == 1, "errors_unsaid", where)
    else:
        assert code == 0, where
        counts["clock_jumps" if fate.how == "clock" else "stops"] += 1


def _stopped(child: forked.Running, counts: Counts) -> None:
    """Waits until the process stands, lets a moment pass, and lets it go on."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "T":
            time.sleep(0.2)
            child.send(signal.SIGCONT)
            return
        if state == "Z":
            return
        time.sleep(0.01)


# -- what is looked at ------------------------------------------------------------------------------------------------


def left(mark: str) -> list[int]:
    """Processes with this mark in their environment that outlive the patience; they are then killed."""
    wanted, until = f"{MARK}={mark}".encode(), time.monotonic() + patient(PATIENCE)
    while (found := _marked(wanted)) and time.monotonic() < until:
        time.sleep(0.05)
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return found


def _marked(wanted: bytes) -> list[int]:
    out = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes().split(b"\0"):
                state = (path.parent / "stat").read_text().rsplit(")", 1)[1].split()[0]
                out += [int(path.parent.name)] if state != "Z" else []
        except OSError:
            continue
    return out


def whole_files(folder: Path, line: Line) -> None:
    """Every file under its final name can be read to its end."""
    for file in sorted(folder.rglob("*")):
        inner = file.relative_to(folder)
        unfinished = any(part.startswith(".") for part in inner.parts) or _before_manifest(file)
        if not file.is_file() or unfinished or file.name in ADDED_TO or file.stat().st_size > 64 << 20:
            continue
        try:
            _read(file)
        except Exception as error:
            raise Broken("partial_files", f"{inner} is not whole ({type(error).__name__}: {error})") from error
    for name in line.out:
        there = folder / name
        must(not there.is_dir() or (there / "README.md").is_file(), "partial_files", f"{name} is not finished")


def _before_manifest(file: Path) -> bool:
    """In a checkpoint's folder that says by itself that it does not count."""
    return any(p.name.startswith("step-") and not (p / "manifest.json").exists() for p in file.parents)


def _read(file: Path) -> None:
    if file.suffix == ".json":
        json.loads(file.read_text("utf-8"))
    elif file.suffix == ".jsonl":
        text = file.read_text("utf-8")
        assert not text or text.endswith("\n"), "its last line is cut off"
        for row in text.splitlines():
            json.loads(row)
    elif file.suffix == ".toml":
        tomllib.loads(file.read_text("utf-8"))
    elif file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                opened.get_slice(key).get_shape()
    elif file.suffix == ".parquet":
        import pyarrow.parquet

        pyarrow.parquet.read_table(file)
    elif file.suffix in (".md", ".html", ".svg"):
        assert file.stat().st_size, "it is empty"


def acknowledged(folder: Path) -> list[str]:
    """What a store had acknowledged and does not hold, over every store in the folder; each is whole."""
    told = Path(f"{folder}.told")
    said = told.read_text().splitlines() if told.exists() else []
    held: set[str] = set()
    for path in stores(folder):
        with TreeStore.open(path, read_only=True) as store:
            must((damage := store.check()) == [], "stores_damaged", damage)
            for row in store.trees():
                held |= {f"{row.tree_id} {seq}" for seq in range(len(store.expansions(row.tree_id)))}
                held |= {f"{row.tree_id} done"} if row.status == "done" else set()
    return [one for one in said if one not in held]


def stores(folder: Path) -> list[Path]:
    """Files of stores below a folder that have tables by now."""
    return [path for path in sorted(folder.rglob("*.sqlite")) if not path.is_symlink() and _made(path)]


def _made(path: Path) -> bool:
    """A process that died before the first commit leaves a file without tables."""
    import sqlite3

    with sqlite3.connect(path) as connection:
        found = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    connection.close()
    return bool(found)


def digests(path: str | Path, **where: Any) -> dict[str, str]:
    """Of every finished tree by id; no other may be there. Raises AssertionError for a store that is not whole."""
    with TreeStore.open(path, read_only=True) as store:
        must((damage := store.check()) == [], "stores_damaged", damage)
        rows = store.trees(**where)
        assert {row.status for row in rows} == {"done"}, rows
        return {row.tree_id: store.load(row.tree_id).digest() for row in rows}


def fates(line: Line, whole: Whole, rng: random.Random, how: str, many: int, points: bool = True) -> list[Fate]:
    """`many` fates of a kind: at points spread over all of them, a third at random moments where that makes sense."""
    places = len(whole.points)
    moments = many // 3 if how in ("kill", "int", "term") else 0
    at = min(many - moments, places) if points else 0
    chosen = sorted(rng.sample(range(places), at))
    longest = whole.seconds * 1.1
    return [Fate(how, at=i) for i in chosen] + [Fate(how, after=rng.random() * longest) for _ in range(moments)]
