"""When a page counts as the one that was recorded, and what is remembered of a site to tell.

Three ways, from the strictest: `exact`, equal fingerprints; `distance:D`, the same address, headings and usable
elements, and at most a share D of all nodes different elsewhere; `target`, the same address, and what is acted on next
stands where it stood. Regions that are known to change by themselves count in none of the last two.

The distance that was accepted goes with the arrival into the tree. Zero means that nothing differed but such regions.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from urllib.parse import urlsplit

from treewright.envs.errors import TreewrightError
from treewright.envs.web.distance import distance
from treewright.envs.web.regions import Path, Regions, changed_regions, paths_of
from treewright.envs.web.uses import Uses
from treewright.envs.web.view import TIMES, PageView

__all__ = ["SameAs", "Seen", "SiteMemory", "Verdict", "read_same_page", "same"]

_HELD = 400_000  # nodes of all pages that are remembered; about 200 bytes each
_WEIGHTY = re.compile(r"^(heading|dialog|alertdialog|alert) ")
_CHANCES = 3  # times that a kind of page is loaded anew because an arrival there differed


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
    """A node of a remembered page; see view.Place. `weighty`: headings, dialogs and what can be used."""

    depth: int
    label: str
    ref: str
    path: Path | None
    weighty: bool


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
                next((paths[node] for node in place.nodes if node in paths), None) if place.frame == 0 else None,
                bool(place.ref) or _WEIGHTY.match(place.label) is not None,
            )
            for place in view.places
            if place.line not in view.restless
        )
        return cls(view.path, calm.sub("…", view.title), tuple(around), spots)

    def calm(self, regions: Regions) -> list[Spot]:
        """The nodes outside of the regions."""
        known: dict[Path, bool] = {}
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
        was, now = ([spot.label for spot in spots if spot.weighty] for spots in (old, new))
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
    """

    def __init__(self, restless: Iterable[str] = ()) -> None:
        self.restless: dict[str, set[str]] = {"*": set(restless)}
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
        """True if this kind of page was not loaded twice yet; with `again`, if it may be once more."""
        times = self._learned.get(self.kind(url), 0)
        return times <= _CHANCES if again else times == 0

    def learn(self, url: str, visits: Sequence[tuple[PageView, Uses]]) -> bool:
        """Notes what differed between visits one after the other; True if that was not known."""
        kind = self.kind(url)
        self._learned[kind] = self._learned.get(kind, 0) + 1
        held = self.restless.setdefault(kind, set())
        before = len(held)
        for first, second in pairwise(visits):
            held |= changed_regions(first, second)
        return len(held) > before

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
