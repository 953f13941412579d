"""Doors: whatever a user can write, a user can name.

A door is one kind of part (a rule, an evaluator, an estimator, …). A part goes by a built-in name, by `module:object`
(a module that is installed or lies in the working directory), or by the name of an entry point that an installed
package declares in the door's group. A wrong name or option is an error that offers the nearest known one.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from treewright.envs.errors import TreewrightError
from treewright.envs.naming import load_named, place_of

__all__ = ["Door", "blamed", "call", "nearest", "options_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """One kind of part.

    kind      what messages call it, e.g. 'rule'
    group     its entry-point group, e.g. 'treewright.rules'
    built_in  the parts of the package by name; a function, so that they may be imported late
    error     raised for a name or an option that is not known
    """

    kind: str
    group: str
    built_in: Callable[[], Mapping[str, Any]]
    error: type[TreewrightError] = TreewrightError

    def names(self) -> list[str]:
        """Every name that needs no import path: built-in ones first, then those of installed packages."""
        own = list(self.built_in())
        return [*own, *sorted({e.name for e in entry_points(group=self.group)} - set(own))]

    def find(self, name: str) -> Any:
        """The part of that name. Raises `error` with the nearest known one."""
        own = self.built_in()
        if name in own:
            return own[name]
        for entry in entry_points(group=self.group):
            if entry.name == name:
                try:
                    return entry.load()
                except (ImportError, AttributeError) as error:
                    raise self.error(f"{self.kind} {name!r} is declared by {entry.value}: {error}") from error
        if ":" in name:
            return load_named(name, self.kind)
        raise self.error(
            f"no {self.kind} named {name!r}; {nearest(name, self.names())}; or name your own: module:object"
        )

    def make(self, name: str, options: Mapping[str, Any], **given: Any) -> Any:
        """Calls the part of that name, see `call`."""
        return call(self.find(name), options, f"{self.kind} {name!r}", self.error, **given)


def options_of(function: Callable[..., Any], given: Iterable[str] = ()) -> tuple[str, ...] | None:
    """The names of what a function or class may be told, those of `given` left out; None where it takes any."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return tuple(
        p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in given
    )


def call(
    function: Callable[..., Any],
    options: Mapping[str, Any],
    what: str,
    error: type[TreewrightError] = TreewrightError,
    **given: Any,
) -> Any:
    """Calls a part with the user's options, and with those of `given` that it asks for by name.

    Raises `error` for an option that it does not take, with the nearest that it does; nothing is ignored. What the part
    itself raises is told with its place.
    """
    known = options_of(function)
    for option in options:
        if known is not None and option not in known:
            mine = [name for name in known if name not in given]
            raise error(f"{what} has no option {option!r}; {nearest(option, mine)}")
    told = {name: value for name, value in given.items() if known is None or name in known}
    with blamed(what, error):
        return function(**{**told, **options})


@contextmanager
def blamed(what: str, error: type[TreewrightError] = TreewrightError) -> Iterator[None]:
    """What a user's part raises becomes one sentence that names the part, its file and the line."""
    try:
        yield
    except (TreewrightError, ImportError):  # a missing package is told by whoever knows what to install
        raise
    except (Exception, SystemExit) as mistake:
        raise error(f"{what} raised {type(mistake).__name__}: {mistake}{place_of(mistake)}") from mistake


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint of an error: the name that was probably meant, else all that there are."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else "it has none" if not names else f"known: {', '.join(names)}"
