"""When a page counts as the one that was recorded, and what is remembered of a site to tell.

Three ways, from the strictest: `exact`, equal fingerprints; `distance:D`, the same address, title, headings, usable
elements and words, with at most a share D of all nodes different, which leaves numbers in running text and containers;
`target`, the same address, and what is acted on next stands where it stood. Regions that are known to change by
themselves count in none of the last two. With both, an action whose element is not the same, with all that is in it and
all that it is in, is a divergence.

The distance that was accepted goes with the arrival into the tree. Zero means that nothing differed but such regions.
"""

from __future__ import annotations

import json
import logging
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from treewright.envs.errors import TreewrightError
from treewright.envs.lines import json_value
from treewright.envs.web.distance import distance
from treewright.envs.web.regions import Regions, Trail, changed_regions, named_regions, paths_of
from treewright.envs.web.uses import Uses
from treewright.envs.web.view import TIMES, PageView
from treewright.envs.whole import write_whole

__all__ = ["SameAs", "Seen", "SiteMemory", "Verdict", "read_same_page", "same"]

log = logging.getLogger(__name__)

_HELD = 400_000  # nodes of all pages that are remembered; about 200 bytes each
_WEIGHTY = re.compile(r"^(heading|dialog|alertdialog|alert) ")
_NUMBER = re.compile(r"\d+([.,:]\d+)*")
_ALIKE = 3  # pages of a kind that are loaded beside when they are first seen
_CHANCES = 3  # times that a page is loaded beside again because an arrival there differed


@dataclass(frozen=True, slots=True)
class SameAs:
    """The setting `same_page`: 'exact', 'target' or 'distance', and the largest distance."""

    way: str = "exact"
    most: float = 0.0


def read_same_page(text: str) -> SameAs:
    """exact | target | distance:0.05. Raises TreewrightError for anything else."""
    way, _, share = text.partition(":")
    if text in ("exact", "target"):
        return SameAs(way)
    if way == "distance" and re.fullmatch(r"0?\.\d+|0|1(\.0+)?|0\.\d+", share or "0.05"):
        return SameAs(way, float(share or "0.05"))
    raise TreewrightError(
        f"same_page = {text!r}; it is exact, target or distance:SHARE with a share from 0 to 1, such as distance:0.05"
    )


@dataclass(frozen=True, slots=True)
class Spot:
    """A node of a remembered page; see view.Place.

    weighty  headings, dialogs and what can be used;  line  no container
    """

    depth: int
    label: str
    ref: str
    path: Trail | None
    weighty: bool
    line: bool

    @property
    def words(self) -> str:
        """What may not differ: all of a weighty label, and anything but the numbers of another."""
        return self.label if self.weighty else _NUMBER.sub("#", self.label)


@dataclass(frozen=True, slots=True)
class Seen:
    """A page as it is remembered: address, title, what stood around it (windows, questions), and its nodes."""

    address: str
    title: str
    around: tuple[str, ...]
    spots: tuple[Spot, ...]

    @classmethod
    def of(cls, view: PageView, uses: Uses, around: Sequence[str], calm: re.Pattern[str] | None) -> Seen:
        """What a view shows, without what it says to change by itself."""
        paths = paths_of(uses.marks)
        calm = calm or TIMES
        spots = tuple(
            Spot(
                place.depth,
                calm.sub("…", place.label),
                place.ref,
                next((paths[node] for node in place.nodes if node in paths), None),
                bool(place.ref) or _WEIGHTY.match(place.label) is not None,
                place.line >= 0,
            )
            for place in view.places
            if place.line not in view.restless
        )
        return cls(view.path, calm.sub("…", view.title), tuple(around), spots)

    def calm(self, regions: Regions) -> list[Spot]:
        """The nodes outside of the regions."""
        known: dict[Trail, bool] = {}
        return [spot for spot in self.spots if not (regions and regions.hold(spot.path, known))]


@dataclass(frozen=True, slots=True)
class Verdict:
    """distance  share of nodes that differ, None if it is another page;  why  what says so
    pairs     references of the recorded page → those of the present one"""

    distance: float | None
    why: str = ""
    pairs: Mapping[str, str] = field(default_factory=dict)


def same(recorded: Seen, present: Seen, rule: SameAs, regions: Regions) -> Verdict:
    """Whether the present page counts as the recorded one."""
    if recorded.address != present.address:
        return Verdict(None, f"address {present.address} instead of {recorded.address}")
    if recorded.around != present.around:
        return Verdict(None, "other windows or questions are open")
    if rule.way == "distance" and recorded.title != present.title and "title" not in regions.names:
        return Verdict(None, "another title")
    old, new = recorded.calm(regions), present.calm(regions)
    size = max(len(old), len(new), 1)
    bound = size if rule.way == "target" else int(rule.most * size)
    if rule.way == "distance":
        was, now = ([spot.words for spot in spots if spot.line] for spots in (old, new))
        if was != now:
            differ = next((pair for pair in zip(was, now, strict=False) if pair[0] != pair[1]), ("the end", "more"))
            return Verdict(None, f"{differ[1]} instead of {differ[0]}")
    apart = distance([(s.depth, s.label) for s in old], [(s.depth, s.label) for s in new], bound)
    if rule.way == "distance" and apart > bound:
        return Verdict(None, f"more than {rule.most:g} of its nodes differ")
    return Verdict(min(apart / size, 1.0), "", _pairs(old, new))


def _pairs(old: Sequence[Spot], new: Sequence[Spot]) -> dict[str, str]:
    """References of elements whose subtree and the path to it are the same; by order where several are alike."""
    before, after = _targets(old), _targets(new)
    found: dict[str, str] = {}
    for key, refs in before.items():
        others = after.get(key, [])
        if len(others) == len(refs):
            found.update(zip(refs, others, strict=True))
    return found


def _targets(spots: Sequence[Spot]) -> dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]]:
    """(labels on the path, labels of the subtree) → references, in reading order."""
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    trail: list[Spot] = []
    for index, spot in enumerate(spots):
        while trail and trail[-1].depth >= spot.depth:
            trail.pop()
        if spot.ref:
            below = [spot.label]
            for other in spots[index + 1 :]:
                if other.depth <= spot.depth:
                    break
                below.append(other.label)
            found.setdefault((tuple(s.label for s in trail), tuple(below)), []).append(spot.ref)
        trail.append(spot)
    return found


class SiteMemory:
    """What is known of one site, by all sessions of this process: pages by fingerprint, and restless regions.

    restless  names of regions by kind of address ('*' for those that the user names: they hold everywhere)
    path      a JSON file that keeps those which were learned, for the next process and for people to correct
    """

    def __init__(self, restless: Iterable[str] = (), path: Path | None = None) -> None:
        self.restless: dict[str, set[str]] = _kept(path)
        self.restless.setdefault("*", set()).update(restless)
        self.path, self._given = path, frozenset(restless)
        self.endless: set[str] = set()  # kinds of pages that show for ever that something is to come
        self._learned: dict[str, int] = {}
        self._pages: OrderedDict[str, Seen] = OrderedDict()
        self._nodes = 0

    @staticmethod
    def kind(url: str) -> str:
        """The address without what differs between pages of one kind: numbers, long names, values of a query."""
        parts = urlsplit(url)
        steps = ["#" if re.search(r"\d", step) or len(step) > 24 else step for step in parts.path.split("/")]
        query = sorted({pair.partition("=")[0] for pair in parts.query.split("&") if pair})
        return f"{parts.netloc}{'/'.join(steps) or '/'}" + (f"?{'&'.join(query)}" if query else "")

    def regions(self, url: str) -> Regions:
        return Regions(self.restless["*"] | self.restless.get(self.kind(url), set()))

    def wants(self, url: str, again: bool = False) -> bool:
        """True if this page was not loaded beside yet, nor enough others of its kind; with `again`, if it may be once
        more, because an arrival there differed."""
        if again:
            return self._learned.get(url, 0) <= _CHANCES
        return url not in self._learned and self._learned.get(self.kind(url), 0) < _ALIKE

    def learn(self, url: str, visits: Sequence[Sequence[tuple[PageView, Uses]]]) -> None:
        """Notes what differed between visits of each row, one after the other with nothing done in between."""
        kind = self.kind(url)
        for name in (url, kind):
            self._learned[name] = self._learned.get(name, 0) + 1
        held = self.restless.setdefault(kind, set())
        before = len(held)
        for row in visits:
            for visit in row:
                held |= named_regions(*visit)
            for first, second in pairwise(row):
                if first[0].path == second[0].path:
                    held |= changed_regions(first, second)
        if len(held) > before and self.path is not None:
            self._write(self.path)

    def _write(self, path: Path) -> None:
        """All or nothing: what another process wrote meanwhile is taken in first."""
        for kind, names in _kept(path).items():
            self.restless.setdefault(kind, set()).update(names)
        known = {kind: sorted(names - (self._given if kind == "*" else set())) for kind, names in self.restless.items()}
        try:
            write_whole(path, json.dumps({k: v for k, v in sorted(known.items()) if v}, indent=1) + "\n")
        except OSError as error:
            log.warning("cannot keep what was learned of the site in %s: %s", path, error)

    def keep(self, fingerprint: str, page: Seen) -> None:
        if fingerprint in self._pages:
            return
        self._pages[fingerprint] = page
        self._nodes += len(page.spots)
        while self._nodes > _HELD:
            self._nodes -= len(self._pages.popitem(last=False)[1].spots)

    def page(self, fingerprint: str) -> Seen | None:
        return self._pages.get(fingerprint)

    def told(self) -> list[str]:
        """What is left out, one line a kind of page: for people to read and to correct."""
        return [f"{kind}: {', '.join(sorted(names))}" for kind, names in sorted(self.restless.items()) if names]


def _kept(path: Path | None) -> dict[str, set[str]]:
    """What a file holds; nothing where there is none. Raises TreewrightError for one that holds something else."""
    if path is None or not path.is_file():
        return {}
    try:
        found = json_value(path.read_bytes())
        return {str(kind): {str(name) for name in names} for kind, names in found.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise TreewrightError(
            f"{path} holds no regions of a site: {error}; correct it, or delete it to learn anew"
        ) from error
