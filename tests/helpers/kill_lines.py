"""The commands that are killed: what is typed, where, and what must come of it. See kill_trials.py."""

from __future__ import annotations

import atexit
import collections
import gzip
import hashlib
import json
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

from kill_trials import Line, digests, must, typed
from ledger_worlds import SERVER, lines
from live_desk import ACTS, MAILS

from treewright.search.store import JournalState, TreeStore
from treewright.training.manifest import complete, read_manifest
from treewright.training.track import read_metrics

OLD = Path(__file__).parents[1] / "data" / "schema2"
SMALL = ("--suites", "kg", "--tasks", "3", "--set", "search.expansions=3")


def trees(folder: Path) -> dict[str, str]:
    return digests(folder / "runs" / "r" / "trees.sqlite")


def nothing(folder: Path) -> None:
    folder.mkdir()


def collected(folder: Path) -> None:
    """A run with finished trees; grown once."""
    shutil.copytree(_collected(), folder)


@lru_cache(maxsize=1)
def _collected() -> Path:
    home = Path(tempfile.mkdtemp(prefix="collected-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    (home / "in").mkdir()
    typed(COLLECT, home / "in")
    return home / "in"


COLLECT = Line("collect", ("collect", "--name", "r", *SMALL), nothing, trees)


# -- train and loop: each (tree, version) once, the weights of an undisturbed run -------------------------------------


def learnt(folder: Path) -> dict[str, Any]:
    """Weights, what they were trained on, and what was measured of every update. Raises AssertionError for repeats."""
    run = folder / "runs" / "r"
    saved = complete(run / "checkpoints")
    manifest = read_manifest(saved[-1].path)
    pairs = [tuple(pair) for pair in manifest["consumed"]]
    must(len(pairs) == len(set(pairs)), "trained_twice", pairs)
    rows = read_metrics(run / "metrics.jsonl")
    losses = {row["step"]: row["loss"] for row in rows}
    must(len(losses) == len(rows), "trained_twice", rows)
    must(manifest["step"] == max(losses, default=0), "updates_unknown", (manifest["step"], losses))
    return {"version": saved[-1].version, "consumed": sorted(pairs), "losses": losses, "trees": trees(folder)}


def checkpoints_count(folder: Path) -> None:
    """Whatever is found is whole, hashes and all."""
    for one in complete(folder / "runs" / "r" / "checkpoints"):
        for name, want in read_manifest(one.path)["files"].items():
            assert hashlib.sha256((one.path / name).read_bytes()).hexdigest() == want, name


def trained_again(line: Line, folder: Path) -> str:
    """Trees that were trained on are refused; that is the end too."""
    said = typed(line, folder, code=(0, 2))
    assert "saved" in said or "trained on" in said, said
    return said


TRAIN = Line("train", ("train", "--name", "r"), collected, learnt, checkpoints_count, trained_again)
LOOP = Line(
    "loop",
    ("loop", "--name", "r", "--suites", "kg", "--set", "loop.iterations=2", "--set", "loop.tasks=2", "--set",
     "search.expansions=2", "--set", "train.minibatches=2", "--set", "train.save_every=0", "--set",
     'policy.options={"batch_requests": false}'),  # else log-probs are rounded by who is asked for at the same time
    nothing, learnt, checkpoints_count,
)  # fmt: skip


# -- export and upgrade ---------------------------------------------------------------------------------------------


def exported(folder: Path) -> dict[str, str]:
    data = folder / "data"
    return {str(p.relative_to(data)): hashlib.sha256(p.read_bytes()).hexdigest() for p in data.rglob("*.jsonl")}


def exported_again(line: Line, folder: Path) -> str:
    """A dataset that is whole is not written twice."""
    if (folder / "data").exists():
        return ""
    return typed(line, folder)


EXPORT = Line(
    "export", ("export", "data", "--name", "r", "--formats", "raw,sft", "--file-type", "jsonl"), collected, exported,
    again=exported_again, out=("data",),
)  # fmt: skip


def old_store(folder: Path) -> None:
    folder.mkdir()
    (folder / "old.store").write_bytes(gzip.decompress((OLD / "trees.store.gz").read_bytes()))


def upgraded(folder: Path) -> dict[str, str]:
    """Schema, and digests of the trees that were finished: those of the version that wrote them."""
    made = json.loads((OLD / "made.json").read_text())
    with TreeStore.open(folder / "old.store", read_only=True) as store:
        assert store.check() == []
        found = {name: store.load(name).digest() for name in made["done"] | made["run"]}
    assert found == made["done"] | made["run"]
    return found


def old_or_new(folder: Path) -> None:
    """One of the two, whole: the other version's lines are all there or none."""
    import sqlite3

    connection = sqlite3.connect(folder / "old.store")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (damage,) = connection.execute("PRAGMA integrity_check").fetchone()
    columns = {row[1] for row in connection.execute("PRAGMA table_info(nodes)")}
    connection.close()
    assert damage == "ok" and version in (2, 5) and ("money" in columns) == (version == 5), (version, columns)


UPGRADE = Line("upgrade", ("store", "compact", "old.store"), old_store, upgraded, old_or_new)


# -- commit: every kind of live world, a ledger outside the process ---------------------------------------------------

SCRIPT, GRAPH = "scripted:live_desk_acts:walker", "langgraph:live_desk_acts:agent"


def desk(folder: Path) -> None:
    folder.mkdir()
    (folder / "live_desk_acts.py").write_text(ACTS)
    (folder / "server.py").write_text(SERVER)
    server = f"{sys.executable} -S -E server.py ledger"
    effects = 'effects = {look = "read", send = "irreversible"}'
    (folder / "mail.toml").write_text(f"command = '{server}'\n{effects}\n")


def at_most_once(folder: Path) -> None:
    """Every mail in the ledger was approved, and none stands there twice."""
    sent, approved = (collections.Counter(lines(folder / name)) for name in ("ledger", "approved"))
    must(sent <= approved and all(n == 1 for n in sent.values()), "ledger_duplicates", (sent, approved))


def settled(line: Line, folder: Path) -> str:
    """Types the line until the episode is over; a call in doubt must be said, and is told as the ledger has it."""
    store = folder / "runs" / "run" / "trees.sqlite"
    said = ""
    for _ in range(2 * MAILS + 2):
        doubt, before = pending(store), lines(folder / "ledger")
        told: tuple[str, ...] = ()
        if doubt:
            said = typed(line, folder)
            asks = "commit: settle" in said and "--in-doubt happened, or --in-doubt never" in said
            must(asks, "doubts_unsaid", said)
            must(lines(folder / "ledger") == before, "sent_in_doubt", said)
            sent = doubt == "send" and lines(folder / "approved")[-1] in before  # else a note, which leaves no trace
            told = ("--in-doubt", "happened" if sent else "never")
        said = typed(line, folder, *told)
        at_most_once(folder)
        if "commit: done" in said:
            return said
    raise AssertionError(f"the episode does not end: {said[-2000:]}")


def pending(store: Path) -> str:
    """The name of a call that was sent and whose answer was never written down, "" if there is none."""
    if not begun(store):
        return ""
    with TreeStore.open(store, read_only=True) as opened:
        sent = (JournalState.DISPATCHED, JournalState.IN_DOUBT)
        keys = [json.loads(entry.action_key) for entry in opened.journal.pending() if entry.state in sent]
    return str(keys[-1][0]["name"]) if keys else ""


def begun(store: Path) -> bool:
    """False for a store whose first transaction was not committed: there is a file of SQLite with nothing in it."""
    if not store.exists():
        return False
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as opened:
        return bool(opened.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])


def mails(folder: Path) -> int:
    at_most_once(folder)
    return len(lines(folder / "ledger"))


def commit(world: str, task: str, policy: str, sessions: int) -> Line:
    words = ("run", task, "--approve", "live_desk_acts:yes", "--expansions", "3", "--policy", policy, "--set",
             "search.max_tokens=64", "--set", f"worlds.sessions={sessions}")  # fmt: skip
    return Line(f"commit {world} {sessions}", words, desk, mails, at_most_once, settled)


COMMITS = tuple(
    commit(world, task, policy, sessions)
    for sessions in (1, 8)
    for world, task, policy in (
        ("object", "live_desk_acts:desk/mails", SCRIPT),
        ("mcp", "mcp:mail.toml/0", SCRIPT),
        ("langgraph", "live_desk_acts:desk/mails", GRAPH),
    )
)
LINES = (COLLECT, TRAIN, LOOP, EXPORT, UPGRADE, *COMMITS)
