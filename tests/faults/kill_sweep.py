"""SIGKILL around the dispatch of irreversible actions, again and again, against a ledger outside the process.

    make kill-sweep                                    # 10,000 kills; their figures go to docs/kills.json
    python -P tests/faults/kill_sweep.py 500           # as many as you like
    python -P tests/faults/kill_sweep.py 500 --json kills.json

Every trial forks a process that commits a path with two irreversible actions from a real store, kills it at one of the
positions around journal and dispatch, or at a random moment, and starts another one that takes up what is there. With
`plain` the journal is a synced file of lines and no store is opened, which is many times as fast. The ledger is a file
opened with O_APPEND, one write for each action, that neither the store nor the journal touches.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import itertools
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treewright.envs.types import Action, StepResult
from treewright.search.store.journal import Journal
from treewright.search.tree import Tree

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from commit_parts import FileJournal, Kill, a_move, chain

from treewright.agent.runs.figures import write_figures
from treewright.envs.maze import Maze
from treewright.search.commit import Next, commit
from treewright.search.restore import Pool
from treewright.search.store import JournalState, TreeStore

POSITIONS = 16  # events of one commit of the path, see `Watched` and `World`
LEAF = 4


class Watched:
    """The store's journal with a chance to die before and after every row."""

    def __init__(self, journal: FileJournal | Journal, kill: Kill) -> None:
        self.journal, self.kill = journal, kill
        self.entries: Any = journal.entries

    async def intent(self, *row: Any) -> int:
        return int(await self._around(self.journal.intent(*row)))

    async def dispatched(self, entry: int) -> None:
        await self._around(self.journal.dispatched(entry))

    async def outcome(self, *row: Any, **ends: Any) -> None:
        await self._around(self.journal.outcome(*row, **ends))

    async def _around(self, call: Coroutine[Any, Any, Any]) -> Any:
        self.kill()
        done = await call
        self.kill()
        return done


class World(Maze):
    """A live maze; pressing its button writes the step's key into the ledger outside, once per press."""

    def __init__(self, ledger: Path, kill: Kill) -> None:
        super().__init__(sandboxed=False)
        self.outside, self.kill = ledger, kill

    async def step(self, action: Action, key: int) -> StepResult:
        if action.name == "press":
            self.kill()
            file = os.open(self.outside, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(file, f"{key}\n".encode())
            os.close(file)
            self.kill()
        return await super().step(action, key)


@dataclass(frozen=True)
class Trial:
    """What one trial ended with: whether the first process died, what the second one said, presses in the ledger."""

    died: bool
    then: str
    pressed: tuple[str, ...]
    in_doubt: int
    done: int


def prepare(folder: Path, plain: bool = False) -> Tree:
    """A tree whose path presses the button twice, in a store in `folder` unless `plain`."""

    async def grow(store: TreeStore | None = None) -> Tree:
        return await chain("press {}", a_move(), "press {}", "stop {}", store=store)

    if plain:
        return asyncio.run(grow())

    async def kept() -> Tree:
        with TreeStore.open(folder / "trees.db") as store:
            return await grow(store)

    return asyncio.run(kept())


def run(folder: Path, tree: Tree, kill: Kill, plain: bool = False) -> None:
    """Commits the path in this process and leaves what came out in a file."""
    if plain:
        asyncio.run(committed(folder, tree, FileJournal(folder / "journal"), kill))
        return
    with TreeStore.open(folder / "trees.db") as store:
        asyncio.run(committed(folder, store.load(tree.tree_id), store.journal, kill))


async def committed(folder: Path, tree: Tree, journal: FileJournal | Journal, kill: Kill) -> None:
    async def opened() -> World:
        return World(folder / "ledger", kill)

    yes = lambda task, action: True  # noqa: E731
    result = await commit(tree, LEAF, Pool(opened), approve=yes, journal=Watched(journal, kill))
    done = sum(entry.state is JournalState.DONE for entry in journal.entries())
    (folder / "result.json").write_text(json.dumps([result.next.value, len(result.in_doubt), done]))


def forked(folder: Path, tree: Tree, kill: Kill, after: float | None = None, plain: bool = False) -> bool:
    """`run` in a process of its own, killed from outside after that many seconds; True if it died of a SIGKILL."""
    ended, alive = os.pipe()  # readable once the child, which alone holds the other side, has ended
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run(folder, tree, kill, plain)
            status = 0
        finally:
            os._exit(status)
    os.close(alive)
    if after is not None and not select.select([ended], [], [], after)[0]:
        os.kill(child, signal.SIGKILL)
    os.close(ended)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"the process of {folder} failed; its error stands above")
    return os.WIFSIGNALED(status)


def trial(base: Path, tree: Tree, folder: Path, position: int | None, moment: float, plain: bool = False) -> Trial:
    """One that dies at a position, or after `moment` seconds where that is None."""
    folder.mkdir()
    for file in base.iterdir():
        shutil.copy(file, folder)
    died = forked(folder, tree, Kill(position), None if position is not None else moment, plain)
    forked(folder, tree, Kill(), plain=plain)
    then, in_doubt, done = json.loads((folder / "result.json").read_text())
    ledger = folder / "ledger"
    pressed = tuple(ledger.read_text().split()) if ledger.exists() else ()
    return Trial(died, then, pressed, in_doubt, done)


def sweep(
    kills: int, seed: int = 0, progress: Callable[[Any], Any] | None = None, plain: bool = False, every: int = 2
) -> collections.Counter[str]:
    """Trials until `kills` processes have died; a kill at a random moment may come too late and is not counted.

    every  how often the moment is a random one; the others die at the positions, one after another
    Returns counts by name. Raises AssertionError at the first duplicate or unexplained press.
    """
    counts: collections.Counter[str] = collections.Counter()
    rng, places = random.Random(seed), itertools.cycle(range(POSITIONS))
    with tempfile.TemporaryDirectory() as home:
        base = Path(home) / "base"
        base.mkdir()
        tree = prepare(base, plain)
        longest = min(how_long(base, tree, Path(home) / f"whole {i}", plain) for i in range(3))
        for number in itertools.count():
            folder = Path(home) / "trial"
            position = None if number % every == every - 1 else next(places)
            found = trial(base, tree, folder, position, rng.random() * longest, plain)
            shutil.rmtree(folder)
            check(found, number)
            counts["trials"] += 1
            counts["killed"] += found.died
            counts["killed at positions"] += found.died and position is not None
            counts["presses"] += len(found.pressed)
            counts[found.then] += 1
            counts["in doubt"] += found.in_doubt
            counts["duplicates"] += len(found.pressed) - len(set(found.pressed))
            if progress is not None:
                progress(counts)
            if counts["killed"] == kills:
                break
    return counts


def how_long(base: Path, tree: Tree, folder: Path, plain: bool) -> float:
    """Seconds of a commit that nothing kills."""
    shutil.copytree(base, folder)
    began = time.monotonic()
    forked(folder, tree, Kill(), plain=plain)
    return time.monotonic() - began


def check(found: Trial, number: int) -> None:
    """At most once, and nothing happened that is neither done nor in doubt in the journal."""
    assert len(found.pressed) == len(set(found.pressed)), (number, found)
    assert found.done <= len(found.pressed) <= found.done + found.in_doubt, (number, found)
    assert (found.then == Next.SETTLE.value) == (found.in_doubt > 0), (number, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", nargs="?", type=int, help="10,000; 100 with --quick")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()

    def progress(counts: Any) -> None:
        if counts["trials"] % 500 == 0:
            print(dict(counts), flush=True)

    counts = sweep(asked.kills or (100 if asked.quick else 10_000), progress=progress)
    print(dict(counts))
    if asked.json:
        figures = {f"kills_{name.replace(' ', '_')}": (float(value), "1") for name, value in counts.items()}
        figures["ledger_duplicates"] = figures["kills_duplicates"]
        write_figures(asked.json, figures)


if __name__ == "__main__":
    main()
