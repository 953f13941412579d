"""Regions of a page that change by themselves: found by loading it twice, named much as style sheets do.

    ul.recommended
    #offers > span.counter
    html > body > main > p:nth(2)

A step is a tag, an id and classes, any of which may be left out; `>` leads from an element to its child. `:nth(2)` is
the second child of that very kind. Names that were learned begin at the nearest id that holds no number, else at the
top, and have `:nth` only where they would also fit something that stayed the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache

from treewright.envs.web.uses import Uses
from treewright.envs.web.view import PageView

__all__ = ["Regions", "Trail", "changed_regions", "named_regions", "paths_of"]

_MOST = 0.4  # share of a page's lines that one region may have
_PASSING = re.compile(
    r"\b((recently|last) (viewed|seen|visited)|recommend(ed|ations)|you (may|might)( also)? like|also (bought|viewed)"
    r"|related|trending|popular|sponsored|picked for you|because you)\b",
    re.I,
)
_MADE = re.compile(r"\d{3,}|[0-9a-f]{8,}|:")  # in ids that are made anew for every visit


@dataclass(frozen=True, slots=True, eq=False)
class Trail:
    """Where an element stands: its step, which of its parent's children of that step it is, and the parent."""

    step: str
    nth: int = 1
    parent: Trail | None = None

    @property
    def names(self) -> tuple[str, str, str]:
        """From the most general to the most exact: steps alone, the last one with its place, all with theirs."""
        chain = [self]
        while chain[-1].parent is not None and not _anchors(chain[-1].step):
            chain.append(chain[-1].parent)
        chain.reverse()
        plain = " > ".join(path.step for path in chain)
        exact = " > ".join(path.step if _anchors(path.step) else f"{path.step}:nth({path.nth})" for path in chain)
        return plain, f"{plain}:nth({self.nth})", exact


def _anchors(step: str) -> bool:
    name = step.partition("#")[2]
    return bool(name) and not _MADE.search(name.partition(".")[0])


@lru_cache(maxsize=4096)
def _parts(step: str) -> tuple[str, str, frozenset[str], int]:
    """Tag, id, classes and place of a step; '' or 0 for what it does not say."""
    nth = re.search(r":nth\((\d+)\)$", step)
    head, *classes = (step[: nth.start()] if nth else step).split(".")
    tag, _, name = head.partition("#")
    return tag, name, frozenset(classes), int(nth[1]) if nth else 0


class Regions:
    """A set of names, asked whether an element stands in a region of one of them."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = frozenset(names)
        self._steps = [[_parts(step.strip()) for step in reversed(name.split(">"))] for name in self.names]

    def __bool__(self) -> bool:
        return bool(self.names)

    def hold(self, path: Trail | None, known: dict[Trail, bool]) -> bool:
        """True if the element at `path` stands in one; `known` keeps what was found out for others of the page."""
        if path is None:
            return False
        if path not in known:
            known[path] = self.hold(path.parent, known) or any(_fits(path, steps) for steps in self._steps)
        return known[path]


def _fits(path: Trail | None, steps: Sequence[tuple[str, str, frozenset[str], int]]) -> bool:
    for tag, name, classes, nth in steps:
        if path is None:
            return False
        own_tag, own_name, own_classes, _ = _parts(path.step)
        if (tag and tag != own_tag) or (name and name != own_name) or (nth and nth != path.nth):
            return False
        if not classes <= own_classes:
            return False
        path = path.parent
    return True


def paths_of(marks: Mapping[int, tuple[int, str]]) -> dict[int, Trail]:
    """The path of every element of a document, by Chromium's identifiers; texts stand where their elements do."""
    paths: dict[int, Trail] = {}
    seen: dict[tuple[int, str], int] = {}
    for node, (parent, step) in marks.items():  # parents come first
        above = paths.get(parent)
        if step == "#text":
            if above is not None:
                paths[node] = above
            continue
        if _MADE.search(step.partition("#")[2].partition(".")[0]):
            step = step.partition("#")[0] + "".join(f".{c}" for c in step.split(".")[1:])
        seen[parent, step] = seen.get((parent, step), 0) + 1
        paths[node] = Trail(step, seen[parent, step], above)
    return paths


def changed_regions(first: tuple[PageView, Uses], second: tuple[PageView, Uses]) -> set[str]:
    """What differs between two visits of one page with nothing done in between; 'title' if its title does.

    A region is never most of a page: where nearly everything differs, the two are not the same page.
    """
    pages = [_Lines(view, uses) for view, uses in (first, second)]
    one, two = pages
    for kind, i, j, k, m in SequenceMatcher(None, one.labels, two.labels, autojunk=False).get_opcodes():
        if kind != "equal":
            one.changed.update(range(i, j))
            two.changed.update(range(k, m))
    found = {"title"} if first[0].title != second[0].title else set[str]()
    if not any(len(page.changed) > _MOST * len(page.labels) + 2 for page in pages):
        for page in pages:
            found |= page.regions()
    return {name for name in found if not any(name.startswith(f"{other} > ") for other in found)}


def named_regions(view: PageView, uses: Uses) -> set[str]:
    """Sections whose heading says that they differ from visit to visit, such as what was seen before."""
    page = _Lines(view, uses)
    found = set[str]()
    for (_, label), path in zip(page.labels, page.at, strict=True):
        if label.startswith("heading ") and _PASSING.search(label) and path is not None and path.parent is not None:
            share = sum(path.parent in _upwards(other) for other in page.at) / len(page.at)
            if share <= _MOST and path.parent.step.partition("#")[0] not in ("html", "body", "main"):
                found.add(path.parent.names[-1])
    return found


class _Lines:
    """The lines of one visit, and for every element how many of them stand in it and how many have changed."""

    def __init__(self, view: PageView, uses: Uses) -> None:
        self.paths = paths_of(uses.marks)
        lines = [place for place in view.places if place.line not in view.restless]
        self.labels = [(place.depth, place.label) for place in lines]
        self.at = [self._common(place.nodes) for place in lines]
        self.changed: set[int] = set()

    def _common(self, nodes: Sequence[int]) -> Trail | None:
        """The innermost element around all of them."""
        chains = [list(_upwards(self.paths.get(node))) for node in nodes]
        return next((path for path in chains[0] if all(path in chain for chain in chains)), None) if chains else None

    def regions(self) -> set[str]:
        total: dict[Trail, int] = {}
        moved: dict[Trail, int] = {}
        for index, path in enumerate(self.at):
            for above in _upwards(path):
                total[above] = total.get(above, 0) + 1
                moved[above] = moved.get(above, 0) + (index in self.changed)
        chosen = {self._grown(path, total, moved) for n in self.changed if (path := self.at[n]) is not None}
        return {self._name(path, total, moved) for path in chosen}

    def _grown(self, path: Trail, total: Mapping[Trail, int], moved: Mapping[Trail, int]) -> Trail:
        """The largest element around one that has changed of which at least half has: a list that was shuffled."""
        best = path
        for above in _upwards(path.parent):
            if total[above] > _MOST * len(self.labels):
                break
            if total[above] > 1 and moved[above] >= 2 and 2 * moved[above] >= total[above]:
                best = above
        return best

    def _name(self, path: Trail, total: Mapping[Trail, int], moved: Mapping[Trail, int]) -> str:
        """The most general name that fits nothing that has stayed as it was; a bare tag alone is never enough."""
        still = [other.names for other in total if not moved[other] and other.step == path.step]
        names = path.names
        bare = not re.search(r"[.#]", path.step)
        fits = (name for kind, name in enumerate(names) if kind >= bare and all(n[kind] != name for n in still))
        return next(fits, names[-1])


def _upwards(path: Trail | None) -> Iterable[Trail]:
    while path is not None:
        yield path
        path = path.parent
