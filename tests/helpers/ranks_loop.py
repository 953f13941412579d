"""A loop of two ranks and two collectors over PostgreSQL whose processes are killed at random; see test_ranks_loop.py.

The processes are what `torchrun … -m treewright loop` and `treewright collector` run, forked from a server that has the
heavy packages loaded (forked.py), so that beginning one again costs little. `sweep` begins again what was killed.
As a script: python ranks_loop.py KILLS [JSON], beside a throw-away PostgreSQL.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import forked

SETTINGS = ("loop.iterations=3", "loop.tasks=4", "loop.collectors=0", "loop.lease=2", "search.expansions=2",
            "train.minibatches=1", "train.lr=0.0003", 'policy.options={"batch_requests": false}')  # fmt: skip
PART = Path(__file__).with_name("ranks_part.py")
PATIENCE = 3.0  # seconds that a rank has to end by itself once the other has; one that waits to meet it waits minutes
BETWEEN = (0.02, 0.5)  # seconds from one kill to the next, while the group works
EARLY = 0.25  # share of groups that may be killed before they have begun to work
FIRST = 0.4  # share of the kills that fall into the first round


def begun(folder: Path, words: Sequence[str], settings: Sequence[str], **environment: str) -> forked.Running:
    """A command on the run in `folder`, or a collector of it, in a process of its own."""
    sets = [f"folder={folder / 'run'}", *settings]
    given = sets if words[0] == "collector" else [word for s in sets for word in ("--set", s)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environment}
    return forked.start([PART, *words, *given], folder, env)


def alone(folder: Path, settings: Sequence[str], words: Sequence[str] = ("loop", "--suites", "kg")) -> None:
    """The same loop, or another command, in one process to its end."""
    done = begun(folder, words, settings).wait(7200)
    assert done.returncode == 0, done.stdout + done.stderr


class Group:
    """The four processes; whoever ended is begun again by `mend`."""

    def __init__(self, folder: Path, url: str, settings: Sequence[str] = SETTINGS) -> None:
        self.folder, self.settings = folder, (f"store={url}", *settings)
        self.ranks: list[forked.Running] = []
        self.collectors: list[forked.Running] = []
        self.begun, self.since = 0, 0.0
        self.alone: float | None = None  # since when one rank has died and the other has not ended

    def mend(self) -> bool:
        """Begins again what has ended; True once the loop is through."""
        lives = [one.alive() for one in self.ranks]  # asked once: a rank may end between two questions
        ended = [one.wait().returncode for one, alive in zip(self.ranks, lives, strict=True) if not alive]
        if lives and not lives[0] and self.ranks[0].code == 0:
            return True
        self._end_of_the_other(any(ended))
        if not any(lives):
            self.begun, self.since = self.begun + 1, time.time()
            group = {"WORLD_SIZE": "2", "TREEWRIGHT_LAUNCHER": str(self.folder / f"meeting{self.begun}")}
            self.ranks = [
                begun(self.folder, ("loop", "--suites", "kg"), self.settings, RANK=f"{i}", LOCAL_RANK=f"{i}", **group)
                for i in range(2)
            ]
        for one in self.collectors:
            if not one.alive():
                one.wait()
        self.collectors = [one for one in self.collectors if one.alive()]
        while len(self.collectors) < 2 and (self.folder / "run" / "rounds" / "now.json").exists():
            self.collectors.append(begun(self.folder, ("collector",), self.settings))
        return False

    def works(self) -> bool:
        """Its leader has told collectors what to grow."""
        try:
            return (self.folder / "run" / "rounds" / "now.json").stat().st_mtime > self.since
        except FileNotFoundError:
            return False

    def living(self) -> list[tuple[str, forked.Running]]:
        """Who there is to kill."""
        every = [*zip(("rank 0", "rank 1"), self.ranks, strict=True), *(("collector", one) for one in self.collectors)]
        return [(name, one) for name, one in every if one.alive()]

    def _end_of_the_other(self, lost: bool) -> None:
        """As torchrun and `loop --processes` do: a group that has lost a rank ends as a whole."""
        living = [one for one in self.ranks if one.alive()]
        if not living or not lost:
            self.alone = None
        elif self.alone is None:
            self.alone = time.monotonic()
        elif time.monotonic() - self.alone > PATIENCE:
            for one in living:
                killed(one)

    def end(self) -> None:
        for one in (*self.ranks, *self.collectors):
            if one.alive():
                killed(one)
            one.wait()


def dies() -> None:
    """A rank of two of which the second is killed."""
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def killed(one: forked.Running) -> None:
    one.send(signal.SIGKILL)
    one.wait()


def sweep(
    folder: Path,
    url: str,
    kills: int,
    seed: int = 0,
    settings: Sequence[str] = SETTINGS,
    seconds: float = 600.0,
    slow: float = 1.0,
) -> dict[str, Any]:
    """Runs the loop to its end while `kills` times one of the four is killed; losses by iteration, versions, deaths.

    A kill comes when a random while has passed since the one before, and mostly while the group works: several may fall
    into one life. `slow` is how many times longer than usual this machine takes. A loop may end before all are made.
    """
    rng, group, start = random.Random(seed), Group(folder, url, settings), time.monotonic()
    deaths: list[str] = []
    at, early, life = start, False, 0
    try:
        while not group.mend():
            assert time.monotonic() < start + seconds, f"not through after {seconds:.0f} s and {len(deaths)} kills"
            time.sleep(0.02)
            if group.begun != life:
                life, early = group.begun, rng.random() < EARLY
            most = kills if _rounds(folder) else math.ceil(kills * FIRST)
            if len(deaths) >= most or time.monotonic() < at or not (early or group.works()):
                continue
            if living := group.living():
                name, victim = rng.choice(living)
                killed(victim)
                deaths.append(name)
            at = time.monotonic() + slow * rng.uniform(*BETWEEN)
        for one in group.ranks:
            one.wait(30)
        return {**curves(folder), "deaths": deaths, "begun": group.begun, "said": group.ranks[0].said()}
    finally:
        group.end()


def _rounds(folder: Path) -> int:
    """How many are finished."""
    metrics = folder / "run" / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def curves(folder: Path) -> dict[str, dict[int, Any]]:
    """Losses, weights and successes of the run in `folder`, by iteration."""
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return {
        "losses": {line["iteration"]: line["loss"] for line in lines},
        "versions": {line["iteration"]: line["policy_version"] for line in lines},
        "successes": {line["iteration"]: line["success"]["kg"] for line in lines},
    }


def many_kills(home: Path, new_url: Callable[[], str], kills: int, seed: int = 0) -> dict[str, Any]:
    """One loop that nobody kills, and as many that are killed as it takes to kill `kills` times: figures by name.

    `same` counts the killed loops whose losses, weights and successes are those of the whole one.
    """
    began = time.monotonic()
    found: dict[str, dict[str, Any]] = {}
    deaths: list[str] = []
    while len(deaths) < kills or not found:
        label = f"killed {len(found) - 1}" if found else "whole"
        (home / label).mkdir()
        left = kills - len(deaths) if found else 0
        found[label] = sweep(home / label, new_url(), left, seed + len(found), seconds=7200)
        deaths += found[label]["deaths"]
        shutil.rmtree(home / label, ignore_errors=True)
        del found[label]["said"]
        print(label, json.dumps(found[label]), flush=True)
    whole, *killed = found.values()
    keys = ("losses", "versions", "successes")
    counts = {
        "rank_kills": len(deaths),
        "rank_kills_of_leader": deaths.count("rank 0"),
        "rank_kills_of_follower": deaths.count("rank 1"),
        "rank_kills_of_collectors": deaths.count("collector"),
        "killed_loops": len(killed),
        "killed_loops_same": sum(all(one[key] == whole[key] for key in keys) for one in killed),
        "groups_begun": sum(one["begun"] for one in killed),
    }
    figures = {name: {"value": float(value), "unit": "1"} for name, value in counts.items()}
    return {"figures": figures, "seconds": round(time.monotonic() - began, 1)}


if __name__ == "__main__":
    from databases import cluster

    from treewright.agent.runs.figures import write_result

    with cluster() as fresh, tempfile.TemporaryDirectory(prefix="ranks-") as place:
        told = many_kills(Path(place), fresh, int(sys.argv[1]))
    print(json.dumps(told["figures"], indent=1))
    if len(sys.argv) > 2:
        write_result(Path(sys.argv[2]), told)
    same = told["figures"]["killed_loops_same"] == told["figures"]["killed_loops"]
    print("the same losses, weights and successes" if same else "DIFFERENT")
    sys.exit(0 if same else 1)
