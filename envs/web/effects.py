"""What a web action would do, judged from the element it touches, and what it did, judged from its traffic.

Rules are plain functions tried in order; the first that gives an Effect decides. An environment takes its own list,
usually a few rules for the site in front of `DEFAULT_RULES`. No rule here knows any site.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from treewright.envs.types import Effect
from treewright.envs.web.view import ASSIGNED

__all__ = ["DEFAULT_RULES", "SAFE_METHODS", "Rule", "Target", "after_traffic", "judge"]

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_HARMLESS = re.compile(
    r"\b(search|find|filter|sort|show|more|less|next|previous|back|close|menu|expand|collapse|details|refresh)\b", re.I
)
_HARMFUL = re.compile(r"\b(delete|remove|cancel|log ?out|sign ?out|unsubscribe|pay|buy|order now|confirm)\b", re.I)


@dataclass(frozen=True, slots=True)
class Target:
    """What an action would touch.

    action   click, fill, select, goto, back, … (the names of `treewright.envs.web.actions`); 'leave' where a yes to
             the page's question does no more than leave the page, or close a message
    role     accessibility role, '' for goto and back
    name     accessible name
    method   of the form that a click would submit: 'GET', 'POST', …; '' if it submits none
    url      absolute URL that would be asked for: a link's, a form's or a goto's; '' if none is known
    key      the key that is pressed, such as 'Enter'; '' for anything else
    """

    action: str
    role: str = ""
    name: str = ""
    method: str = ""
    url: str = ""
    key: str = ""

    @property
    def path(self) -> str:
        return urlsplit(self.url).path


Rule = Callable[[Target], Effect | None]


_LOOKING = frozenset({"hover", "scroll", "wait", "tab", "dismiss", "part", "leave"})
_EDITING = frozenset({"fill", "select", "check", "upload", "close_tab"})


def looking(target: Target) -> Effect | None:
    """Pointing, scrolling, waiting, leaving and turning to another window change nothing."""
    return Effect.READ if target.action in _LOOKING else None


def editing(target: Target) -> Effect | None:
    """Writing into a field changes the page only, and can be written over; so does a key that activates nothing."""
    if target.action in ("press", "type") and target.key not in ("Enter", "NumpadEnter", "Space", " "):
        return Effect.REVERSIBLE
    return Effect.REVERSIBLE if target.action in _EDITING else None


def forms(target: Target) -> Effect | None:
    """A form that is sent by GET asks; one sent by POST changes something, and nothing says how to undo it."""
    if not target.method:
        return None
    return Effect.READ if target.method in SAFE_METHODS else Effect.IRREVERSIBLE


def addresses(target: Target) -> Effect | None:
    """Following an address is a GET, unless its text or path says that it does more than that."""
    if not target.url and target.action != "back":
        return None
    words = re.sub(r"[\W_]+", " ", target.path)
    return Effect.UNKNOWN if _HARMFUL.search(target.name) or _HARMFUL.search(words) else Effect.READ


def fields(target: Target) -> Effect | None:
    """A click into a field, a box or a list chooses something on the page."""
    on_page = ("textbox", "searchbox", "spinbutton", "combobox", "listbox", "option", "checkbox", "radio", "tab")
    chosen = ("editor", "gridcell", "treeitem", "slider", "menuitemcheckbox", "menuitemradio", *ASSIGNED)
    return Effect.REVERSIBLE if target.action == "click" and target.role in on_page + chosen else None


def scripts(target: Target) -> Effect | None:
    """A button outside a form runs code: harmless only if it says so."""
    if _HARMLESS.search(target.name) and not _HARMFUL.search(target.name):
        return Effect.READ
    return Effect.UNKNOWN


DEFAULT_RULES: tuple[Rule, ...] = (looking, editing, forms, addresses, fields, scripts)


def judge(target: Target, rules: Sequence[Rule] = DEFAULT_RULES) -> Effect:
    """The first rule's answer; UNKNOWN if no rule has one."""
    return next((effect for rule in rules if (effect := rule(target)) is not None), Effect.UNKNOWN)


def after_traffic(before: Effect, writes: Iterable[str], *, expected: bool) -> Effect:
    """The effect once the traffic was seen: writes that the judgement had not `expected` make it UNKNOWN.

    writes    methods of the requests sent that are not in SAFE_METHODS
    expected  True if the action was to submit a form by such a method
    """
    if any(True for _ in writes) and not expected and before is not Effect.IRREVERSIBLE:
        return Effect.UNKNOWN
    return before
