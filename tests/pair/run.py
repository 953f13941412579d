"""What the tests that two builds share cost in each: `make tests-pair`, or

    python -P tests/pair/run.py [OLD NEW] [--json docs/performance.json] [--share N] [--rounds N] [--workers N]

A build is a commit or a folder with a checkout; without names, the build before 0.2.0 and this one. Tests are the same
where the names of function and parameters are, whatever file they stand in; a name that is there twice in one build is
matched by its file. Both run with this interpreter, its packages and one torch thread, in turns A B A B. What counts is
the processor time of everything that pytest started and that has ended, orphans included, and wall clock.

--share N takes every Nth file of the old build, by its name, for a machine that has less time; the result says so.
--files PART … takes files with one of these parts in their names, in both builds; such a run is not written.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from treewright.agent.runs.figures import commit
from treewright.benchmarks.pair import BEFORE, keep, ratio_of

__all__ = ["Turn", "checkout", "collected", "main", "shared", "turn"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEAREST = 12  # files that the result tells of
LINGER = 10.0  # seconds
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux: orphans become ours, so that what they took is counted


@dataclass(slots=True)
class Turn:
    """One run of the shared tests: seconds, and of each test its seconds of processor and how it ended."""

    processor: float
    wall: float
    tests: dict[str, tuple[float, str]] = field(default_factory=dict)


@contextmanager
def checkout(name: str) -> Iterator[Path]:
    """The folder of a build with a git of its own, which some tests ask; `.venv` and the servers are this one's."""
    if (Path(name) / "pkg" / "treewright").is_dir():
        yield Path(name).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="treewright-tests-") as folder:
        there = Path(folder) / "build"
        for words in (["clone", "-q", "-s", "-n", str(ROOT), str(there)], ["-C", str(there), "checkout", "-q", name]):
            done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(
                    f"error: there is no build {name} here ({done.stderr.strip()}): name a folder with a checkout, or, "
                    "in a clone without history, type git fetch --unshallow"
                )
        for link in (".venv", ".venv-servers"):
            if (ROOT / link).exists():
                (there / link).symlink_to((ROOT / link).resolve())
        yield there


def _line(build: Path, *words: str) -> tuple[list[str], dict[str, str]]:
    path = os.pathsep.join([str(build / "pkg"), str(HERE)])
    own = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
           "OMP_NUM_THREADS": "1"}  # fmt: skip
    line = [sys.executable, "-P", "-m", "pytest", "-p", "pair_plugin", *words]
    return line, {**os.environ, **own}


def collected(build: Path, parts: Sequence[str] = ()) -> list[str]:
    """Node ids of a build's tests, of all files or of those with one of these parts in their names."""
    files = [str(one.relative_to(build)) for one in sorted((build / "tests").rglob("test_*.py"))]
    files = [file for file in files if any(part in file for part in parts)]
    line, own = _line(build, "--collect-only", "-q", "-W", "ignore", *files)
    with tempfile.TemporaryDirectory(prefix="treewright-tests-") as folder:
        listed = Path(folder) / "listed.txt"
        own["TREEWRIGHT_PAIR_LISTED"] = str(listed)
        done = subprocess.run(line, cwd=build, env=own, capture_output=True, text=True, check=False)
        names = listed.read_text().splitlines() if listed.exists() else []
    if not names:
        raise SystemExit(f"error: pytest found no tests in {build}:\n{(done.stdout + done.stderr)[-800:]}")
    return names


def shared(old: Sequence[str], new: Sequence[str]) -> dict[str, str]:
    """{test of the old build: the same of the new one}."""

    def by_name(names: Sequence[str]) -> dict[str, list[str]]:
        found: defaultdict[str, list[str]] = defaultdict(list)
        for name in names:
            found[name.split("::", 1)[1]].append(name)
        return found

    first, second = by_name(old), by_name(new)
    pairs: dict[str, str] = {}
    for key, olds in first.items():
        news = second.get(key, [])
        if len(olds) == len(news) == 1:
            pairs[olds[0]] = news[0]
        else:
            pairs.update({one: one for one in olds if one in news})
    return pairs


def turn(build: Path, names: Sequence[str], workers: int) -> Turn:
    """Runs these tests of a build once."""
    files = sorted({name.split("::")[0] for name in names})
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory(prefix="treewright-costs-") as folder:
        listed, costs = Path(folder) / "names.txt", Path(folder) / "costs"
        listed.write_text("\n".join(names))
        costs.mkdir()
        side = ["-n", str(workers), "--dist", "loadfile"] if workers > 1 else []
        line, own = _line(build, "-q", "--tb=no", "-W", "ignore", *side, *files)
        own |= {"TREEWRIGHT_PAIR_NAMES": str(listed), "TREEWRIGHT_PAIR_COSTS": str(costs)}
        with (Path(folder) / "said.txt").open("w+") as said:
            child = subprocess.Popen(line, cwd=build, env=own, stdout=said, stderr=said)
            spent, code, wall = _waited(child.pid)
            child.returncode = code
            if code not in (0, 1):
                said.seek(0)
                raise SystemExit(f"error: pytest ended with {code} in {build}:\n{said.read()[-2000:]}")
        rows = [json.loads(row) for file in costs.iterdir() for row in file.read_text().splitlines()]
    return Turn(spent, wall, {name: (processor, end) for name, processor, _, end in rows})


def _waited(pid: int) -> tuple[float, int, float]:
    """Seconds of processor of this child and of all that were orphaned, its exit status, and its wall clock.

    What outlives the child has LINGER seconds to end: the servers that tests fork commands from do.
    """
    spent, code, end, began = 0.0, None, 0.0, time.monotonic()
    while code is None or time.monotonic() < end:
        try:
            ended, status, usage = os.wait4(-1, 0 if code is None else os.WNOHANG)
        except ChildProcessError:
            break
        if ended == 0:
            time.sleep(0.05)
            continue
        spent += usage.ru_utime + usage.ru_stime
        if ended == pid:
            code, end = os.waitstatus_to_exitcode(status), time.monotonic() + LINGER
    assert code is not None
    return spent, code, end - LINGER - began


def main(words: Sequence[str]) -> None:
    asked = argparse.ArgumentParser(prog="python -P tests/pair/run.py", description=__doc__)
    asked.add_argument("builds", nargs="*", help="OLD and NEW")
    asked.add_argument("--json")
    asked.add_argument("--rounds", type=int, default=1)
    asked.add_argument("--share", type=int, default=1)
    asked.add_argument("--workers", type=int, default=2)
    asked.add_argument("--files", nargs="+", default=[])
    asked.add_argument("--each", help="a file for the costs of each test, JSON")
    given = asked.parse_args(words)
    builds: list[str] = given.builds
    if len(builds) > 2:
        asked.error(f"two builds are compared, {len(builds)} were named: OLD NEW")
    old, new = (*builds, *(BEFORE, str(ROOT))[len(builds) :])
    with checkout(old) as first, checkout(new) as second:
        pairs = shared(collected(first, given.files), collected(second, given.files))
        kept = sorted({name.split("::")[0] for name in pairs})[:: given.share]
        pairs = {one: same for one, same in pairs.items() if one.split("::")[0] in kept}
        print(f"{len(pairs)} tests are in both builds{_of(given.share)}", flush=True)
        turns: tuple[list[Turn], list[Turn]] = ([], [])
        for _ in range(given.rounds):
            for build, names, taken in zip((first, second), (list(pairs), list(pairs.values())), turns, strict=True):
                taken.append(turn(build, names, given.workers))
                ends = Counter(end for _, end in taken[-1].tests.values())
                print(f"{build.name}: {taken[-1].processor:.1f} s of processor, {taken[-1].wall:.1f} s, {dict(ends)}",
                      flush=True)  # fmt: skip
    told = _told(pairs, *turns)
    told |= {"old": old, "new": commit(), "workers": given.workers, "share": given.share}
    told |= {"load": round(os.getloadavg()[2], 1), "files": _dearest(pairs, *turns)}
    print(json.dumps(told, indent=1))
    if given.each:
        sides = [{name: list(cost) for name, cost in side[0].tests.items()} for side in turns]
        Path(given.each).write_text(json.dumps({"pairs": pairs, "old": sides[0], "new": sides[1]}))
    if given.json and not given.files:
        keep(Path(given.json), {"tests": told})


def _of(share: int) -> str:
    return "" if share == 1 else f", one file of {share}"


def _dearest(pairs: Mapping[str, str], old: Sequence[Turn], new: Sequence[Turn]) -> dict[str, list[float]]:
    """{file of this build: seconds of processor of its shared tests, before and after} of those that take most."""
    found: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for names in pairs.items():
        sums = found[names[1].split("::")[0]]
        for i, turns in enumerate((old, new)):
            sums[i] += median(one.tests.get(names[i], (0.0, ""))[0] for one in turns)
    most = sorted(found.items(), key=lambda one: -max(one[1]))[:DEAREST]
    return {file: [round(seconds, 2) for seconds in sums] for file, sums in most}


def _told(pairs: Mapping[str, str], old: Sequence[Turn], new: Sequence[Turn]) -> dict[str, Any]:
    """What the page shows. `passed`: tests that passed in both builds in all turns, and the processor time of those."""

    def good(turns: Sequence[Turn], name: str) -> bool:
        return all(one.tests.get(name, (0.0, ""))[1] == "passed" for one in turns)

    both = [(a, b) for a, b in pairs.items() if good(old, a) and good(new, b)]
    own = [[sum(one.tests[pair[i]][0] for pair in both) for one in side] for i, side in enumerate((old, new))]
    told: dict[str, Any] = {"tests": len(pairs), "passed": len(both), "rounds": len(old)}
    kinds = {"processor": ([one.processor for one in old], [one.processor for one in new]),
             "wall": ([one.wall for one in old], [one.wall for one in new]), "passed_processor": own}  # fmt: skip
    for kind, (before, after) in kinds.items():
        ratio, low, high = ratio_of(before, after)
        told[kind] = {"before": median(before), "after": median(after), "ratio": ratio, "low": low, "high": high}
    return told


if __name__ == "__main__":
    main(sys.argv[1:])
