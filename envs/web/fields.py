"""Writing into fields: typed text, values that are assigned, sliders that move by keys, lists of options.

What a field makes of a text is the page's business; `expected` says what would stand there if it took it as it is.
"""

from __future__ import annotations

import re

from treewright.envs.errors import InvalidAction
from treewright.envs.web.tab import Tab
from treewright.envs.web.view import ASSIGNED, Element

__all__ = ["FORMATS", "fill", "select", "taken"]

FORMATS = {
    "color": "#ff8800",
    "date": "2026-05-31",
    "datetime-local": "2026-05-31T14:30",
    "month": "2026-05",
    "range": "50",
    "time": "14:30",
    "week": "2026-W22",
}
"""What each type of an assigned input takes, by example."""
MOST_KEYS = 200  # presses of an arrow key that one slider is moved by
_FOCUS = """function () {
  this.scrollIntoView({block: 'center', behavior: 'instant'}); this.focus();
  if (this.select) this.select(); else getSelection().selectAllChildren(this);
  return 'value' in this || this.isContentEditable ? 'typed' : this.getAttribute('role') || 'nothing';
}"""
# What an input of the same kind would make of a value; '' if it takes no such value at all.
_WOULD = """function (value) {
  const twin = document.createElement('input');
  for (const name of ['type', 'min', 'max', 'step']) if (this.hasAttribute(name)) twin.setAttribute(name, this.getAttribute(name));
  twin.value = value;
  return twin.value;
}"""  # noqa: E501
# By the prototype's setter: frameworks that keep a state of their own watch the one on the element.
_ASSIGN = """function (value) {
  this.scrollIntoView({block: 'center', behavior: 'instant'}); this.focus();
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(this, value);
  for (const name of ['input', 'change']) this.dispatchEvent(new Event(name, {bubbles: true}));
}"""
_SELECT = """function (label) {
  const text = o => o.label.replace(/\\s+/g, ' ').trim();
  for (const option of this.options) if (text(option) === label && !option.disabled) {
    option.selected = this.multiple ? !option.selected : true;
    for (const name of ['input', 'change']) this.dispatchEvent(new Event(name, {bubbles: true}));
    return true;
  }
  return false;
}"""
_NOW = "function () { return [this.getAttribute('aria-valuenow'), this.getAttribute('aria-valuetext')] }"


async def fill(tab: Tab, element: Element, text: str) -> None:
    """Replaces the element's text as typing would, or assigns it where typing cannot. Raises InvalidAction."""
    if element.kind in ASSIGNED:
        would = await tab.call(element, _WOULD, text)
        if text and (not would or _instead(element.kind, text, would)):
            raise InvalidAction(f"{element.ref} takes a {element.kind} such as {FORMATS[element.kind]}, not {text!r}")
        await tab.call(element, _ASSIGN, text)
        return
    place = await tab.call(element, _FOCUS)
    if place == "typed" or place is None:
        await _type(tab, text)
    elif place in ("slider", "spinbutton", "scrollbar"):
        await _move(tab, element, text)
    else:
        raise InvalidAction(f"{element.ref} is a {element.role} that cannot be written into")


def _instead(kind: str, text: str, would: str) -> bool:
    """True where an input takes its default in the place of a value that it does not understand."""
    if kind == "color":
        return would == "#000000" and text.strip().lower() not in ("#000", "#000000", "black")
    return kind == "range" and not re.fullmatch(r"-?\d+(\.\d+)?", text)


async def _type(tab: Tab, text: str) -> None:
    if text:
        await tab.watcher.unless_asked(tab.cdp.send("Input.insertText", {"text": text}))
        return
    for kind in ("keyDown", "keyUp"):
        key = {"type": kind, "key": "Delete", "code": "Delete", "windowsVirtualKeyCode": 46}
        await tab.watcher.unless_asked(tab.cdp.send("Input.dispatchKeyEvent", key))


async def _move(tab: Tab, element: Element, text: str) -> None:
    """A slider made of plain elements: by arrow keys, until it shows the value or does not come nearer."""
    if not re.fullmatch(r"-?\d+(\.\d+)?", text):
        raise InvalidAction(f"{element.ref} is a {element.role}; it takes a number, not {text!r}")
    wanted = float(text)
    for _ in range(MOST_KEYS):
        before = await _value(tab, element)
        if before is None or before == wanted:
            return
        await tab.watcher.unless_asked(tab.page.keyboard.press("ArrowRight" if before < wanted else "ArrowLeft"))
        after = await _value(tab, element)
        if after is None or abs(after - wanted) >= abs(before - wanted):
            return


async def _value(tab: Tab, element: Element) -> float | None:
    shown = await tab.call(element, _NOW)
    try:
        return float(shown[0])
    except (TypeError, ValueError):
        return None


async def select(tab: Tab, element: Element, option: str) -> None:
    """Chooses an option of a `select`; where several may be chosen, one more, or takes out one that was."""
    if not await tab.call(element, _SELECT, option):
        raise InvalidAction(f"option {option!r} of {element.ref} cannot be chosen")


def taken(element: Element, text: str) -> bool:
    """True if a field holds the text that was written into it, blanks aside; a password is told by its length."""
    held, wanted = " ".join(element.value.split()), " ".join(text.split())
    hidden = bool(held) and not held.strip("•") and len(held) == len(wanted)
    return held == wanted or hidden
