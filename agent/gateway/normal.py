"""When two requests count as the same: all that is equal once what changes by itself is taken out.

Built in are the run's own folder and address, and what nobody writes twice alike: dates with times, UUIDs, long hex
ids, Unix times, addresses in memory, temporary paths. A user declares more as regular expressions. Before a search, a
task is begun twice: where the two requests differ, and both sides have the same shape, that place is learnt.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from treewright.envs.errors import TreewrightError

__all__ = ["BUILT_IN", "Normal", "learned"]

BUILT_IN: Mapping[str, str] = {
    "date": r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?",
    "uuid": r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
    "hex": r"(?<![0-9A-Za-z])(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{16,}(?![0-9A-Za-z])",
    "time": r"(?<![\d.])1[6-9]\d{8}(?:\.\d+|\d{3})?(?![\d.])",
    "address": r"0x[0-9a-fA-F]{6,16}",
    "temporary": r"/(?:tmp|var/folders)/[\w./-]*",
}
WORDS = re.compile(r"[A-Za-z]+|\d+|\s+|.", re.DOTALL)
VOLATILE = re.compile(r"\d")  # a place that changes by itself holds a digit: words that change are another behaviour
CONTEXT = 16  # characters in front by which a learnt place is known again


@dataclass(frozen=True, slots=True)
class Normal:
    """Rules in order: (name, regular expression). Each match becomes <name>."""

    rules: tuple[tuple[str, str], ...] = tuple(BUILT_IN.items())
    _compiled: tuple[tuple[str, re.Pattern[str]], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            made = tuple((f"<{name}>", re.compile(pattern)) for name, pattern in self.rules)
        except re.error as error:
            raise TreewrightError(
                f"worlds.agent.normalise holds no regular expression: {error}; write pairs of a name and one"
            ) from error
        object.__setattr__(self, "_compiled", made)

    def with_rules(self, rules: Sequence[tuple[str, str]]) -> Normal:
        """With further rules, tried last: they were learnt of texts that the others had been taken out of."""
        fresh = tuple(rule for rule in rules if rule not in self.rules)
        return Normal((*self.rules, *fresh)) if fresh else self

    def text(self, value: str, own: Mapping[str, str] | None = None) -> str:
        """own  texts of this run alone, such as its folder, and what stands for them."""
        for text, name in (own or {}).items():
            value = value.replace(text, name)
        for name, pattern in self._compiled:
            value = pattern.sub(name, value)
        return value

    def of(self, value: Any, own: Mapping[str, str] | None = None) -> Any:
        """The JSON value with every text in it normalised; keys stay."""
        if isinstance(value, str):
            return self.text(value, own)
        if isinstance(value, Mapping):
            return {key: self.of(inner, own) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.of(inner, own) for inner in value]
        return value

    def key(self, value: Any, own: Mapping[str, str] | None = None) -> str:
        """Canonical JSON of the normalised value: equal for values that count as the same."""
        return json.dumps(self.of(value, own), sort_keys=True, ensure_ascii=False)


def learned(first: Any, second: Any) -> list[tuple[str, str]] | None:
    """Rules under which two requests of the same beginning are the same; None where they differ in more than numbers,
    ids and the like. Both are JSON values that were normalised by the rules so far."""
    pairs: list[tuple[str, str]] = []
    if not _pairs(first, second, pairs):
        return None
    rules: list[tuple[str, str]] = []
    for one, other in pairs:
        found = _places(one, other)
        if found is None:
            return None
        rules += [rule for rule in found if rule not in rules]
    return rules


def _pairs(first: Any, second: Any, out: list[tuple[str, str]]) -> bool:
    """Texts that differ, at the same place of both values; False where their structure differs."""
    if isinstance(first, str) and isinstance(second, str):
        if first != second:
            out.append((first, second))
        return True
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_pairs(first[key], second[key], out) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(_pairs(a, b, out) for a, b in zip(first, second, strict=True))
    return bool(first == second)


def _places(first: str, second: str) -> list[tuple[str, str]] | None:
    one, other = WORDS.findall(first), WORDS.findall(second)
    rules = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        a, b, c, d = _widened(one, other, a, b, c, d)
        left, right = "".join(one[a:b]), "".join(other[c:d])
        if not (VOLATILE.search(left) and VOLATILE.search(right)) or " " in left + right:
            return None
        before = "".join(one[:a])[-CONTEXT:].rpartition("\n")[2]
        shape = "[0-9A-Za-z._:-]+" if re.search("[A-Za-z]", left + right) else r"[\d.:,-]+"
        rules.append(("learnt", (f"(?<={re.escape(before)})" if before else "") + shape))
    return rules


def _widened(one: list[str], other: list[str], a: int, b: int, c: int, d: int) -> tuple[int, int, int, int]:
    """The place with the letters and digits that stand right beside it in both."""

    def joined(word: str) -> bool:
        return bool(re.fullmatch(r"[A-Za-z0-9]+", word))

    while a > 0 and c > 0 and joined(one[a - 1]) and one[a - 1] == other[c - 1]:
        a, c = a - 1, c - 1
    while b < len(one) and d < len(other) and joined(one[b]) and one[b] == other[d]:
        b, d = b + 1, d + 1
    return a, b, c, d
