"""`stdlib`: questions of one to four hops over the documentation of the running Python.

A question starts at a named object and follows facts from page to page: `take zipfile.BadZipFile, then base, then
module. what is it ?`; or the object must be found first: `find BadZipFile, then base, then module. what is it ?`.
Pages and answers are computed by introspection when they are first asked for, so both are true of this Python.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from threading import Lock

from treewright.envs.retrieval.answers import normalise
from treewright.envs.retrieval.corpus import Corpus, Doc
from treewright.envs.retrieval.index import LexicalIndex
from treewright.envs.retrieval.session import ANSWER, tool
from treewright.envs.retrieval.stdlib_pages import Entry, entries
from treewright.envs.retrieval.world import RetrievalWorld, first
from treewright.envs.types import Action, Environment, Suite, Task, ToolSpec, Turn, seed_of

__all__ = ["SUITE", "Library", "StdlibWorld", "library", "oracle"]

_HOPS = ("base", "owner", "module", "package")  # relations that lead to another page
_MOST_HOPS = 4
_METHODS_PER_CLASS = 4
_RESULTS = 3
_PAGE_CHARS = 300
_NAME_CHARS = 40  # longer names stand on no question's way, which keeps episodes short
_SPARE = 2  # actions beyond the oracle's that an episode may take

_Chain = tuple[tuple[str, str], ...]  # (relation, value) pairs from page to page

_PAGE = re.compile(r"^(\S+): \w+\.(.*)$")
_FACT = re.compile(r" (base|owner|module|package|parameter) (\S+)\.(?= |$)")


@dataclass(frozen=True, slots=True)
class Library:
    """The documentation and what is asked about it: entries by id, their pages, the index, the tasks of each split."""

    entries: dict[str, Entry]
    corpus: Corpus
    index: LexicalIndex
    tasks: dict[str, list[Task]]


class StdlibWorld(RetrievalWorld):
    """One session over the pages. A search shows up to three ids, one a line; a page fits in one read."""

    name = "stdlib"
    tools = (
        tool("search", "find pages by words", query="words to look for"),
        tool("read", "read a page", doc="the id of a page"),
        ANSWER,
    )

    def __init__(self, shelf: Library) -> None:
        super().__init__(shelf.corpus, shelf.index, results=_RESULTS, snippet_chars=0, page_chars=_PAGE_CHARS)


_BUILDING = Lock()


def library() -> Library:
    """The library of this process, built on the first call (about a second)."""
    with _BUILDING:
        return _build()


@lru_cache(maxsize=1)
def _build() -> Library:
    shelf = {entry.id: entry for entry in entries()}
    docs = [Doc(entry.id, entry.id, entry.page) for entry in shelf.values()]
    index = LexicalIndex(docs, title_boost=4.0, joint=False, stemming="none")
    return Library(shelf, Corpus(docs), index, _all_tasks(shelf, index))


def oracle(task: Task, history: Sequence[Turn], tools: Sequence[ToolSpec]) -> Action:
    """Finds the start if it must, reads one page a hop, and answers; whatever was already shown is used."""
    lines = [line for turn in history for line in turn.observation.text.splitlines()]
    pages = {match[1]: match[2] for line in lines if (match := _PAGE.match(line))}
    at: str = task.data["start"]
    if task.data["find"]:
        name = task.data["start"]
        known = [line for line in (*pages, *lines) if line.endswith(f".{name}") and " " not in line]
        if not known:
            return Action.of("search", query=name)
        at = known[0]
    for relation in task.data["relations"]:
        # The first of each relation counts: facts stand before the docstring, which may contain their words.
        found = next((value for word, value in _FACT.findall(pages.get(at, "")) if word == relation), None)
        if found is None:
            return Action.of("read", doc=at)
        at = found
    return Action.of("answer", text=at)


def _all_tasks(shelf: dict[str, Entry], index: LexicalIndex) -> dict[str, list[Task]]:
    """Both splits, questions of one to four hops taking turns while there are any.

    An object is in the test split by a hash of its name, a method by that of its class. Each object starts one
    question of a drawn length and, if it is another, one of its greatest length.
    """
    names = _Names.of(shelf, index)
    by_hops: dict[str, list[list[Task]]] = {split: [[] for _ in range(_MOST_HOPS)] for split in ("train", "test")}
    for start in sorted(_starts(shelf), key=lambda name: seed_of("stdlib order", name)):
        chains: dict[int, list[_Chain]] = {}
        for chain in _chains(shelf, start, _MOST_HOPS):
            if not _given_away(start, chain) and chain[-1][1] not in names.confusable:
                chains.setdefault(len(chain), []).append(chain)
        if chains:
            drawn = sorted(chains)[seed_of("stdlib hops", start) % len(chains)]
            for hops in sorted({drawn, max(chains)}):
                chain = chains[hops][seed_of("stdlib chain", start, hops) % len(chains[hops])]
                task = _task(shelf[start], chain, names)
                by_hops[task.split][hops - 1].append(task)
    return {split: list(_mixed(groups)) for split, groups in by_hops.items()}


@dataclass(frozen=True, slots=True)
class _Names:
    """What a name can be taken for, answers being compared without case and punctuation.

    unique      ids whose last word means no other id, in full or by its last word
    findable    unique ids that a search for their last word shows first
    confusable  ids that compare equal to another one, as `ast.expr` and `ast.Expr` do
    """

    unique: frozenset[str]
    findable: frozenset[str]
    confusable: frozenset[str]

    @classmethod
    def of(cls, shelf: dict[str, Entry], index: LexicalIndex) -> _Names:
        ids = list(shelf)
        whole = Counter(map(normalise, ids))
        meant = Counter(word for name in ids for word in {normalise(name), normalise(_short(name))})
        unique = frozenset(name for name in ids if meant[normalise(_short(name))] == 1)
        hits = {name: index.rank(_short(name), 1) for name in unique}
        findable = frozenset(name for name, hit in hits.items() if hit and ids[hit[0].position] == name)
        return cls(unique, findable, frozenset(name for name in ids if whole[normalise(name)] > 1))


def _starts(shelf: dict[str, Entry]) -> Iterator[str]:
    """Every object, but only a few methods of each class."""
    methods: dict[str, list[str]] = {}
    for entry in shelf.values():
        if entry.kind == "method":
            methods.setdefault(entry.facts["owner"], []).append(entry.id)
        else:
            yield entry.id
    for names in methods.values():
        yield from sorted(names, key=lambda name: seed_of("stdlib method", name))[:_METHODS_PER_CLASS]


def _chains(shelf: dict[str, Entry], start: str, most: int) -> Iterator[_Chain]:
    """Every chain of 1 to `most` facts from this page, over names of moderate length."""
    if len(start) > _NAME_CHARS:
        return
    for relation, value in shelf[start].facts.items():
        yield ((relation, value),)
        if relation in _HOPS and most > 1:
            for rest in _chains(shelf, value, most - 1):
                yield ((relation, value), *rest)


def _given_away(start: str, chain: _Chain) -> bool:
    """True where the answer can be read off the start's own name."""
    return f"{start}.".startswith(f"{chain[-1][1]}.")


def _mixed(groups: Sequence[Sequence[Task]]) -> Iterator[Task]:
    """One task of each length in turn, leaving out those whose answer has been asked for too often already."""
    asked: Counter[str] = Counter()
    taken = 0
    for task in (task for row in zip_longest(*groups) for task in row if task is not None):
        answer = task.truth["answers"][0]
        if asked[answer] < 3 + taken // 25:
            asked[answer] += 1
            taken += 1
            yield task


def _task(entry: Entry, chain: _Chain, names: _Names) -> Task:
    relations, answer = [relation for relation, _ in chain], chain[-1][1]
    find = entry.id in names.findable and _short(entry.id) != entry.id and bool(seed_of("stdlib find", entry.id) % 2)
    start = _short(entry.id) if find else entry.id
    aliases = [_short(answer)] if relations[-1] in ("base", "owner") and answer in names.unique else []
    return Task(
        suite="stdlib",
        id=f"stdlib-{entry.id}-{'-'.join(relations)}",
        goal=f"{'find' if find else 'take'} {start}, then {', then '.join(relations)}. what is it ?",
        seed=seed_of("stdlib", entry.id),
        split="train" if seed_of("stdlib split", entry.facts.get("owner", entry.id)) % 5 else "test",
        horizon=find + len(relations) + 1 + _SPARE,
        data={"start": start, "relations": relations, "find": find},
        truth={"answers": list(dict.fromkeys([answer, *aliases]))},
    )


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _tasks(split: str, count: int) -> Sequence[Task]:
    return first("stdlib", split, library().tasks.get(split, []), count)


async def _open() -> Environment:
    return StdlibWorld(await asyncio.to_thread(library))


SUITE = Suite(
    name="stdlib",
    tasks=_tasks,
    open=_open,
    oracle=oracle,
    description="questions of one to four hops over the documentation of the running Python",
    max_tokens=64,
    sessions=64,
)
