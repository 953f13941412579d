"""A loop of two ranks and two collectors over PostgreSQL whose processes are killed at random; see test_ranks_loop.py.

The processes are what `torchrun … -m treewright loop` and `treewright collector` run, begun from a server that has the
heavy packages loaded, so that beginning one again costs little. `sweep` begins again what was killed.
As a script: python ranks_loop.py KILLS [JSON], beside a throw-away PostgreSQL.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

SETTINGS = ("loop.iterations=3", "loop.tasks=4", "loop.collectors=0", "loop.lease=2", "search.expansions=2",
            "train.minibatches=1", "train.lr=0.0003", 'policy.options={"batch_requests": false}')  # fmt: skip


PATIENCE = 3.0  # seconds that a rank has to end by itself once the other has; one that waits to meet it waits minutes


def context() -> ForkServerContext:
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(
        ["treewright.agent.cli.lean_start", "ranks_loop",
         "treewright.training.parallel.trainer", "treewright.training.parallel.states",
         "treewright.agent.runs.collectors", "treewright.agent.cli.main", "treewright.agent.policies.hf",
         "transformers.models.qwen3.modeling_qwen3", "transformers.models.auto.modeling_auto", "psycopg"]
    )  # fmt: skip
    return found


def quiet(folder: Any, name: str) -> None:
    out = os.open(Path(folder) / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)


def rank(
    folder: Any,
    url: str,
    number: str,
    meeting: Any,
    settings: tuple[str, str, str, str, str, str, str, str] = SETTINGS,
    world: int = 2,
) -> None:
    import torch

    from treewright.agent.cli.main import main

    quiet(folder, f"rank{number}")
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(world),
                   "TREEWRIGHT_LAUNCHER": meeting, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}  # fmt: skip
    sets = [f"folder={Path(folder) / 'run'}", f"store={url}", *settings]
    sys.argv = ["treewright", "loop", "--suites", "kg", *(word for s in sets for word in ("--set", s))]
    main()


def collects(
    folder: Any, url: str, number: str, settings: tuple[str, str, str, str, str, str, str, str] = SETTINGS
) -> None:
    import torch

    from treewright.agent.config import load_config
    from treewright.agent.runs.collectors import collector

    quiet(folder, f"collector{number}")
    torch.set_num_threads(1)
    config = load_config(None, [f"folder={Path(folder) / 'run'}", f"store={url}", *settings], {"worlds.suites": ["kg"]})
    collector(config.model_dump_json(), url, config.loop.lease)


class Group:
    """The four processes; whoever ended is begun again by `mend`."""

    def __init__(
        self, folder: Path, url: str, settings: tuple[str, str, str, str, str, str, str, str] = SETTINGS
    ) -> None:
        self.folder, self.url, self.settings, self.context = folder, url, settings, context()
        self.ranks: list[Any] = []
        self.collectors: list[Any] = [None, None]
        self.begun = 0
        self.alone: float | None = None  # since when one rank has died and the other has not ended

    def mend(self) -> bool:
        """Begins again what has ended; True once the loop is through."""
        if self.ranks and self.ranks[0].exitcode == 0:
            return True
        self._end_of_the_other()
        if not self.ranks or not any(r.is_alive() for r in self.ranks):
            self.begun += 1
            meeting = str(Path(self.folder) / f"meeting{self.begun}")
            self.ranks = [
                self.context.Process(target=rank, args=(self.folder, self.url, i, meeting, self.settings))
                for i in range(2)
            ]
            for one in self.ranks:
                one.start()
        for i, one in enumerate(self.collectors):
            if one is None or not one.is_alive():
                self.collectors[i] = self.context.Process(
                    target=collects, args=(self.folder, self.url, i, self.settings)
                )
                self.collectors[i].start()
        return False

    def _end_of_the_other(self) -> None:
        """As torchrun and `loop --processes` do: a group that has lost a rank ends as a whole."""
        living = [one for one in self.ranks if one.is_alive()]
        if not living or not any(one.exitcode for one in self.ranks):
            self.alone = None
        elif self.alone is None:
            self.alone = time.monotonic()
        elif time.monotonic() - self.alone > PATIENCE:
            for one in living:
                one.kill()
                one.join()

    def end(self) -> None:
        for one in (*self.ranks, *self.collectors):
            if one is not None and one.is_alive():
                one.kill()
                one.join()


def sweep(
    folder: Path,
    url: str,
    kills: int,
    seed: int = 0,
    settings: tuple[str, str, str, str, str, str, str, str] = SETTINGS,
    seconds: float = 600.0,
    slow: float = 1.0,
) -> dict[str, Any]:
    """Runs the loop to its end while `kills` times one of the four is killed; losses by iteration, versions, deaths."""
    rng, group = random.Random(seed), Group(folder, url, settings)
    deaths: list[Any]
    end, deaths, at = time.monotonic() + seconds, [], time.monotonic() + slow * rng.uniform(0.5, 3)
    try:
        while not group.mend():
            assert time.monotonic() < end, f"not through after {seconds:.0f} s and {len(deaths)} kills"
            time.sleep(0.05)
            if len(deaths) < kills and time.monotonic() > at:
                everyone = zip(
                    ("rank 0", "rank 1", "collector", "collector"), group.ranks + group.collectors, strict=True
                )
                name, victim = rng.choice(list(everyone))
                if victim.is_alive():
                    os.kill(victim.pid, signal.SIGKILL)
                    victim.join()
                    deaths.append(name)
                at = time.monotonic() + slow * rng.uniform(0.1, 3)
        for one in group.ranks:
            one.join(30)
    finally:
        group.end()
    lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    return {
        "losses": {line["iteration"]: line["loss"] for line in lines},
        "versions": {line["iteration"]: line["policy_version"] for line in lines},
        "successes": {line["iteration"]: line["success"]["kg"] for line in lines},
        "deaths": deaths, "begun": group.begun,
    }  # fmt: skip


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
        found[label] = sweep(home / label, new_url(), left, seed + len(found), seconds=7200, slow=0.3)
        deaths += found[label]["deaths"]
        shutil.rmtree(home / label, ignore_errors=True)
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
