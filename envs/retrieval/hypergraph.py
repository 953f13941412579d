"""Retrieval that follows links without training: passages as hyperedges over the names that stand in them.

    graph = Hypergraph(corpus.docs)
    graph.neighbours(3)                     passages that name 3, are named by it, or share a rarer name with it
    HypergraphIndex(corpus.docs).rank("Which river flows through the town where Ada was born?", 5)

A name is a title, without what stands in brackets behind it, or a run of capitalised words. Words that the passages
write in small letters as often, and single ones that only begin sentences, are no names. Nothing is learnt, nothing
encoded.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import compress, islice
from math import log2
from pathlib import Path

from treewright.envs.retrieval.corpus import Doc
from treewright.envs.retrieval.index import Hit, LexicalIndex
from treewright.envs.retrieval.rows import clean
from treewright.envs.retrieval.words import UNSPACED

__all__ = ["Hypergraph", "HypergraphIndex", "Link"]

WIDTH, DEPTH = 5, 60  # passages from which links are followed, and those that words find
NAMED = 0.5  # what a passage gains whose title stands in the question; the best by words has 1
TO, FROM, SHARED = 0.6, 0.4, 0.3  # what goes over a link: to a passage that is named, from one, over a name in both
OWN = 0.3  # share of its own score that a linked passage adds
MOST = 50  # passages that a name may stand in to link them
MOST_BRIDGED = 1000  # passages that a name may stand in to be an end of a bridge
SAMPLED = 5000  # passages by which common words are told from names
_WORD = re.compile(r"[^\W_]+(?:[-'’.][^\W_]+)*")
_FIRST = re.compile(rf"(?:^|[.!?:…]\s+|\n)[\"“«(]*({_WORD.pattern})")
_BRACKETS = re.compile(r"\s*\([^)]*\)\s*$")
_JOINING = frozenset(
    ("of", "the", "and", "de", "von", "van", "la", "le", "di", "du")
)  # may stand between two words of a name


@dataclass(frozen=True, slots=True)
class Link:
    """A passage that is linked to another one: its position, by which name, and how strongly, 0 to 1."""

    position: int
    name: str
    strength: float


class Hypergraph:
    """Which names stand in which passages of a corpus."""

    def __init__(self, docs: Sequence[Doc]) -> None:
        self._common, self._first = _no_names(doc.text for doc in docs)
        self.title = [_key(_WORD.findall(_BRACKETS.sub("", doc.title))) for doc in docs]
        self.titled: dict[str, list[int]] = defaultdict(list)
        for i, title in enumerate(self.title):
            if title:
                self.titled[title].append(i)
        self._begun = _beginnings(self.titled)
        self._unspaced = sorted({len(t) for t in self.titled if len(t) > 1 and UNSPACED.fullmatch(t)}, reverse=True)
        capital = _Capital()
        self.names = [frozenset((*self._names_in(doc.text, capital), title)) - {""}
                      for doc, title in zip(docs, self.title, strict=True)]  # fmt: skip
        self.passages: dict[str, list[int]] = defaultdict(list)
        for i, names in enumerate(self.names):
            for name in names:
                self.passages[name].append(i)

    def names_in(self, text: str) -> set[str]:
        """The names in a text, as they are keyed: small letters, single blanks."""
        return self._names_in(text, _Capital())

    def _names_in(self, text: str, capital: _Capital) -> set[str]:
        words = _WORD.findall(text)
        keys = list(map(str.casefold, words))
        return {*self._titles_in(words, keys), *self._runs_in(words, keys, capital)}

    def named(self, name: str) -> str:
        """The key of a name that somebody wrote."""
        return _key(_WORD.findall(_BRACKETS.sub("", name)))

    def neighbours(self, position: int, besides: frozenset[str] = frozenset()) -> list[Link]:
        """Passages linked to one, the strongest first, each by its strongest link; names in `besides` do not count."""
        best: dict[int, Link] = {}
        for link in self._links(position, besides):
            kept = best.get(link.position)
            if kept is None or (-link.strength, link.name) < (-kept.strength, kept.name):
                best[link.position] = link
        return sorted(best.values(), key=lambda link: (-link.strength, link.position))

    def bridge(self, a: frozenset[str], b: frozenset[str]) -> list[Link]:
        """Passages that hold a name of each of two sets, the best first; `name` says which two.

        Rarer names count more, and names that both sets hold not at all.
        """
        weight = self._weights(a - b), self._weights(b - a)
        found = []
        for position in sorted(weight[0].keys() & weight[1].keys()):
            (one, name), (two, other) = weight[0][position], weight[1][position]
            found.append(Link(position, f"{name} and {other}", one * two))
        return sorted(found, key=lambda link: (-link.strength, link.position))

    def _weights(self, names: Iterable[str]) -> dict[int, tuple[float, str]]:
        """For each passage the rarest of the names that it holds, with a weight in (0, 1]."""
        best: dict[int, tuple[float, str]] = {}
        for name in sorted(names):
            among = self.passages.get(name, ())
            for position in among if len(among) <= MOST_BRIDGED else ():
                best[position] = max(best.get(position, (0.0, "")), (1 / log2(1 + len(among)), name))
        return best

    def _links(self, position: int, besides: frozenset[str]) -> Iterator[Link]:
        own = self.title[position]
        for name in self.names[position]:
            if name != own:
                yield from (Link(at, name, TO) for at in self.titled.get(name, ())[:MOST] if at != position)
            among = self.passages[name]
            if name in besides or len(among) > MOST:
                continue
            strength = FROM if name == own else SHARED / log2(1 + len(among))
            yield from (Link(at, name, strength) for at in among if at != position)

    def _titles_in(self, words: Sequence[str], keys: Sequence[str]) -> Iterator[str]:
        for i in compress(range(len(keys)), map(self._begun.__contains__, keys)):
            seconds = self._begun[keys[i]]
            for length in seconds.get(keys[i + 1], seconds[""]) if i + 1 < len(keys) else seconds[""]:
                title = " ".join(keys[i : i + length])
                if title in self.titled and self._is_name(words[i : i + length]):
                    yield title
                    break
        if self._unspaced:
            for key in filter(UNSPACED.search, keys):
                yield from self._titles_inside(key)

    def _titles_inside(self, run: str) -> Iterator[str]:
        """Titles in a run of a script without blanks."""
        for length in self._unspaced:
            yield from (part for i in range(len(run) - length + 1) if (part := run[i : i + length]) in self.titled)

    def _is_name(self, words: Sequence[str]) -> bool:
        """True if a word begins with anything but a small letter, and it is not one common word."""
        return any(not word[0].islower() for word in words) and (len(words) > 1 or words[0] not in self._common)

    def _runs_in(self, words: Sequence[str], keys: Sequence[str], capital: _Capital) -> Iterator[str]:
        """Runs begin and end with a capitalised word; words in _JOINING may stand between."""
        begin = end = -1  # of the run: its first word and its last
        for i in compress(range(len(words)), map(capital.__getitem__, words)):
            if begin >= 0 and (i == end + 1 or all(map(_JOINING.__contains__, words[end + 1 : i]))):
                end = i
                continue
            if begin >= 0 and (end > begin or words[begin] not in self._first):
                yield " ".join(keys[begin : end + 1])
            begin = end = -1 if words[i] in self._common else i
        if begin >= 0 and (end > begin or words[begin] not in self._first):
            yield " ".join(keys[begin : end + 1])


class _Capital(dict[str, bool]):
    """Whether a word begins with a capital or a digit, looked at once for each word."""

    def __missing__(self, word: str) -> bool:
        self[word] = word[0].isupper() or word[0].isdigit()
        return self[word]


def _beginnings(titles: Iterable[str]) -> dict[str, dict[str, tuple[int, ...]]]:
    """How many words the titles have that begin with one word, and go on with a second, most first; "" is any other.

    A text has many words that begin some title, and few pairs that do.
    """
    found: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for title in titles:
        first, *rest = title.split()
        found[first][rest[0] if rest else ""].add(1 + len(rest))
    return {one: {two: tuple(sorted(lengths | by[""], reverse=True)) for two, lengths in [*by.items(), ("", by[""])]}
            for one, by in found.items()}  # fmt: skip


class HypergraphIndex:
    """Words find passages, and what these are linked to is found with them.

    A passage's score by words is divided by the best one's; if its title stands in the question, it gains NAMED. From
    the WIDTH best, score × strength goes over each link, and adds to OWN of what the passage there has already; a
    passage keeps the better of this and its own score. Names that stand in the question itself link nothing.
    """

    def __init__(self, docs: Sequence[Doc], *, folder: Path | None = None, stemming: str = "auto") -> None:
        with ThreadPoolExecutor(1) as beside:  # tantivy works without Python's lock
            lexical = beside.submit(LexicalIndex, docs, folder=folder, stemming=stemming)
            self.graph = Hypergraph(docs)
            self._lexical = lexical.result()

    async def search(self, query: str, k: int) -> list[Hit]:
        return self.rank(query, k)

    def rank(self, query: str, k: int) -> list[Hit]:
        """At most k hits, best first, equal ones in corpus order."""
        if k <= 0:
            return []
        own, asked = self._own(query, max(k, DEPTH))
        scores = dict(own)
        for position, score in _best(own, WIDTH):
            for link in self.graph.neighbours(position, asked):
                reached = score * link.strength + OWN * own.get(link.position, 0.0)
                scores[link.position] = max(reached, scores.get(link.position, 0.0))
        return [Hit(position, score) for position, score in _best(scores, k)]

    def _own(self, query: str, depth: int) -> tuple[dict[int, float], frozenset[str]]:
        """Scores without links, and the names in the question."""
        hits = self._lexical.rank(query, depth)
        scores = {hit.position: hit.score / hits[0].score for hit in hits if hits[0].score > 0}
        asked = frozenset(self.graph.names_in(clean(query)))
        for name in sorted(asked):
            among = self.graph.titled.get(name, ())
            for position in among[:MOST]:
                scores[position] = scores.get(position, 0.0) + NAMED / len(among)
        return scores, asked


def _best(scores: dict[int, float], k: int) -> list[tuple[int, float]]:
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]


def _key(words: Iterable[str]) -> str:
    return " ".join(word.casefold() for word in words)


def _no_names(texts: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Capitalised words that stand in small letters as often, and those that only ever begin a sentence."""
    counts, first = Counter[str](), Counter[str]()
    for text in islice(texts, SAMPLED):
        counts.update(_WORD.findall(text))
        first.update(_FIRST.findall(text))
    capital = {word: count for word, count in counts.items() if word[0].isupper()}
    common = frozenset(word for word, count in capital.items() if counts[word.lower()] >= count)
    return common, frozenset(word for word, count in capital.items() if first[word] >= count)
