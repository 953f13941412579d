"""How much `bench real` measures, and what it measured before it was stopped: parts that are done are kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.envs.registry import suite
from treewright.envs.whole import write_whole

__all__ = ["FULL", "QUICK", "Figures", "Size", "folder_of", "kept", "measuring", "share_interval", "size_of", "sized"]

Figures = dict[str, tuple[float, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What is measured.

    tasks     of each suite, one rollout for each way of prompting;  suites  of `SUITES`, from the first
    trees     whose log-probs are compared;  gradients  of those, whose gradient is, too
    demos, held_out, taught  of imitation: training tasks that oracles play, one number or one for each suite;
              held-out tasks of each suite; the suites
    untouched  held-out tasks of each suite that the untouched model plays, most of them to the end of each draw
    rounds, trees_a_round, seeds   of training by trees and by chains; the trees of all suites that are taught
    first     trees a round of the first suite, the others share the rest; 0: all have as many, as where other suites
              are named
    chains    1, or 0 to leave them out
    tokens    that chains of each seed draw at least, without trees beside them, where those were trained before; 0: as
              many as the trees of their seed, which are trained first
    beside    loops that are trained at once, each in a process of its own
    judged    held-out tasks that each rule with each judge searches
    loop      tasks of the round whose memory is measured
    pack      tokens of a pack in training; prompts that many tasks begin with, such as a long list of tools, are
              computed once for each pack
    """

    tasks: int = 6
    suites: int = 3
    trees: int = 50
    gradients: int = 50
    demos: tuple[int, ...] = (240, 60)
    held_out: int = 100
    taught: tuple[str, ...] = ("office", "workbench")
    untouched: int = 8
    rounds: int = 18
    trees_a_round: int = 24
    first: int = 14
    seeds: int = 3
    chains: int = 1
    tokens: int = 0
    beside: int = 3
    judged: int = 16
    loop: int = 16
    pack: int = 2048

    @property
    def shown(self) -> dict[str, int]:
        """`demos` by suite."""
        each = self.demos * len(self.taught) if len(self.demos) == 1 else self.demos
        return dict(zip(self.taught, each, strict=True))


FULL = Size()
QUICK = Size(
    tasks=2,
    suites=1,
    trees=8,
    gradients=8,
    demos=(6,),
    held_out=4,
    taught=("kg",),
    untouched=4,
    rounds=1,
    trees_a_round=2,
    first=0,
    seeds=1,
    beside=1,
    judged=2,
    loop=2,
    pack=1024,
)


def sized(text: str | None, base: Size = FULL) -> Size:
    """`tasks=4,taught=kg+stdlib,demos=60+90` as a size, the rest as in `base`.

    Raises TreewrightError for what it does not know."""
    known = {field.name for field in dataclasses.fields(Size)}
    given = dict[str, Any]()
    for part in (text or "").replace(" ", "").split(","):
        name, _, value = part.partition("=")
        words = value.split("+")
        numbers = all(word.isdecimal() and (int(word) or name in ("chains", "first", "tokens")) for word in words)
        if name == "taught":
            given[name] = tuple(suite(word).name for word in words)
            given.setdefault("first", 0)
        elif part and (name not in known or not numbers or (len(words) > 1 and name != "demos")):
            raise TreewrightError(
                f"--size {part}: write NAME=NUMBER, taught=SUITE+SUITE or demos=NUMBER+NUMBER, separated by commas; "
                f"names: {', '.join(sorted(known))}"
            )
        elif part:
            given[name] = tuple(map(int, words)) if name == "demos" else int(value)
    size = dataclasses.replace(base, **given)
    if size.tokens and not size.chains:
        raise TreewrightError(f"--size chains=0,tokens={size.tokens}: chains draw these tokens; leave one of both out")
    if len(size.demos) not in (1, len(size.taught)):
        raise TreewrightError(
            f"--size demos={'+'.join(map(str, size.demos))}: write one number, or one for each of "
            f"taught={'+'.join(size.taught)}"
        )
    return size


@dataclass(frozen=True, slots=True)
class _Measuring:
    size: Size
    folder: Path | None


_NOW: ContextVar[_Measuring | None] = ContextVar("bench real", default=None)


@contextmanager
def measuring(size: Size, folder: Path | None) -> Iterator[None]:
    """Sections measure so much meanwhile, and keep parts in the folder; None keeps nothing."""
    token = _NOW.set(_Measuring(size, folder))
    try:
        yield
    finally:
        _NOW.reset(token)


def size_of(quick: bool) -> Size:
    """The size that is measured now."""
    now = _NOW.get()
    return now.size if now is not None else QUICK if quick else FULL


def folder_of(part: Mapping[str, object]) -> Path | None:
    """Where what belongs to a part that `part` describes is kept; None where nothing is."""
    now = _NOW.get()
    if now is None or now.folder is None:
        return None
    said = json.dumps(part, sort_keys=True, default=str)
    return now.folder / f"{part['part']}-{hashlib.blake2b(said.encode(), digest_size=6).hexdigest()}"


def kept(part: Mapping[str, object], measure: Callable[[], Figures]) -> Figures:
    """The figures of a part: those of an earlier run in the same folder, else measured now."""
    folder = folder_of(part)
    if folder is None:
        return measure()
    file = folder.with_suffix(".json")
    if file.exists():
        found = json.loads(file.read_text("utf-8"))
        return {name: (float(value), str(unit)) for name, (value, unit) in found["figures"].items()}
    figures = measure()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps({"of": part, "figures": figures}, indent=1, default=str) + "\n")
    return figures


def share_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count` independent observations; (0, 1) of none."""
    if not count:
        return 0.0, 1.0
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)
