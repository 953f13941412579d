"""Processes that die and disks that fill: what was acknowledged is there, and the file is whole."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from treewright.search.store import JournalState, TreeStore

CHILD = """
import asyncio, resource, signal, sys
from pathlib import Path
from treewright.envs.types import Action, Observation, Task
from treewright.search.store import StoreError, TreeStore
from treewright.search.tree import TreeHeader
from treewright.search.types import Completion, Draft, Expansion, NodeStatus, Outcome, Spent

HEADER = TreeHeader(
    run="r", task=Task("kg", "t", "g"), attempt=0, seed=1, policy_version="v1", settings={},
    root=Outcome(Observation("root"), NodeStatus.OPEN),
)

def pop(seq):
    seen = Outcome(Observation(f"page {seq} " * 50, str(seq)), NodeStatus.OPEN)
    done = Completion("go", tuple(range(seq, seq + 40)), tuple(-i / 7 for i in range(40)), policy_version="v1")
    drafts = tuple(
        Draft(after=0, slot=i, mult=1, share=0.25, seed=seq * 4 + i, completion=done, action=Action.of("go", to=i),
              outcome=seen)
        for i in range(4)
    )
    spent = Spent(expansions=1, policy_tokens=160, env_steps=4)
    return Expansion(seq=seq, node=0, closing=False, drawn=4, outcome=None, drafts=drafts, spent=spent)

def say(*words):
    print(*words, flush=True)
"""

GROW = """
async def main(store):
    if not store.trees():
        await store.create(HEADER)
    start = len(store.expansions(HEADER.tree_id))
    for seq in range(start, 10**6):
        future = store.append_nowait(HEADER.tree_id, pop(seq), 1 + 4 * seq)
        future.add_done_callback(lambda f, seq=seq: say(seq))
        if seq % 5 == 0:
            await future

asyncio.run(main(TreeStore.open(sys.argv[1])))
"""

JOURNAL = """
async def main(store):
    await store.create(HEADER)
    await store.append(HEADER.tree_id, pop(0), 1)
    sent = await store.journal.intent(HEADER.tree_id, 1, 0, "[]")
    await store.journal.dispatched(sent)
    await store.journal.intent(HEADER.tree_id, 2, 0, "[]")
    say("written")
    signal.pause()

asyncio.run(main(TreeStore.open(sys.argv[1])))
"""

FULL = """
async def main(store):
    await store.create(HEADER)
    used = max(f.stat().st_size for f in Path(sys.argv[1]).parent.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (used + int(sys.argv[2]), resource.RLIM_INFINITY))
    acknowledged, refused, waiting = 0, 0, []
    try:
        for seq in range(10**6):
            waiting.append(store.append_nowait(HEADER.tree_id, pop(seq), 1 + 4 * seq))
            if seq % 3 == 0:
                await waiting[-1]
    except StoreError as error:
        say("error", error)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    say("acknowledged", sum(r is None for r in results), "refused", sum(isinstance(r, StoreError) for r in results))
    for attempt in (lambda: store.append(HEADER.tree_id, pop(0), 1), lambda: store.create(HEADER)):
        try:
            await attempt()
        except StoreError as error:
            say("later", error)

asyncio.run(main(TreeStore.open(sys.argv[1])))
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill(child: subprocess.Popen[str]) -> str:
    """Kills a child and returns what it had still said. It must have died of it."""
    child.send_signal(signal.SIGKILL)
    rest, _ = child.communicate(timeout=300)
    assert child.returncode == -signal.SIGKILL
    return rest


def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    for lines in (1, 30, 77):
        child = start(GROW, path)
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(lines)]
        said += kill(child).splitlines()
        last = max(int(line) for line in said if line.strip())
        with TreeStore.open(path, read_only=True) as store:
            (row,) = store.trees()
            tree = store.load(row.tree_id)
            assert len(tree.pops) > last
            assert len(tree) == 1 + 4 * len(tree.pops)
            assert store.check() == []
    with TreeStore.open(path) as store:
        assert [row.status for row in store.trees()] == ["interrupted"]


def test_a_kill_after_dispatch_leaves_the_entry_pending(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    child = start(JOURNAL, path)
    assert child.stdout is not None
    assert child.stdout.readline() == "written\n"
    kill(child)

    with TreeStore.open(path) as store:
        first, second = store.journal.pending()
        assert (first.state, second.state) == (JournalState.DISPATCHED, JournalState.INTENT)
        asyncio.run(store.journal.outcome(first.id, JournalState.IN_DOUBT))
        assert store.journal.pending()[0].state is JournalState.IN_DOUBT


@pytest.mark.parametrize("room", [0, 9_000, 60_000])
def test_a_full_disk_is_an_error_for_every_waiter_and_loses_nothing(tmp_path: Path, room: int) -> None:
    path = tmp_path / "t.db"
    out, err = start(FULL, path, room).communicate(timeout=300)
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert {"error", "acknowledged", "later"} <= lines.keys(), err
    assert f"cannot write {path}" in lines["error"] and "everything acknowledged is kept" in lines["later"]
    _, acknowledged, _, refused = lines["acknowledged"].split()
    assert int(refused) >= 1
    with TreeStore.open(path, read_only=True) as store:
        (row,) = store.trees()
        assert len(store.expansions(row.tree_id)) >= int(acknowledged)
        assert store.check() == []
