"""The actions of a web page: their tools, and what is checked before one of them is executed.

`TOOLS` are enough for sites of forms and links; `ALL_TOOLS` add keys, boxes, hovering, scrolling, dragging, uploads,
windows and dialogs; `POINTING` those that need coordinates, for pages that draw (SVG, canvas). Every message is
written for the policy: what is wrong, and what there is instead.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from treewright.envs.errors import InvalidAction
from treewright.envs.types import Action, Call, Effect, ToolSpec
from treewright.envs.web.view import ASSIGNED, CLICKABLE, EDITABLE, Element

__all__ = [
    "ALL_TOOLS",
    "MORE",
    "POINTING",
    "TOOLS",
    "checkable",
    "checked_call",
    "checked_element",
    "clickable",
    "fillable",
    "nearest",
    "selectable",
]

_UNWRITABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # control characters, halves of pairs
_TYPES: Mapping[str, type] = {"string": str, "integer": int, "boolean": bool}
_SWITCHES = frozenset({"checkbox", "radio", "switch", "menuitemcheckbox", "menuitemradio"})


def _tool(name: str, description: str, effect: Effect = Effect.READ, /, **arguments: str | Sequence[str]) -> ToolSpec:
    """A tool whose arguments are all required; a sequence instead of a type lists what is allowed."""
    properties = {
        key: {"type": kind} if isinstance(kind, str) else {"type": "string", "enum": list(kind)}
        for key, kind in arguments.items()
    }
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(arguments),
        "additionalProperties": False,
    }
    return ToolSpec(name, description, schema, effect, terminal=name == "answer")


TOOLS: tuple[ToolSpec, ...] = (
    _tool("click", "Click an element.", Effect.UNKNOWN, ref="string"),
    _tool("fill", "Write text into a field.", Effect.REVERSIBLE, ref="string", text="string"),
    _tool("select", "Choose an option of a list.", Effect.REVERSIBLE, ref="string", option="string"),
    _tool("goto", "Open an address of the site.", path="string"),
    _tool("back", "Go back to the page before."),
    _tool("part", "Show another part of a long page.", number="integer"),
    _tool("answer", "Give the answer and end.", text="string"),
)
_WAYS = ("up", "down", "left", "right")
_POINT = {"x": "integer", "y": "integer"}
MORE: tuple[ToolSpec, ...] = (
    _tool("check", "Turn a box or a switch on or off.", Effect.REVERSIBLE, ref="string", on="boolean"),
    _tool(
        "press", "Press a key on an element, or with ref '' at the focus.", Effect.UNKNOWN, ref="string", key="string"
    ),
    _tool("type", "Type text where the focus is.", Effect.REVERSIBLE, text="string"),
    _tool("hover", "Move the mouse over an element.", ref="string"),
    _tool("scroll", "Scroll what an element is in, or with ref '' the page.", ref="string", direction=_WAYS),
    _tool("drag", "Drag an element onto another.", Effect.UNKNOWN, ref="string", to="string"),
    _tool("upload", "Put a file into a field.", Effect.REVERSIBLE, ref="string", file="string"),
    _tool("tab", "Turn to another open window.", number="integer"),
    _tool("close_tab", "Close an open window.", Effect.REVERSIBLE, number="integer"),
    _tool("accept", "Answer the page's question with yes, or with a text.", Effect.UNKNOWN, text="string"),
    _tool("dismiss", "Answer the page's question with no."),
)
POINTING: tuple[ToolSpec, ...] = (
    _tool("click_at", "Click a point of the page.", Effect.UNKNOWN, **_POINT),
    _tool("hover_at", "Move the mouse to a point of the page.", **_POINT),
    _tool("drag_at", "Drag from one point to another.", Effect.UNKNOWN, **_POINT, to_x="integer", to_y="integer"),
    _tool("wait", "Let time pass on the page.", milliseconds="integer"),
)
ALL_TOOLS: tuple[ToolSpec, ...] = (*TOOLS[:-1], *MORE, TOOLS[-1])


def checked_call(action: Action, tools: Sequence[ToolSpec]) -> Call:
    """The action's only call, with arguments of the right names and types. Raises InvalidAction."""
    if len(action.calls) != 1:
        raise InvalidAction(f"one action per turn, not {len(action.calls)}: each changes the page for the next")
    call = action.calls[0]
    spec = next((spec for spec in tools if spec.name == call.name), None)
    if spec is None:
        raise InvalidAction(f"no action {call.name!r}; there are: {', '.join(s.name for s in tools)}")
    wanted = spec.parameters["properties"]
    if set(call.arguments) != set(wanted):
        raise InvalidAction(f"{call.name} takes {{{', '.join(wanted)}}}, not {{{', '.join(call.arguments)}}}")
    for name, schema in wanted.items():
        _check_value(name, call.arguments[name], schema)
    return call


def _check_value(name: str, value: Any, schema: Mapping[str, Any]) -> None:
    kind = schema["type"]
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        raise InvalidAction(f"{name} must be of type {kind}")
    if isinstance(value, str) and _UNWRITABLE.search(value):
        raise InvalidAction(f"{name} holds characters that cannot be written")
    if "enum" in schema and value not in schema["enum"]:
        raise InvalidAction(f"{name} must be one of {', '.join(schema['enum'])}, not {value!r}")


def nearest(ref: str, known: Mapping[str, Element]) -> str:
    """The element that was probably meant: by its name, else by a similar reference; '' if there is none."""
    names = {" ".join(e.name.lower().split()): e for e in known.values() if e.name}
    wanted = " ".join(ref.lower().split())
    by_name = difflib.get_close_matches(wanted, names, n=1)
    by_ref = difflib.get_close_matches(ref, known, n=1, cutoff=0.3)
    element = names[by_name[0]] if by_name else known[by_ref[0]] if by_ref else None
    return f'; the nearest is {element.ref}, the {element.role} "{element.name}"' if element else ""


def clickable(element: Element) -> bool:
    return element.kind != "scroll" and (bool(element.kind) or element.role in CLICKABLE)


def fillable(element: Element) -> bool:
    """It can be written into, or a value assigned to it."""
    if element.kind in ASSIGNED or element.kind in ("editor", "typed"):
        return True
    listed = element.role == "combobox" and (bool(element.options) or element.kind in ("popup", "list"))
    return element.role in EDITABLE or (element.role == "combobox" and not listed)


def selectable(element: Element) -> bool:
    """It has options, or may open a list of them."""
    return bool(element.options) or element.kind in ("popup", "typed")


def checkable(element: Element) -> bool:
    return element.role in _SWITCHES or element.kind == "toggle"


def checked_element(call: Call, known: Mapping[str, Element], ref: str, hints: bool) -> Element:
    """The element a call names, if that call makes sense for it. Raises InvalidAction that says why not.

    hints  also name the nearest element for an unknown reference
    """
    element = known.get(ref)
    if element is None:
        there = f"references here go from e1 to e{len(known)}" if known else "nothing here can be used"
        raise InvalidAction(f"no element {ref!r} on this page; {there}{nearest(ref, known) if hints else ''}")
    if element.disabled:
        raise InvalidAction(f'{element.role} "{element.name}" {ref} is disabled')
    if call.name == "click" and not clickable(element):
        raise InvalidAction(f"{ref} is a {element.role}; it cannot be clicked")
    if call.name == "fill" and not fillable(element):
        hint = "; choose one of its options" if selectable(element) else ""
        raise InvalidAction(f"{ref} is a {element.role}; only fields can be filled{hint}")
    if call.name == "fill" and element.readonly:
        raise InvalidAction(f"{ref} is read-only")
    if call.name == "check" and not checkable(element):
        raise InvalidAction(f"{ref} is a {element.role}; only boxes and switches can be checked")
    if call.name == "check" and element.role in ("radio", "menuitemradio") and not call.arguments["on"]:
        raise InvalidAction(f"{ref} is a {element.role}; it goes off when another one is chosen")
    if call.name == "select":
        if not selectable(element):
            raise InvalidAction(f"{ref} is a {element.role}; it has no options")
        if element.options and call.arguments["option"] not in element.options:
            raise InvalidAction(f"{ref} has no option {call.arguments['option']!r}; options: {element.options}")
    return element
