"""Reading Chromium's accessibility tree, and what is used without a role, into the lines of a page's view."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from treewright.envs.errors import EnvFault
from treewright.envs.web.uses import NOTHING, Use, Uses
from treewright.envs.web.view import ASSIGNED, CLICKABLE, EDITABLE, Element, PageView, Place, quote

__all__ = ["ASSIGNED_ROLES", "FrameTree", "read_tree", "title_of"]

Node = Mapping[str, Any]

ASSIGNED_ROLES = {"date": "date", "inputtime": "time", "datetime": "datetime-local", "colorwell": "color"}
"""Roles of inputs whose value is assigned, and the type that is meant where the page's document was not read."""
# Containers that are worth a line of their own, without a reference.
_NAMED = frozenset({"heading", "image", "dialog", "alertdialog", "alert", "progressbar", "meter"})
# Roles whose text runs on in the same line as what surrounds it.
_INLINE = frozenset({"none", "generic", "strong", "emphasis", "code", "mark", "superscript", "subscript", "time"})
_SKIPPED = frozenset({"inlinetextbox", "listmarker", "menulistpopup"})
_RESTLESS = frozenset({"timer", "marquee"})
_ADVERT = re.compile(r"\b(ads?|advert\w*|sponsor\w*|promot\w*|recommended for you)\b", re.I)
_REGIONS = frozenset({"complementary", "region", "iframe", "banner", "group", "section", "article", "figure"})
_FLAGS = ("disabled", "checked", "selected", "expanded", "pressed", "readonly")
# Parts of a composite that have no value of their own; where one of them has the focus, keys go to it.
_ROVING = frozenset({"menuitem", "menuitemcheckbox", "menuitemradio", "option", "treeitem", "tab", "gridcell"})
_BARE = frozenset({"none", "generic", "group", "paragraph", "labeltext", "section", "statictext", ""})
_EDITED = _BARE - {"statictext"}
_CALLED = {"click": "clickable", "drag": "draggable", "drop": "droppable", "scroll": "scrollable"}
# Containers whose names are given to them, not gathered from what is in them.
_LANDMARKS = frozenset(
    {"region", "navigation", "form", "search", "complementary", "banner", "contentinfo", "main", "group", "article"}
    | {"list", "table", "grid", "tablist", "menu", "toolbar", "tree", "radiogroup"}
)
_PLAIN = {"layouttablerow": "row", "layouttablecell": "cell", "layouttable": "table"}
# Composites that take the focus for their parts: keys are sent to them.
_COMPOSITES = frozenset(
    {"menubar", "menu", "tree", "grid", "treegrid", "tablist", "radiogroup", "toolbar", "application"}
)
_LEAF, _NAME = 100, 100  # characters: text up to this stands in the name alone; names are cut there
_MOST = 300  # characters of text in something that is a place to click only because it listens


@dataclass(frozen=True, slots=True)
class FrameTree:
    """The accessibility nodes of one document, and where it is shown.

    owner   DOM node of the frame element that shows it, 0 for the page itself
    parent  index of the document that holds that element: documents of two processes may number nodes alike
    uses    what is used in it without a role, and what its inputs hold
    """

    nodes: Sequence[Node]
    owner: int = 0
    parent: int = 0
    uses: Uses = NOTHING


def read_tree(
    nodes: Sequence[Node],
    title: str,
    url: str,
    frames: Sequence[FrameTree] = (),
    uses: Uses = NOTHING,
    restless: Mapping[int, frozenset[int]] | None = None,
) -> PageView:
    """The view of a page from the nodes that `Accessibility.getFullAXTree` answers, and those of its frames.

    restless  DOM nodes of regions that are known to change by themselves, by index of their document

    Raises EnvFault where the nodes are not what Chromium answers.
    """
    try:
        reader = _Reader([FrameTree(nodes, uses=uses), *frames], restless or {})
        reader.document(0)
        reader.flush()
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        raise EnvFault(f"the browser's accessibility tree cannot be read: {type(error).__name__}: {error}") from error
    return PageView(title, url, tuple(reader.lines), reader.elements, frozenset(reader.restless), tuple(reader.places))


def title_of(nodes: Sequence[Node]) -> str | None:
    """The title of the document, by which Chromium names its root; None where it has the name from elsewhere."""
    for node in nodes:
        if "parentId" in node or _role(node) != "rootwebarea":
            continue
        sources = node.get("name", {}).get("sources", ())
        titles = [one for one in sources if one.get("nativeSource") == "title"]
        named = any("attributeValue" in one or "value" in one for one in sources if one not in titles)
        return None if named or not titles else str(titles[0].get("value", {}).get("value", ""))
    return None


class _Reader:
    """Walks the tree in reading order, gathering running text and numbering what can be used."""

    def __init__(self, frames: Sequence[FrameTree], known: Mapping[int, frozenset[int]]) -> None:
        self.trees = [{node["nodeId"]: node for node in frame.nodes} for frame in frames]
        self.framed = {(frame.parent, frame.owner): index for index, frame in enumerate(frames) if index}
        self.uses = [frame.uses for frame in frames]
        self.known = known
        self.lines: list[tuple[str, str, str]] = []
        self.elements: dict[str, Element] = {}
        self.restless: set[int] = set()
        self.places: list[Place] = []
        self._frame = self._depth = 0
        self._calm = True
        self._counts = {"e": 0, "a": 0}
        self._text: list[str] = []
        self._pieces: list[int] = []
        self._hosts: tuple[int, ...] = ()  # the page's element that shows the frame which is read

    def document(self, frame: int) -> None:
        """Reads one document from its root."""
        outer, self._frame = self._frame, frame
        for node in self.trees[frame].values():
            if "parentId" not in node:
                self.walk(node)
        self.flush()
        for dom, name in self.uses[frame].files:
            self._add({}, "button", name or "file", "", dom=dom, kind="file")
        self._frame = outer

    def flush(self) -> None:
        text, nodes = " ".join("".join(self._text).split()), tuple(self._pieces)
        self._text.clear()
        self._pieces.clear()
        if text:
            self._line(f"text {quote(text)}", nodes=nodes)

    def _line(self, before: str, ref: str = "", after: str = "", nodes: tuple[int, ...] = ()) -> None:
        if not self._calm:
            self.restless.add(len(self.lines))
        label = f"{before} {after}" if after else before
        self.places.append(Place(self._depth, label, len(self.lines), self._hosts or nodes, ref))
        self.lines.append((before, ref, after))

    def walk(self, node: Node) -> None:
        role = _role(node)
        ignored = bool(node.get("ignored"))
        if role in _SKIPPED:
            return
        if role == "statictext" and not ignored:
            self._text.append(_name(node))
            self._pieces.append(_dom(node))
            return
        if role == "linebreak":
            self.flush()
            return
        calm = self._calm
        advert = not ignored and (role in _RESTLESS or (role in _REGIONS and _ADVERT.search(_name(node))))
        if calm and (advert or _dom(node) in self.known.get(self._frame, ())):
            self.flush()
            self._calm = False
        self._node_of(node, role, ignored)
        if calm and not self._calm:
            self.flush()
        self._calm = calm

    def _node_of(self, node: Node, role: str, ignored: bool) -> None:
        """What stands at one node: a frame, something usable, or a container."""
        inner = self.framed.get((self._frame, _dom(node)))
        if not ignored and (inner is not None or role == "iframe"):  # by whatever role its element has
            self.flush()
            self._line(f"iframe {quote(_name(node))}", nodes=(_dom(node),))
            if inner is not None:
                hosts, self._hosts = self._hosts, self._hosts or (_dom(node),)
                self._depth += 1
                self.document(inner)
                self._depth -= 1
                self._hosts = hosts
        elif not ignored and (role in CLICKABLE or role in ASSIGNED_ROLES):
            self._usable(node, role)
        elif _editor(node):
            self._editable(node, role)
        elif not self._used(node, role, ignored):
            self._block(node, role, ignored)

    def _block(self, node: Node, role: str, ignored: bool) -> None:
        block = not ignored and role not in _INLINE
        if block:
            self.flush()
        if not ignored and role in _NAMED and _name(node):
            self._line(f"{role} {quote(_name(node))}", nodes=(_dom(node),))
            if role == "heading":
                return
        elif block:
            name = _name(node) if role in _LANDMARKS else ""
            label = f"{role} {quote(name)}" if name else role
            self.places.append(Place(self._depth, label, -1, self._hosts or (_dom(node),)))
        self._depth += block
        for child in self._children(node):
            self.walk(child)
        if block:
            self.flush()
        self._depth -= block

    def _reference(self) -> str:
        letter = "e" if self._calm else "a"
        self._counts[letter] += 1
        return f"{letter}{self._counts[letter]}"

    # -- what has a role ---------------------------------------------------------------------------------------

    def _usable(self, node: Node, role: str) -> None:
        self.flush()
        properties = _properties(node)
        uses, dom = self.uses[self._frame], _dom(node)
        kind = self._kind(node, role, properties)
        offered = list(self._options(node)) if role in ("combobox", "listbox") else []
        options = tuple(_name(option) for option in offered)
        chosen = tuple(_name(o) for o in offered if _properties(o).get("selected") is True)
        value = uses.values.get(dom, "") if kind in ASSIGNED else str(node.get("value", {}).get("value", ""))
        listed = () if kind == "list" else options  # the others have lines of their own
        # A select is read-only to typing by nature; only what refuses typing against its role says so.
        flags = [f for f in _FLAGS if properties.get(f) in (True, "true", "mixed") and not (listed and f == "expanded")]
        if role in _ROVING and properties.get("focused") is True:
            flags.append("focused")
        told = ", ".join(map(quote, chosen)) if role == "listbox" and chosen else quote(value)
        shows = (role in EDITABLE or listed or value or kind in ASSIGNED or kind == "typed") and kind != "list"
        shown = ([f"= {told}"] if shows else []) + ([f"from {', '.join(map(quote, listed))}"] if listed else [])
        called = kind if role in ASSIGNED_ROLES else role
        self._add(
            node, called, _name(node), " ".join([*shown, *flags]), value=value, options=options,
            disabled="disabled" in flags, readonly="readonly" in flags,
            url=str(properties.get("url") or "") if role == "link" else "",
            on="checked" in flags or "pressed" in flags, kind=kind, chosen=chosen,
            many=properties.get("multiselectable") is True,
        )  # fmt: skip
        if not listed and role not in EDITABLE and role not in ASSIGNED_ROLES:
            self._within(node)

    def _kind(self, node: Node, role: str, properties: Mapping[str, Any]) -> str:
        """See Element.kind."""
        known = self.uses[self._frame].types.get(_dom(node), "")
        if role in ASSIGNED_ROLES:
            return known if known in ASSIGNED else ASSIGNED_ROLES[role]
        if known in ASSIGNED or known == "file":
            return known
        if role in ("listbox", "combobox") and self.uses[self._frame] is not NOTHING and known != "select":
            if properties.get("editable"):
                return "typed"
            return "list" if role == "listbox" or any(self._options(node)) else "popup"
        if role == "button" and properties.get("hasPopup") == "listbox":
            return "popup"
        return "toggle" if role == "button" and "pressed" in properties else ""

    def _within(self, node: Node, outer: str | None = None) -> None:
        """What can be used inside of something usable; its text is in the name already, and what has the whole of that
        name is what it is used by."""
        outer = _name(node) if outer is None else outer
        for child in self._children(node):
            role = _role(child)
            alone = self._stands_alone(child, role) or ((use := self._use(child)) and use.own and use.kind != "scroll")
            if alone and _plain(_name(child) or self._words(child)) != _plain(outer):
                self.walk(child)
                self._text.clear()
                self._pieces.clear()
            else:
                self._within(child, outer)

    def _stands_alone(self, node: Node, role: str) -> bool:
        return (not node.get("ignored") and (role in CLICKABLE or role in ASSIGNED_ROLES)) or _editor(node)

    # -- what has none -----------------------------------------------------------------------------------------

    def _editable(self, node: Node, role: str) -> None:
        """A part of the page that is written in, with what stands in it."""
        self.flush()
        value = " ".join(str(node.get("value", {}).get("value", "") or self._words(node)).split())
        name = _name(node) or value[:_NAME]
        self._add(node, "editor", name, f"= {quote(value)}", value=value, kind="editor")

    def _use(self, node: Node) -> Use | None:
        return self.uses[self._frame].found.get(_dom(node))

    def _used(self, node: Node, role: str, ignored: bool) -> bool:
        """A line for something that is used without a usable role; False if it is none after all."""
        use = self._use(node)
        if use is None:
            return False
        if use.kind == "box":
            return self._hidden_box(node, use)
        text, usable = self._words(node), any(self._usables(node))
        if use.kind == "click" and not self._worth(node, use, text, role):
            return False
        self.flush()
        bare = ignored or role in _BARE or use.kind in ("drop", "scroll")
        named = "" if use.kind == "scroll" else _name(node) or text[:_NAME]
        properties = _properties(node)
        flags = [f for f in _FLAGS if properties.get(f) in (True, "true", "mixed")]
        if role in _ROVING and properties.get("focused") is True:
            flags.append("focused")
        called = _CALLED[use.kind] if bare else _PLAIN.get(role, role)
        self._add(
            node, called, named or use.hint, " ".join(flags), disabled="disabled" in flags,
            on="pressed" in flags or "checked" in flags, kind="scroll" if use.kind == "scroll" else "use",
        )  # fmt: skip
        if use.kind == "scroll" or usable or len(text) > _LEAF:
            self._depth += 1
            for child in self._children(node):
                self.walk(child)
            self.flush()
            self._depth -= 1
        return True

    def _hidden_box(self, node: Node, use: Use) -> bool:
        """A box whose label is drawn in its place: called as if it were drawn, and found by its own node."""
        self.flush()
        role = "button" if use.type == "file" else use.type
        flags = " ".join(flag for flag, true in (("disabled", use.disabled), ("checked", use.on)) if true)
        kind = "file" if use.type == "file" else ""
        name = self._words(node)[:_NAME]
        self._add(node, role, name, flags, dom=use.control, disabled=use.disabled, on=use.on, kind=kind)
        self._within(node)
        return True

    def _worth(self, node: Node, use: Use, text: str, role: str) -> bool:
        """True for something that people would use itself, and not only what is in it."""
        if use.focus and role in _COMPOSITES:
            return True
        inner = list(self._usables(node))
        if inner:
            return use.pointer and not any(_name(one) and _name(one) == text for one in inner)
        if not use.own and not use.pointer:
            return len(text) <= _LEAF
        return use.pointer or len(text) <= _MOST

    def _usables(self, node: Node) -> Iterator[Node]:
        """What can be used below a node."""
        for child in self._children(node):
            use = self._use(child)
            if self._stands_alone(child, _role(child)) or (use is not None and (use.own or use.kind != "click")):
                yield child
            yield from self._usables(child)

    def _words(self, node: Node) -> str:
        return " ".join(" ".join(self._texts(node)).split())

    def _texts(self, node: Node) -> Iterator[str]:
        for child in self._children(node):
            if _role(child) == "statictext" or _role(child) == "image":
                yield _name(child)
            elif _role(child) not in _SKIPPED:
                yield from self._texts(child)

    def _add(self, node: Node, role: str, name: str, after: str, *, dom: int = 0, **known: Any) -> None:
        ref, dom = self._reference(), dom or _dom(node)
        self.elements[ref] = Element(ref=ref, role=role, name=name, node=dom, frame=self._frame, **known)
        self._line(f"{role} {quote(name)}", ref, after, nodes=(dom,))

    def _children(self, node: Node) -> Iterator[Node]:
        tree = self.trees[self._frame]
        return (tree[child] for child in node.get("childIds", ()) if child in tree)

    def _options(self, node: Node) -> Iterator[Node]:
        for child in self._children(node):
            if child.get("role", {}).get("value") == "option":
                yield child
            else:
                yield from self._options(child)


def _editor(node: Node) -> bool:
    """The outermost element of a part that is written in; what is inside of it is not walked."""
    if _role(node) not in _EDITED:
        return False
    properties = _properties(node)
    kind = properties.get("editable")
    return kind == "richtext" or (kind == "plaintext" and properties.get("focusable") is True)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _properties(node: Node) -> dict[str, Any]:
    return {p["name"]: p["value"].get("value") for p in node.get("properties", ())}


def _role(node: Node) -> str:
    return str(node.get("role", {}).get("value", "none")).lower()


def _dom(node: Node) -> int:
    return int(node.get("backendDOMNodeId", 0))


def _name(node: Node) -> str:
    return str(node.get("name", {}).get("value", ""))
