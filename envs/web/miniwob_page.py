"""A MiniWoB page as its experts read it from the policy's text, and the actions they take."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from treewright.envs.errors import TreewrightError
from treewright.envs.types import Action

__all__ = ["STEP", "Expert", "Line", "Seen", "click", "fill", "filled", "read_page", "submit"]

STEP = 600
"""Milliseconds of page time that pass with every action: longer than the animations of the pages' widgets."""

_LINE = re.compile(r'(\w+) ("(?:[^"\\]|\\.)*")(?: ([ea]\d+))?(?: (.*))?$')
_PLACE = re.compile(r"at (-?\d+),(-?\d+) size (\d+)x(\d+)$")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True, slots=True)
class Line:
    role: str
    name: str
    ref: str
    rest: str

    @property
    def value(self) -> str:
        found = re.match(r"= (" + _STRING.pattern + ")", self.rest)
        return str(json.loads(found[1])) if found else ""

    @property
    def place(self) -> tuple[int, int, int, int]:
        found = _PLACE.search(self.rest)
        if found is None:
            raise TreewrightError(f"line {self.name!r} has no place")
        x, y, width, height = map(int, found.groups())
        return x, y, width, height

    @property
    def words(self) -> str:
        """The text of a drawn element; '' if it has none."""
        found = _STRING.search(self.name)
        return str(json.loads(found[0])) if found else ""


@dataclass(frozen=True, slots=True)
class Seen:
    """The page, and what was done so far on it."""

    lines: tuple[Line, ...]
    done: tuple[Action, ...]

    @property
    def goal(self) -> str:
        return next((line.name for line in self.lines if line.role == "goal"), "")

    def quoted(self) -> list[str]:
        """The words in quotation marks of the task, commas and points at their ends included."""
        return re.findall(r'"([^"]*)"', self.goal)

    def all(self, *roles: str) -> list[Line]:
        return [line for line in self.lines if line.role in roles and (line.ref or line.role in ("shape", "text"))]

    def find(self, name: str, *roles: str) -> Line | None:
        return next((x for x in self.lines if x.ref and x.name == name and (not roles or x.role in roles)), None)

    def drawn(self, words: str) -> Line | None:
        """The drawn element with these words."""
        return next((x for x in self.all("shape") if x.words == words), None)

    def texts(self) -> list[str]:
        return [line.name for line in self.lines if line.role == "text"]


Expert = Callable[[Seen], Action]


def read_page(text: str) -> tuple[Line, ...]:
    found = (match for line in text.splitlines()[1:] if (match := _LINE.match(line)))
    return tuple(Line(m[1], str(json.loads(m[2])), m[3] or "", m[4] or "") for m in found)


def click(line: Line | None) -> Action:
    if line is None:
        return Action.of("wait", milliseconds=100)
    if line.ref:
        return Action.of("click", ref=line.ref)
    x, y, _, _ = line.place
    return Action.of("click_at", x=x, y=y)


def fill(line: Line, text: str) -> Action:
    return Action.of("fill", ref=line.ref, text=text)


def submit(page: Seen) -> Action:
    names = ("Submit", "submit", "Login", "OK", "Search", "Ok")
    return click(next((found for name in names if (found := page.find(name, "button"))), None))


def filled(page: Seen, texts: Sequence[str], *roles: str) -> Action:
    """Each field gets its text, in order; then the form is sent."""
    fields = page.all(*(roles or ("textbox", "spinbutton", "searchbox")))
    for field, text in zip(fields, texts, strict=False):
        shown = text if field.value != "•" * len(text) else "•" * len(text)  # a password is shown as dots
        if field.value != shown:
            return fill(field, text)
    return submit(page)
