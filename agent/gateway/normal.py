"""When two requests count as the same: all that is equal once what changes by itself is taken out.

Built in are the run's own folder and address, and what nobody writes twice alike: dates with times, UUIDs, long hex
ids, Unix times, addresses in memory, temporary paths. A user declares more as regular expressions. Before a search, a
task is begun twice: where the two requests differ in an id or a number, that place is learnt. What is learnt counts
in the same message of the same conversation alone, between the words that stand around it, and matches nothing in
which the two requests agree: a rule that took out more would take out what a replay is compared by.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from treewright.envs.errors import TreewrightError

__all__ = ["BUILT_IN", "Learnt", "Normal", "difference", "learned"]

BUILT_IN: Mapping[str, str] = {
    "date": r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?",
    "uuid": r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
    "hex": r"(?<![0-9A-Za-z])(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{16,}(?![0-9A-Za-z])",
    "time": r"(?<![\d.])1[6-9]\d{8}(?:\.\d+|\d{3})?(?![\d.])",
    "address": r"0x[0-9a-fA-F]{6,16}",
    "temporary": r"/(?:tmp|var/folders)/[\w./-]*",
}
WORDS = re.compile(r"\d+(?:[:.,]\d+)+(?![0-9A-Za-z])|[0-9A-Za-z]+|\s+|.", re.DOTALL)  # 12:03:44 is one
VOLATILE = re.compile(r"\d")  # a place that changes by itself holds a digit: words that change are another behaviour
ID = re.compile(r"[0-9A-Za-z_.:,-]+")
JOINTS = "-_.:"  # between two parts of an id that both change
WIDTHS = (16, 64, 256)  # characters on each side by which a learnt place is known again: as few as tell it apart
SHOWN = 60  # characters of a difference that are told
SAID = "/said/"


@dataclass(frozen=True, slots=True)
class Learnt:
    """A place that changes by itself.

    place    where in a request its text stands, such as /said/0:system/content
    pattern  what changes there, between what stands around it;  words  how it was learnt, for people
    """

    place: str
    pattern: str
    words: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Normal:
    """Rules in order: (name, regular expression). Each match becomes <name>; then what was learnt, in its place."""

    rules: tuple[tuple[str, str], ...] = tuple(BUILT_IN.items())
    learnt: tuple[Learnt, ...] = ()
    _compiled: tuple[tuple[str, re.Pattern[str]], ...] = field(init=False, repr=False, compare=False)
    _placed: Mapping[str, list[re.Pattern[str]]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            made = tuple((f"<{name}>", re.compile(pattern)) for name, pattern in self.rules)
        except re.error as error:
            raise TreewrightError(
                f"worlds.agent.normalise holds no regular expression: {error}; write pairs of a name and one"
            ) from error
        placed: dict[str, list[re.Pattern[str]]] = {}
        for one in self.learnt:
            placed.setdefault(one.place, []).append(re.compile(one.pattern))
        object.__setattr__(self, "_compiled", made)
        object.__setattr__(self, "_placed", placed)

    def with_rules(self, rules: Sequence[Learnt]) -> Normal:
        """With further places, taken out last: they were learnt of texts that the rules before had been applied to."""
        fresh = tuple(one for one in rules if one not in self.learnt)
        return Normal(self.rules, (*self.learnt, *fresh)) if fresh else self

    def text(self, value: str, own: Mapping[str, str] | None = None) -> str:
        """own  texts of this run alone, such as its folder, and what stands for them."""
        for text, name in (own or {}).items():
            value = value.replace(text, name)
        for name, pattern in self._compiled:
            value = pattern.sub(name, value)
        return value

    def of(self, value: Any, own: Mapping[str, str] | None = None, *, begins: bool = True) -> Any:
        """The JSON value with every text in it normalised; keys stay.

        begins  its messages are those that the first conversation begins with; what was learnt of them counts there
        """
        return self._of(value, own, begins, "")

    def _of(self, value: Any, own: Mapping[str, str] | None, begins: bool, at: str) -> Any:
        if isinstance(value, str):
            text = self.text(value, own)
            if begins or not at.startswith(SAID):
                for pattern in self._placed.get(at, ()):
                    text = pattern.sub("<learnt>", text)
            return text
        if isinstance(value, Mapping):
            return {key: self._of(inner, own, begins, f"{at}/{key}") for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._of(inner, own, begins, _entry(at, i, inner)) for i, inner in enumerate(value)]
        return value

    def key(self, value: Any, own: Mapping[str, str] | None = None, *, begins: bool = True) -> str:
        """Canonical JSON of the normalised value: equal for values that count as the same."""
        return json.dumps(self.of(value, own, begins=begins), sort_keys=True, ensure_ascii=False)


def _entry(at: str, i: int, inner: Any) -> str:
    role = inner.get("role") if isinstance(inner, Mapping) else None
    return f"{at}/{i}:{role}" if role else f"{at}/{i}"


def learned(first: Any, second: Any, apart: str = "") -> list[Learnt] | None:
    """Places without which two requests of the same beginning are the same; None where they differ in more than
    numbers, ids and the like, or where nothing tells such a place from others in which they agree.

    Both are JSON values that were normalised by the rules so far.
    apart  the task's own words: places are known by others, if they can, so that they are those of every task
    """
    pairs: list[tuple[str, str, str]] = []
    if not _pairs(first, second, pairs):
        return None
    found: list[Learnt] = []
    for place, one, other in pairs:
        while one != other:
            pattern = _pattern(one, other, apart)
            if pattern is None:
                return None
            found.append(Learnt(place, pattern, _told(place, one, other)))
            one, other = re.sub(pattern, "<learnt>", one), re.sub(pattern, "<learnt>", other)
    return found


def difference(first: Any, second: Any) -> str:
    """The first words in which two requests differ, for people."""
    pairs: list[tuple[str, str, str]] = []
    same = _pairs(first, second, pairs)
    if not pairs:
        return "" if same else "one has other messages, tools or settings"
    return _told(*pairs[0])


def _told(place: str, first: str, second: str) -> str:
    one, other = WORDS.findall(first), WORDS.findall(second)
    a, b, c, d = _spots(one, other)[0]
    left, right = "".join(one[a:b])[:SHOWN], "".join(other[c:d])[:SHOWN]
    return f"{left!r} in one is {right!r} in the other, at {place.strip('/') or 'its text'}"


def _pairs(first: Any, second: Any, out: list[tuple[str, str, str]], at: str = "") -> bool:
    """Texts that differ, with the place of both values where they stand; False where their structure differs."""
    if isinstance(first, str) and isinstance(second, str):
        if first != second:
            out.append((at, first, second))
        return True
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_pairs(first[k], second[k], out, f"{at}/{k}") for k in first)
    if isinstance(first, list) and isinstance(second, list):
        both = zip(first, second, strict=len(first) == len(second))
        inner = [_pairs(a, b, out, _entry(at, i, a)) for i, (a, b) in enumerate(both)]
        return len(first) == len(second) and all(inner)
    return bool(first == second)


def _spots(one: list[str], other: list[str]) -> list[tuple[int, int, int, int]]:
    """Where two texts differ, as ranges of their words. Parts of an id that all change are one spot."""
    same = next((i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other)))
    spots: list[tuple[int, int, int, int]] = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, one[same:], other[same:], autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        a, b, c, d = i + same, j + same, k + same, m + same
        if spots and a <= spots[-1][1] + 1 and all(word in JOINTS for word in one[spots[-1][1] : a]):
            a, c = spots[-1][0], spots.pop()[2]
        spots.append((a, b, c, d))
    return spots


def _pattern(first: str, second: str, apart: str) -> str | None:
    """A regular expression for the first place in which two texts differ, that matches nothing in which they agree."""
    one, other = WORDS.findall(first), WORDS.findall(second)
    spots = _spots(one, other)
    a, b, c, d = spots[0]
    left, right = "".join(one[a:b]), "".join(other[c:d])
    if not all(VOLATILE.search(text) and ID.fullmatch(text) for text in (left, right)):
        return None
    after = "".join(one[b : spots[1][0]] if len(spots) > 1 else one[b:])
    ends = len(spots) == 1
    wanted = _spans(one, [spot[:2] for spot in spots]), _spans(other, [spot[2:] for spot in spots])
    shape, any_word = _shapes(left + right)
    for behind, ahead in _around("".join(one[:a]), after, ends, apart):
        if all(
            want[0] in _found(behind + shape + ahead, text)
            and set(_found(behind + any_word + ahead, text)) <= set(want)
            for text, want in zip((first, second), wanted, strict=True)
        ):
            return behind + shape + ahead
    return None


def _spans(words: list[str], spots: list[tuple[int, int]]) -> list[tuple[int, int]]:
    at = [0, *itertools.accumulate(map(len, words))]
    return [(at[a], at[b]) for a, b in spots]


def _found(pattern: str, text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(pattern, text)]


def _around(before: str, after: str, ends: bool, apart: str) -> Iterator[tuple[str, str]]:
    """What must stand before and after a place, from the least to the most: words, or the start and end of the text.

    ends  the text ends with `after`; else something else that changes comes next
    """
    cut = (before.rpartition(apart)[2], after.partition(apart)[0]) if apart.strip() else (before, after)
    for left, right in dict.fromkeys((cut, (before, after))):
        for width in WIDTHS:
            starts = r"\A" if left == before and len(left) <= width else ""
            stops = r"\Z" if ends and right == after and len(right) <= width else ""
            if starts or stops or re.search(r"\w", left[-width:] + right[:width]):
                behind, ahead = starts + re.escape(left[-width:]), re.escape(right[:width]) + stops
                yield (f"(?<={behind})" if behind else ""), (f"(?={ahead})" if ahead else "")


def _shapes(texts: str) -> tuple[str, str]:
    """Whole words of the characters that an id was made of, with a digit among them; and any such words."""
    others = re.escape("".join(sorted(set(re.sub(r"[0-9A-Za-z]", "", texts)))))
    letters = ("A-Za-z" if re.search("[A-Za-z]", texts) else "") + others
    digit = f"(?=[{letters}]*[0-9])" if letters else ""
    begin, end = "(?<![0-9A-Za-z])", "(?![0-9A-Za-z])"
    return f"{begin}{digit}[0-9{letters}]+{end}", f"{begin}[0-9A-Za-z{others}]+{end}"
