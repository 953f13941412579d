"""Every parser of outside data with inputs that nobody meant: an error of ours within a second, or a right result.

    fuzz.py [--quick] [--inputs N] [--seed N] [--only NAME,NAME] [--json FILE]

Half of the inputs of a parser are real ones, changed (`mutations.py`), the rest are of any shape (hypothesis). The same
seed gives the same inputs. A traceback is an exception that is none of the package's errors, a hang is more than a
second of processor time, a partial write is something half written that an error left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import logging
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from mutations import chosen
from outside_calls import PartialWrite
from outside_parsers import PARSERS, Parser

HANG = 1.0  # seconds of processor time for one input
LEFT = 30  # more such seconds, after which the system ends the process: what hangs in C hears no signal of Python
MEMORY_LIMIT = 16 << 30
QUICK, FULL = 8_000, 1_000_000
SHAPED = 0.25  # of the inputs, where a parser has shapes


class Hang(BaseException):
    """An input took more than a second of processor time."""


@dataclass
class Found:
    """What became of the inputs of one parser; `shown` holds the first input of each kind of failure."""

    inputs: int = 0
    refused: int = 0
    tracebacks: int = 0
    hangs: int = 0
    partial_writes: int = 0
    wordless: int = 0
    slowest: float = 0.0
    shown: dict[str, str] = field(default_factory=dict)

    @property
    def failures(self) -> int:
        return self.tracebacks + self.hangs + self.partial_writes + self.wordless


_OWN: list[bool] = []  # holds something once this process is the harness's own


def bound() -> None:
    """Limits memory and processor time of this process, which must be one of the harness alone.

    What takes all memory fails; what hangs in C ends the process, and its stack is told.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    faulthandler.register(signal.SIGXCPU, chain=True)
    _OWN.append(True)


def _stop(*_: Any) -> None:
    raise Hang


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Ends what takes longer than HANG; processor time, so that a busy machine is no hang.

    Again and again: somebody may catch the first one.
    """
    if _OWN:
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + LEFT, resource.RLIM_INFINITY))
    before = signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, HANG, HANG)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def tried(parser: Parser, given_: Any, found: Found) -> None:
    """One input."""
    found.inputs += 1
    began = time.process_time()
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        try:
            with watched():
                parser.parse(given_, Path(folder))
        except Hang:
            found.hangs += 1
            found.shown.setdefault("hang", repr(given_)[:2000])
        except PartialWrite as error:
            found.partial_writes += 1
            found.shown.setdefault(f"partial write: {error}"[:160], repr(given_)[:2000])
        except parser.errors as error:
            found.refused += 1
            if len(str(error).strip()) < 8:
                found.wordless += 1
                found.shown.setdefault(f"no words: {error!r}"[:160], repr(given_)[:2000])
        except Exception as error:
            found.tracebacks += 1
            last = traceback.extract_tb(error.__traceback__)
            ours = next((f for f in reversed(last) if "/tests/" not in f.filename and "site-packages" not in f.filename
                         and "/lib/python" not in f.filename), last[-1])  # fmt: skip
            kind = f"{type(error).__name__}: {str(error)[:90]} ({Path(ours.filename).name}:{ours.lineno})"
            found.shown.setdefault(kind, repr(given_)[:2000])
    found.slowest = max(found.slowest, time.process_time() - began)


MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


def run(parser: Parser, inputs: int, seed: int) -> Found:
    """So many inputs of one parser, the same for the same seed."""
    found, rng = Found(), random.Random(f"{seed} {parser.name}")
    shaped = round(inputs * SHAPED) if parser.shapes is not None else 0
    for _ in range(inputs - shaped):
        tried(parser, chosen(parser.seeds, rng, parser.change), found)
    if shaped and parser.shapes is not None:
        checks = list(HealthCheck)

        @seeded(rng.randrange(2**32))
        @settings(max_examples=shaped, database=None, deadline=None, suppress_health_check=checks, derandomize=False)
        @given(parser.shapes)
        def every(made: Any) -> None:
            tried(parser, made, found)

        every()
    return found


def run_all(inputs: int, seed: int = 0, only: Sequence[str] = (), told: bool = False) -> dict[str, Found]:
    """The inputs, shared out over the parsers (or those named)."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    parsers = [p for p in PARSERS if not only or p.name in only]
    each = inputs / sum(p.share for p in parsers)
    out: dict[str, Found] = {}
    for parser in parsers:
        found = out[parser.name] = run(parser, max(round(each * parser.share), 20), seed)
        if told:
            bad = f"  {found.failures} FAILED" if found.failures else ""
            print(f"{parser.name:22} {found.inputs:8} inputs, {found.refused:8} refused, slowest "
                  f"{found.slowest:.2f} s{bad}", flush=True)  # fmt: skip
            for kind, example in found.shown.items():
                print(f"    {kind}\n        {example[:400]}", flush=True)
    logging.disable(logging.NOTSET)
    return out


def figures(found: dict[str, Found]) -> dict[str, int]:
    """Flat counts."""
    total: Counter[str] = Counter()
    for one in found.values():
        total.update(inputs=one.inputs, refused=one.refused, tracebacks=one.tracebacks + one.wordless, hangs=one.hangs,
                     partial_writes=one.partial_writes)  # fmt: skip
    return {f"fuzz_{name}": total[name] for name in ("inputs", "refused", "tracebacks", "hangs", "partial_writes")} | {
        "fuzz_parsers": len(found)
    }


def main(words: Sequence[str]) -> int:
    global HANG
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} inputs")
    parser.add_argument("--inputs", type=int, default=None, help=f"how many in all ({FULL})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="names of parsers, with commas")
    parser.add_argument("--hang", type=float, default=HANG, help=f"seconds that one input may take ({HANG:g})")
    parser.add_argument("--json", type=Path, default=None)
    asked = parser.parse_args(words)
    HANG = asked.hang
    found = run_all(
        asked.inputs or (QUICK if asked.quick else FULL), asked.seed, [x for x in asked.only.split(",") if x], True
    )
    counts = figures(found)
    print(", ".join(f"{value} {name}" for name, value in counts.items()))
    if asked.json is not None:
        asked.json.write_text(json.dumps(counts, indent=1) + "\n")
    return 1 if any(one.failures for one in found.values()) else 0


if __name__ == "__main__":
    bound()
    sys.exit(main(sys.argv[1:]))
