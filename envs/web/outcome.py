"""Rewards without code: what must be true of the address, the page, the answer or the server when a task ends.

    {"url": "/orders/*"}                                     the address, `*` for anything
    {"text": ["Thank you", "order"], "no_text": "error"}     what the page shows, and what it does not
    {"answer": "42"}, {"answer_includes": "Rome"}            what was answered, blanks and letter case aside
    {"state": {"get": "/api/cart", "at": "items.0.name", "equals": "red lamp"}}
    {"state": {"script": "document.querySelectorAll('.row').length", "equals": 3}}
    {"any": [{"url": "/a"}, {"url": "/b"}]}                  one of several

All that one object says must hold. The reward is 1 or 0.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urljoin

from pydantic import BaseModel, ConfigDict, model_validator

__all__ = ["Check", "Ending", "StateCheck", "holds"]

Texts = str | tuple[str, ...]


class StateCheck(BaseModel):
    """Something that is read when the task ends: what an address answers, or the value of an expression in the page.

    at        steps into JSON, such as items.0.name
    equals, includes, exists   what must hold of it; includes: as text, or as a member of a list
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    get: str | None = None
    script: str | None = None
    at: str = ""
    equals: Any = None
    includes: Any = None
    exists: bool | None = None

    @model_validator(mode="after")
    def _one_of_each(self) -> StateCheck:
        if (self.get is None) == (self.script is None):
            raise ValueError("give either 'get', an address, or 'script', an expression")
        if not self.model_fields_set & {"equals", "includes", "exists"}:
            raise ValueError("say what must hold: 'equals', 'includes' or 'exists'")
        return self

    def of(self, found: Any) -> bool:
        """Whether it holds of what was read; `found` is None where nothing could be read."""
        value, there = _at(found, self.at)
        if self.exists is not None and there is not self.exists:
            return False
        if "equals" in self.model_fields_set and not (there and value == self.equals):
            return False
        return "includes" not in self.model_fields_set or (there and _includes(value, self.includes))


class Check(BaseModel):
    """See the module's docstring."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Texts | None = None
    text: Texts | None = None
    no_text: Texts | None = None
    answer: Texts | None = None
    answer_includes: Texts | None = None
    state: StateCheck | None = None
    any: tuple[Check, ...] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Check:
        if not self.model_fields_set:
            raise ValueError(f"is empty; it takes {', '.join(type(self).model_fields)}")
        return self


class Ending(BaseModel):
    """How a task ended: the address, all that the page shows, and the answer."""

    url: str
    text: str
    answer: str


Read = Callable[[StateCheck], Awaitable[Any]]


async def holds(check: Check, end: Ending, read: Read) -> bool:
    """Whether all that a check says is true of an ending; `read` fetches what a state is told by."""
    if check.url is not None and not any(_address(url, end.url) for url in _several(check.url)):
        return False
    shown = _plain(end.text)
    if any(_plain(text) not in shown for text in _several(check.text)):
        return False
    if any(_plain(text) in shown for text in _several(check.no_text)):
        return False
    answer = _plain(end.answer)
    if check.answer is not None and answer not in [_plain(text) for text in _several(check.answer)]:
        return False
    if any(_plain(text) not in answer for text in _several(check.answer_includes)):
        return False
    if check.state is not None and not check.state.of(await read(check.state)):
        return False
    if check.any is None:
        return True
    for one in check.any:
        if await holds(one, end, read):
            return True
    return False


def _several(texts: Texts | None) -> Sequence[str]:
    return () if texts is None else (texts,) if isinstance(texts, str) else texts


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _address(wanted: str, found: str) -> bool:
    """A path matches on the site's own host; a trailing slash makes no difference."""
    whole = urljoin(found, wanted).rstrip("/")
    return fnmatch.fnmatchcase(found.rstrip("/"), whole.replace("[", "[[]"))


def _at(found: Any, path: str) -> tuple[Any, bool]:
    """What stands at a path of JSON, and whether anything does."""
    for step in path.split(".") if path else ():
        if isinstance(found, Mapping) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.lstrip("-").isdigit() and -len(found) <= int(step) < len(found):
            found = found[int(step)]
        else:
            return None, False
    return found, found is not None


def _includes(value: Any, wanted: Any) -> bool:
    if isinstance(value, list):
        return wanted in value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _plain(str(wanted)) in _plain(text)
