"""What a page shows, from Chromium's accessibility tree: one element per line, references after the names.

    page "market" /c/lamps
    link "home" e1
    heading "lamps"
    text "12 coins"
    combobox "quantity" e4 = "1" from "1", "2"
    button "buy" e5 disabled

References count the usable elements in reading order, so that the same page gives the same references in every
session and after every restore. Names and texts are quoted as JSON: a page cannot fake a line. Long pages are cut
into parts between lines, and say so. Shadow trees are part of the tree; the document of a frame follows its `iframe`
line.

What changes by itself is marked: timers, tickers and advertisements (by role and name) are shown, with references of
their own (a1, a2, …), and left out of the fingerprint; times of day and dates in any line are masked in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from treewright.envs.types import digest

__all__ = ["CLICKABLE", "EDITABLE", "TIMES", "Element", "FrameTree", "PageView", "read_tree"]

EDITABLE = frozenset({"textbox", "searchbox", "spinbutton", "slider"})
CLICKABLE = (
    frozenset(
        {"link", "button", "checkbox", "radio", "switch", "tab", "option", "treeitem", "combobox", "listbox"}
        | {"menuitem", "menuitemcheckbox", "menuitemradio", "disclosuretriangle"}
    )
    | EDITABLE
)
# Containers that are worth a line of their own, without a reference.
_NAMED = frozenset({"heading", "image", "dialog", "alertdialog", "alert", "progressbar", "meter"})
# Roles whose text runs on in the same line as what surrounds it.
_INLINE = frozenset({"none", "generic", "strong", "emphasis", "code", "mark", "superscript", "subscript", "time"})
_SKIPPED = frozenset({"inlinetextbox", "listmarker", "menulistpopup"})
_RESTLESS = frozenset({"timer", "marquee"})
_ADVERT = re.compile(r"\b(ads?|advert\w*|sponsor\w*|promot\w*|recommended for you)\b", re.I)
_REGIONS = frozenset({"complementary", "region", "iframe", "banner", "group", "section", "article", "figure"})
TIMES = re.compile(
    r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?\b|\b\d{1,2}:\d\d(:\d\d)?( ?[ap]m)?\b"
    r"|\b(\d+|an?) (second|minute|hour|day)s? ago\b|\bjust now\b",
    re.I,
)
"""Times of day, dates with a time, and ages in words: what a page prints anew at every visit."""
_FLAGS = ("disabled", "checked", "selected", "expanded", "pressed", "readonly")


@dataclass(frozen=True, slots=True)
class Element:
    """One usable element: its reference, and what an action must know about it.

    node     Chromium's identifier of the DOM node, valid while the document lives
    frame    index of the document's frame, 0 for the page itself
    options  the labels of a select's options; empty for anything else
    url      where a link leads; empty for anything else
    on       a box, a radio button or a switch that is checked or pressed
    """

    ref: str
    role: str
    name: str
    node: int
    value: str = ""
    options: tuple[str, ...] = ()
    disabled: bool = False
    readonly: bool = False
    url: str = ""
    frame: int = 0
    on: bool = False


@dataclass(frozen=True, slots=True)
class PageView:
    """A page as it is shown. `lines` are (text before the reference, reference or '', text after it); `restless` are
    the indices of those that change by themselves."""

    title: str
    url: str
    lines: tuple[tuple[str, str, str], ...]
    elements: Mapping[str, Element] = field(default_factory=dict)
    restless: frozenset[int] = frozenset()

    @property
    def path(self) -> str:
        parts = urlsplit(self.url)
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def parts(self, characters: int) -> list[str]:
        """The page's text in parts of at most about `characters`, cut between lines; one part if it is short."""
        head = f"page {_quote(self.title)} {self.path}"
        parts: list[list[str]] = [[]]
        room = characters - len(head)
        for before, ref, after in self.lines:
            line = " ".join(piece for piece in (before, ref, after) if piece)
            if parts[-1] and sum(len(kept) + 1 for kept in parts[-1]) + len(line) > room:
                parts.append([])
            parts[-1].append(line)
        if len(parts) == 1:
            return ["\n".join([head, *parts[0]])]
        return ["\n".join([f"{head} part {n} of {len(parts)}", *lines]) for n, lines in enumerate(parts, 1)]

    def fingerprint(self, *more: str, calm: re.Pattern[str] | None = None) -> str:
        """A hash of path, title and lines without their references, and of what else makes up the state.

        calm  what matches it in a line counts as equal; with it, restless lines are left out, too
        """
        kept = [x for i, x in enumerate(self.lines) if calm is None or i not in self.restless]
        shown = "\n".join(f"{before} {after}" for before, _, after in kept)
        if calm is None:
            return digest(self.path, self.title, shown, *more)
        return digest(self.path, calm.sub("…", self.title), calm.sub("…", shown), *more)


@dataclass(frozen=True, slots=True)
class FrameTree:
    """The accessibility nodes of one document, and where it is shown.

    owner   DOM node of the frame element that shows it, 0 for the page itself
    parent  index of the document that holds that element: documents of two processes may number nodes alike
    """

    nodes: Sequence[Mapping[str, Any]]
    owner: int = 0
    parent: int = 0


def read_tree(nodes: Sequence[Mapping[str, Any]], title: str, url: str, frames: Sequence[FrameTree] = ()) -> PageView:
    """The view of a page from the nodes that `Accessibility.getFullAXTree` answers, and those of its frames."""
    reader = _Reader([FrameTree(nodes), *frames])
    reader.document(0)
    reader.flush()
    return PageView(title, url, tuple(reader.lines), reader.elements, frozenset(reader.restless))


class _Reader:
    """Walks the tree in reading order, gathering running text and numbering what can be used."""

    def __init__(self, frames: Sequence[FrameTree]) -> None:
        self.trees = [{node["nodeId"]: node for node in frame.nodes} for frame in frames]
        self.framed = {(frame.parent, frame.owner): index for index, frame in enumerate(frames) if index}
        self.lines: list[tuple[str, str, str]] = []
        self.elements: dict[str, Element] = {}
        self.restless: set[int] = set()
        self._frame = 0
        self._calm = True
        self._counts = {"e": 0, "a": 0}
        self._text: list[str] = []

    def document(self, frame: int) -> None:
        """Reads one document from its root."""
        outer, self._frame = self._frame, frame
        for node in self.trees[frame].values():
            if "parentId" not in node:
                self.walk(node)
        self.flush()
        self._frame = outer

    def flush(self) -> None:
        text = " ".join("".join(self._text).split())
        self._text.clear()
        if text:
            self._line(f"text {_quote(text)}")

    def _line(self, before: str, ref: str = "", after: str = "") -> None:
        if not self._calm:
            self.restless.add(len(self.lines))
        self.lines.append((before, ref, after))

    def walk(self, node: Mapping[str, Any]) -> None:
        role = str(node.get("role", {}).get("value", "none")).lower()
        ignored = bool(node.get("ignored"))
        if role in _SKIPPED:
            return
        if role == "statictext" and not ignored:
            self._text.append(_name(node))
            return
        if role == "linebreak":
            self.flush()
            return
        calm = self._calm
        if not ignored and (role in _RESTLESS or (role in _REGIONS and _ADVERT.search(_name(node)))):
            self.flush()
            self._calm = False
        inner = self.framed.get((self._frame, int(node.get("backendDOMNodeId", 0))))
        if not ignored and (inner is not None or role == "iframe"):  # by whatever role its element has
            self.flush()
            self._line(f"iframe {_quote(_name(node))}")
            if inner is not None:
                self.document(inner)
        elif not ignored and role in CLICKABLE:
            self._usable(node, role)
        else:
            self._block(node, role, ignored)
        if calm and not self._calm:
            self.flush()
        self._calm = calm

    def _block(self, node: Mapping[str, Any], role: str, ignored: bool) -> None:
        block = not ignored and role not in _INLINE
        if block:
            self.flush()
        if not ignored and role in _NAMED and _name(node):
            self._line(f"{role} {_quote(_name(node))}")
            if role == "heading":
                return
        for child in self._children(node):
            self.walk(child)
        if block:
            self.flush()

    def _reference(self) -> str:
        letter = "e" if self._calm else "a"
        self._counts[letter] += 1
        return f"{letter}{self._counts[letter]}"

    def _usable(self, node: Mapping[str, Any], role: str) -> None:
        self.flush()
        properties = {p["name"]: p["value"].get("value") for p in node.get("properties", ())}
        options = tuple(_name(option) for option in self._options(node)) if role in ("combobox", "listbox") else ()
        value = str(node.get("value", {}).get("value", ""))
        ref = self._reference()
        # A select is read-only to typing by nature; only what refuses typing against its role says so.
        flags = [
            f for f in _FLAGS if properties.get(f) in (True, "true", "mixed") and not (options and f == "expanded")
        ]
        shows_value = role in EDITABLE or options or value
        shown = ([f"= {_quote(value)}"] if shows_value else []) + (
            [f"from {', '.join(map(_quote, options))}"] if options else []
        )
        self.elements[ref] = Element(
            ref=ref,
            role=role,
            name=_name(node),
            node=int(node.get("backendDOMNodeId", 0)),
            value=value,
            options=options,
            disabled="disabled" in flags,
            readonly="readonly" in flags,
            url=str(properties.get("url") or "") if role == "link" else "",
            frame=self._frame,
            on="checked" in flags or "pressed" in flags,
        )
        self._line(f"{role} {_quote(_name(node))}", ref, " ".join([*shown, *flags]))

    def _children(self, node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        tree = self.trees[self._frame]
        return (tree[child] for child in node.get("childIds", ()) if child in tree)

    def _options(self, node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        for child in self._children(node):
            if child.get("role", {}).get("value") == "option":
                yield child
            else:
                yield from self._options(child)


def _name(node: Mapping[str, Any]) -> str:
    return str(node.get("name", {}).get("value", ""))


def _quote(text: str) -> str:
    return json.dumps(" ".join(text.split()), ensure_ascii=False)
