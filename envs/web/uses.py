"""What people use that no role tells of: found by listeners, cursors, focus, labels and boxes, in Chromium's snapshot.

A role says what an element was written as. Cards with a click handler, chips that take the focus, parts that can be
dragged, boxes drawn by their label, panes that scroll by themselves have none; they get references all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from playwright.async_api import CDPSession

from treewright.envs.web.protocol import send_plainly

__all__ = ["NOTHING", "Use", "Uses", "look_for_uses"]

_STYLES = ("cursor", "visibility", "overflow-y")
_NATIVE = frozenset(
    {"A", "AREA", "BUTTON", "INPUT", "SELECT", "TEXTAREA", "OPTION", "OPTGROUP", "SUMMARY", "IFRAME", "LABEL"}
    | {"HTML", "BODY", "HEAD", "FORM", "FIELDSET", "VIDEO", "AUDIO", "EMBED", "OBJECT"}
)
_LISTS = frozenset({"UL", "OL", "DL", "MENU", "TABLE", "TBODY"})
_ITEMS = frozenset({"LI", "DT", "TR"})
_BOXES = frozenset({"checkbox", "radio", "file"})
_DROPS = frozenset({"drop", "dragover"})
_SKELETON = re.compile(r"(^|[\s_-])(skeleton|shimmer|placeholder-glow)([\s_-]|$)", re.I)
_HINTS = ("aria-label", "title", "alt", "data-tooltip", "name", "class", "id")
_SHORT = 40  # characters of a name that is taken from an attribute


@dataclass(frozen=True, slots=True)
class Use:
    """What one element is good for.

    kind     'click', 'drag', 'drop', 'scroll', or 'box' for the label of a box that is not drawn itself
    own      a click is listened to at the element itself;  pointer  the mouse becomes a hand over it;  focus  the
             keyboard gets there
    hint     a name from its attributes, for what has neither name nor text
    control  of a 'box': Chromium's identifier of the input, its type, and whether it is on
    """

    kind: str
    own: bool = False
    pointer: bool = False
    focus: bool = False
    hint: str = ""
    control: int = 0
    type: str = ""
    on: bool = False
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class Uses:
    """One document: uses by Chromium's identifiers, the types of its inputs ('select' for a list), and their values.

    files  fields for files that are drawn by nothing but a script's button: identifier and name
    marks  for every element and text its parent's identifier and 'tag#id.class', if they were asked for: how regions
           of a page are named
    boxes  where elements are drawn in the window: left, top, width, height in CSS pixels
    busy   something is drawn that stands for what is still to come
    ids    the identifiers of all that the document holds
    """

    found: Mapping[int, Use] = field(default_factory=dict)
    types: Mapping[int, str] = field(default_factory=dict)
    values: Mapping[int, str] = field(default_factory=dict)
    files: Sequence[tuple[int, str]] = ()
    marks: Mapping[int, tuple[int, str]] = field(default_factory=dict)
    busy: bool = False
    boxes: Mapping[int, tuple[float, float, float, float]] = field(default_factory=dict)
    ids: frozenset[int] = frozenset()


NOTHING = Uses()


async def look_for_uses(session: CDPSession, marks: bool = False) -> dict[str, Uses]:
    """The uses in every document that a session answers for, by frame; the page's own document is under ''.

    marks  also name every element and text
    """
    snapshot = await send_plainly(session, "DOMSnapshot.captureSnapshot", {"computedStyles": list(_STYLES)})
    strings: Sequence[str] = snapshot["strings"]
    documents = [_Document(document, strings) for document in snapshot["documents"]]
    drops = await _drop_zones(session) if any(document.draggable for document in documents) else frozenset[int]()
    found = {
        strings[raw["frameId"]]: doc.read(drops, marks)
        for raw, doc in zip(snapshot["documents"], documents, strict=True)
    }
    return {"": next(iter(found.values()), NOTHING), **found}


async def _drop_zones(session: CDPSession) -> frozenset[int]:
    """Elements that listen to what is dropped on them; the protocol's snapshot does not tell of these."""
    root = await session.send("Runtime.evaluate", {"expression": "document", "objectGroup": "treewright"})
    request = {"objectId": root["result"]["objectId"], "depth": -1, "pierce": True}
    listeners = (await session.send("DOMDebugger.getEventListeners", request))["listeners"]
    return frozenset(int(one.get("backendNodeId", 0)) for one in listeners if one["type"] in _DROPS)


class _Document:
    """One document of a snapshot, as columns; text is an index into the snapshot's strings."""

    def __init__(self, raw: Mapping[str, Any], strings: Sequence[str]) -> None:
        nodes, layout = raw["nodes"], raw["layout"]
        self.parents: Sequence[int] = nodes["parentIndex"]
        self.ids: Sequence[int] = nodes["backendNodeId"]
        self.elements = [i for i, kind in enumerate(nodes["nodeType"]) if kind == 1]
        self.texts = [i for i, kind in enumerate(nodes["nodeType"]) if kind == 3]
        self.tags = {i: strings[nodes["nodeName"][i]].upper() for i in self.elements}
        self.attributes = {i: _attributes(nodes["attributes"][i], strings) for i in self.elements}
        self.clickable = frozenset(nodes["isClickable"]["index"])
        self.checked = frozenset(nodes["inputChecked"]["index"])
        held = zip(nodes["inputValue"]["index"], nodes["inputValue"]["value"], strict=True)
        self.inputs = {i: strings[value] if value >= 0 else "" for i, value in held}
        self.at = float(raw.get("scrollOffsetX", 0)), float(raw.get("scrollOffsetY", 0))
        self.boxes: dict[int, Sequence[float]] = {}
        self.styles: dict[int, Sequence[str]] = {}
        for i, styles, box in zip(layout["nodeIndex"], layout["styles"], layout["bounds"], strict=True):
            self.boxes.setdefault(i, box)
            if styles:
                self.styles.setdefault(i, [strings[s] for s in styles])
        self.children: dict[int, list[int]] = {}
        for i in self.elements:
            self.children.setdefault(self.parents[i], []).append(i)
        self.draggable = [i for i in self.elements if self.attributes[i].get("draggable") == "true"]

    def read(self, drops: frozenset[int], marks: bool) -> Uses:
        found: dict[int, Use] = {}
        for i in self.elements:
            if (use := self._box(i) if self.tags[i] == "LABEL" else self._use(i, drops)) is not None:
                found[self.ids[i]] = use
        boxed = {use.control for use in found.values()}
        for i in self._delegated(found):
            found[self.ids[i]] = Use("click", True, hint=self._hint(i))
        inputs = {i: "select" if self.tags[i] == "SELECT" else self.attributes[i].get("type", "text").lower()
                  for i in self.elements if self.tags[i] in ("INPUT", "SELECT")}  # fmt: skip
        return Uses(
            found,
            {self.ids[i]: kind for i, kind in inputs.items()},
            {self.ids[i]: value for i, value in self.inputs.items()},
            [(self.ids[i], self._hint(i)) for i in inputs if self._hidden_file(i, boxed)],
            self._marks() if marks else {},
            any(self._drawn(i) and self._waits(i) for i in self.elements),
            {self.ids[i]: (b[0] - self.at[0], b[1] - self.at[1], b[2], b[3]) for i, b in self.boxes.items()},
            frozenset(self.ids),
        )

    def _marks(self) -> dict[int, tuple[int, str]]:
        wanted = [*self.elements, *self.texts]
        return {
            self.ids[i]: (self.ids[max(self.parents[i], 0)], self._mark(i) if i in self.tags else "#text")
            for i in sorted(wanted)
        }

    def _waits(self, i: int) -> bool:
        attributes = self.attributes[i]
        return attributes.get("aria-busy") == "true" or bool(_SKELETON.search(attributes.get("class", "")))

    def _use(self, i: int, drops: frozenset[int]) -> Use | None:
        attributes, drawn = self.attributes[i], self._drawn(i)
        if not drawn or self.tags[i] in _NATIVE or self.parents[i] < 0:
            return None
        own, pointer = i in self.clickable, self._cursor(i) == "pointer" != self._cursor(self.parents[i])
        focus = attributes.get("tabindex", "-").lstrip().isdigit()
        if attributes.get("draggable") == "true":
            return Use("drag", own, pointer, focus, self._hint(i))
        if self.ids[i] in drops:
            return Use("drop", own, pointer, focus, self._hint(i))
        if own or pointer or focus:
            return Use("click", own, pointer, focus, self._hint(i))
        return Use("scroll", hint=attributes.get("aria-label", "")) if self._scrolls(i) else None

    def _box(self, i: int) -> Use | None:
        """A label that is drawn in the place of a box which is not laid out at all."""
        wanted = self.attributes[i].get("for")
        named = (j for j in self.elements if wanted and self.attributes[j].get("id") == wanted)
        control = next(named, None) if wanted else next((j for j in self._below(i) if self.tags[j] == "INPUT"), None)
        if control is None or control in self.boxes or not self._drawn(i):
            return None
        kind = self.attributes[control].get("type", "text").lower()
        off = "disabled" in self.attributes[control]
        on = control in self.checked
        return Use("box", control=self.ids[control], type=kind, on=on, disabled=off) if kind in _BOXES else None

    def _hidden_file(self, i: int, boxed: set[int]) -> bool:
        file = self.tags[i] == "INPUT" and self.attributes[i].get("type", "").lower() == "file"
        return file and i not in self.boxes and self.ids[i] not in boxed

    def _delegated(self, found: Mapping[int, Use]) -> Iterator[int]:
        """The items of a list that listens for them: the list itself is no place to click."""
        for i in self.elements:
            use = found.get(self.ids[i])
            if use is None or not use.own or use.pointer or use.kind != "click":
                continue
            below = self.children.get(i, [])
            same = len(below) > 2 and len({self._mark(j) for j in below}) == 1
            items = [j for j in self._below(i) if self.tags[j] in _ITEMS] if self.tags[i] in _LISTS else below * same
            yield from (j for j in items if self.ids[j] not in found and self._drawn(j))

    def _below(self, i: int) -> Iterator[int]:
        for child in self.children.get(i, ()):
            yield child
            yield from self._below(child)

    def _cursor(self, i: int) -> str:
        return self.styles[i][0] if i in self.styles else "auto"

    def _drawn(self, i: int) -> bool:
        box = self.boxes.get(i)
        return box is not None and box[2] > 0 and box[3] > 0 and self.styles.get(i, ("", ""))[1] != "hidden"

    def _scrolls(self, i: int) -> bool:
        style, box = self.styles.get(i), self.boxes.get(i)
        if style is None or box is None or style[2] not in ("auto", "scroll"):
            return False
        edges = (b[1] + b[3] for j in self.children.get(i, ()) if (b := self.boxes.get(j)) is not None)
        return max(edges, default=0.0) > box[1] + box[3] + 1

    def _hint(self, i: int) -> str:
        return next((v.strip()[:_SHORT] for name in _HINTS if (v := self.attributes[i].get(name, "")).strip()), "")

    def _mark(self, i: int) -> str:
        attributes = self.attributes[i]
        name = f"#{attributes['id']}" if attributes.get("id") else ""
        return str(self.tags[i].lower()) + name + "".join(f".{c}" for c in attributes.get("class", "").split())


def _attributes(flat: Sequence[int], strings: Sequence[str]) -> dict[str, str]:
    """Names and values; an empty value has the index -1."""
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return {strings[name]: strings[value] if value >= 0 else "" for name, value in pairs}
