"""What a page shows, from Chromium's accessibility tree: one element per line, references after the names.

    page "market" /c/lamps
    link "home" e1
    heading "lamps"
    text "12 coins"
    clickable "gift wrap" e3
    combobox "quantity" e4 = "1" from "1", "2"
    button "buy" e5 disabled

What is used without a role that says so (see treewright.envs.web.uses) is called clickable, draggable, droppable,
scrollable or editor, or by the role it has.

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
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from treewright.envs.types import digest

__all__ = ["ASSIGNED", "CLICKABLE", "EDITABLE", "TIMES", "Element", "PageView", "Place", "quote"]

EDITABLE = frozenset({"textbox", "searchbox", "spinbutton", "slider"})
CLICKABLE = (
    frozenset(
        {"link", "button", "checkbox", "radio", "switch", "tab", "option", "treeitem", "combobox", "listbox"}
        | {"menuitem", "menuitemcheckbox", "menuitemradio", "disclosuretriangle"}
    )
    | EDITABLE
)
ASSIGNED = frozenset({"color", "date", "datetime-local", "month", "range", "time", "week"})
"""Types of inputs whose value is assigned: typing into their parts is different in every browser and language."""
TIMES = re.compile(
    r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?\b|\b\d{1,2}:\d\d(:\d\d)?( ?[ap]m)?\b"
    r"|\b(\d+|an?) (second|minute|hour|day)s? ago\b|\bjust now\b",
    re.I,
)
"""Times of day, dates with a time, and ages in words: what a page prints anew at every visit."""


@dataclass(frozen=True, slots=True)
class Element:
    """One usable element: its reference, and what an action must know about it.

    node     Chromium's identifier of the DOM node, valid while the document lives
    frame    index of the document's frame, 0 for the page itself
    options  the labels of a select's options; empty for anything else
    url      where a link leads; empty for anything else
    on       a box, a radio button or a switch that is checked or pressed
    kind     what can be done with it where its role does not say so: the type of an input whose value is assigned
             (see ASSIGNED) or 'file'; 'editor'; 'list' for options that are elements of their own; 'popup' for what
             opens such a list; 'typed' for a combobox with a field; 'toggle'; 'use' for what is used without a role;
             'scroll' for a pane that can only be scrolled
    chosen   the options of a select that are chosen
    many     a select of which several options may be chosen
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
    kind: str = ""
    chosen: tuple[str, ...] = ()
    many: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """A node of the page's tree, in reading order: a line, or a container of lines.

    depth  0 for the outermost;  label  role, name and state;  line  index of its line, -1 for a container
    nodes  Chromium's identifiers of its DOM node, or of all pieces of running text; in a frame, that of the element
           which shows the frame in the page
    ref    of what can be used, else ''
    """

    depth: int
    label: str
    line: int = -1
    nodes: tuple[int, ...] = ()
    ref: str = ""


@dataclass(frozen=True, slots=True)
class PageView:
    """A page as it is shown. `lines` are (text before the reference, reference or '', text after it); `restless` are
    the indices of those that change by themselves; `places` are the tree that the lines stand in."""

    title: str
    url: str
    lines: tuple[tuple[str, str, str], ...]
    elements: Mapping[str, Element] = field(default_factory=dict)
    restless: frozenset[int] = frozenset()
    places: tuple[Place, ...] = ()

    @property
    def path(self) -> str:
        parts = urlsplit(self.url)
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def parts(self, characters: int) -> list[str]:
        """The page's text in parts of at most about `characters`, cut between lines; one part if it is short."""
        head = f"page {quote(self.title)} {self.path}"
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


def quote(text: str) -> str:
    return json.dumps(" ".join(text.split()), ensure_ascii=False)
