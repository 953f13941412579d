"""Commands as people type them, ended in the middle for real; typed again, they end where an undisturbed run ends.

    python -P tests/faults/kill_commands.py                       # 40 kills of every command, and everything else
    python -P tests/faults/kill_commands.py --quick --json F      # a few of each
    python -P tests/faults/kill_commands.py --only train --kills 200

Processes are killed, interrupted, ended, stopped and let go on, at every kind of point (a file opened, renamed, synced;
a transaction before and after its commit) and at random moments. Every write of a file fails once, disks are small or
cannot be written, clocks jump, a line is typed twice at once. One line a check; the file holds one number a name, of
which those that must be 0 are `kills_lost`, `kills_digest_changed`, `kills_orphans`, `partial_files`,
`ledger_duplicates`, `doubts_unsaid`, `sent_in_doubt`, `trained_twice`, `updates_unknown`, `stores_damaged`,
`tracebacks`, `errors_unsaid`, `changed_read_only`, `races_lost_by_both` and `checks_failed`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from kill_lines import LINES
from kill_more import explore_line, read_only, served, site, small_disk, taken_up, two_at_once
from kill_trials import Broken, Counts, Fate, Line, Whole, fates, place, trial, undisturbed

ZERO = (
    "kills_lost", "kills_digest_changed", "kills_orphans", "partial_files", "ledger_duplicates", "doubts_unsaid",
    "sent_in_doubt", "trained_twice", "updates_unknown", "stores_damaged", "tracebacks", "errors_unsaid",
    "changed_read_only", "races_lost_by_both", "checks_failed",
)  # fmt: skip
OTHERS = ("int", "term", "stop", "clock")
LIVE = "commit "
ROOMS = {"collect": 16384, "export": 4096, "train": 1 << 20, "upgrade": 16384}  # steps of a small disk's room


class Sweep:
    """Checks, one after the other; one that fails is told and counted, and the next one begins."""

    def __init__(self, home: Path, seed: int, tell: Callable[[str], object] = print) -> None:
        self.home, self.rng, self.tell, self.counts = home, random.Random(seed), tell, Counts()

    @contextmanager
    def check(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        except PermissionError as error:
            self.counts["checks_left_out"] += 1
            self.tell(f"left out  {what}: {error}")
        except Exception as error:
            self.counts["checks_failed"] += 1
            if isinstance(error, Broken):
                self.counts[error.what] += 1
            self.tell(f"FAILED    {what}: {type(error).__name__}: {error}")
        else:
            self.counts["checks"] += 1
            self.tell(f"ok        {what}  ({time.monotonic() - began:.1f} s)")

    def known(self, line: Line) -> tuple[Path, Whole]:
        """The folder that the line is typed in, and what an undisturbed run of it leaves."""
        home = self.home / line.name.replace(" ", "-")
        home.mkdir()
        line.begin(home / "base")
        return home / "base", undisturbed(line, home / "base", home)

    def fate(self, line: Line, base: Path, whole: Whole, one: Fate) -> None:
        at = f"after {one.after:.2f} s" if one.after is not None else f"{one.at}: {whole.points[one.at or 0]}"
        with self.check(f"{line.name}: {one.how} at {at}"), place(self.home) as folder:
            trial(line, base, folder, whole, one, self.counts)

    def line(self, line: Line, kills: int, each: int, disks: int, writes: int = 0) -> None:
        """Everything that may happen to one command.

        kills  SIGKILLs;  each  of the other signals;  writes  that fail, 0 for every one;  disks  of small ones
        """
        base, whole = self.known(line)
        for one in fates(line, whole, self.rng, "kill", kills):
            self.fate(line, base, whole, one)
        for how in OTHERS:
            for one in fates(line, whole, self.rng, how, 1 if how == "clock" else each):
                self.fate(line, base, whole, one)
        if line.name.startswith(LIVE):
            return
        for one in fates(line, whole, self.rng, "full", writes or len(whole.points)):
            self.fate(line, base, whole, one)
        with self.check(f"{line.name}: twice at once"), place(self.home) as folder:
            two_at_once(line, base, folder, whole, self.counts)
        with self.check(f"{line.name}: nothing can be written"):
            read_only(line, base, self.home, whole, self.counts)
        self.disks(line, base, whole, disks)

    def disks(self, line: Line, base: Path, whole: Whole, most: int) -> None:
        """Disks with more and more room, until the command gets through on one; at most so many, spread by doubling."""
        step, room = ROOMS.get(line.name, 0), 0
        for number in range(most if step else 0):
            with self.check(f"{line.name}: {room} bytes of room"):
                if small_disk(line, base, self.home, whole, room, self.counts):
                    return
            room = room + step if most >= 99 else step << number

    def serving(self, kills: int) -> None:
        for number in range(kills):
            how = ("kill", "kill", "int", "term")[number % 4]
            one = Fate("kill", at=self.rng.randrange(5, 60))
            if number % 2:
                one = Fate(how, after=0.05 + self.rng.random())
            with self.check(f"serve: {one}"), place(self.home) as folder:
                self.counts["calls_acknowledged"] += served(folder, one, self.counts)

    def big(self, nodes: int) -> None:
        with self.check(f"collect: taken up at {nodes} nodes"), place(self.home) as folder:
            took, worked = taken_up(folder, nodes)
            self.counts["resume_nodes"], self.counts["resume_milliseconds"] = nodes, int(took * 1000)
            self.counts["resume_processor_milliseconds"] = int(worked * 1000)


def chosen(only: Sequence[str], name: str) -> bool:
    return not only or any(name.startswith(word) for word in only)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few of each")
    parser.add_argument("--kills", type=int, help="SIGKILLs of each command; 40, or 3 with --quick")
    parser.add_argument("--each", type=int, help="of every other signal; 6, or 1")
    parser.add_argument("--writes", type=int, help="writes that fail; every one, or 1")
    parser.add_argument("--disks", type=int, help="small disks; as many as it takes, or 2")
    parser.add_argument("--nodes", type=int, help="of the tree that is taken up; 100,000, or 500")
    parser.add_argument("--json", type=Path, help="where the counts go")
    parser.add_argument("--only", nargs="*", default=(), help="what begins so: collect, train, serve, resume …")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(words)
    quick = asked.quick
    kills = asked.kills if asked.kills is not None else (3 if quick else 40)
    usual = (1, 1, 2, 500) if quick else (6, 0, 99, 100_000)
    given = (asked.each, asked.writes, asked.disks, asked.nodes)
    each, writes, disks, nodes = (own if one is None else one for one, own in zip(given, usual, strict=True))
    with tempfile.TemporaryDirectory(prefix="kills-") as name, ExitStack() as stack:
        sweep = Sweep(Path(name), asked.seed, lambda text: print(text, flush=True))

        def keep() -> dict[str, int]:
            """Writes the counts so far: what is stopped has them."""
            counts = {**dict.fromkeys(ZERO, 0), **sweep.counts}
            if asked.json is not None:
                asked.json.write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n")
            return counts

        for line in LINES:
            if chosen(asked.only, line.name) and not (quick and line.name.startswith(LIVE) and line.name.endswith("8")):
                with sweep.check(f"{line.name}: all of it"):
                    sweep.line(line, kills, each, disks, writes)
                keep()
        if chosen(asked.only, "explore"):
            with sweep.check("explore: all of it"):
                sweep.line(explore_line(stack.enter_context(site())), kills // 4 or 1, each if not quick else 0, 0, 1)
        if chosen(asked.only, "serve"):
            sweep.serving(kills if not quick else 2)
        if chosen(asked.only, "resume"):
            sweep.big(nodes)
        counts = keep()
    print(json.dumps(counts), flush=True)
    return 1 if any(counts[name] for name in ZERO) else 0


if __name__ == "__main__":
    sys.exit(main())
