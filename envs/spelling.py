"""Names of suites as they are written on a command line: several in a row, and a task of one.

A suite's name may hold a URL, a path or a whole command, and so slashes and commas of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from treewright.envs.registry import SCHEMES, names

__all__ = ["split_suites", "split_task"]

COMMA = re.compile(r""",(?=(?:[^"']|"[^"]*"|'[^']*')*$)""")  # outside quotes
OWN = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_]\w*")
THING = re.compile(r"([A-Za-z_][\w.]*:[A-Za-z_][\w.]*)/(.*)", re.DOTALL)
LISTS = ("puzzles", "reasoning")  # schemes whose names may be several, with commas between
COMMAND = re.compile(r"[\s?={(]")


def split_suites(text: str) -> list[str]:
    """The suites of a comma-separated list. A comma within a command or a URL belongs to it.

    What follows a comma is a suite of its own if it is named like one; quotes keep it together in any case.
    """
    out: list[str] = []
    for part in COMMA.split(text):
        if out and _holds_commas(out[-1]) and not _is_named(part.strip()):
            out[-1] += f",{part}"
        else:
            out.append(part)
    return [name for part in out if (name := part.strip())]


def _holds_commas(name: str) -> bool:
    """Is it a command, a name with arguments, or one that may be a list?"""
    name = name.strip()
    scheme = name.partition(":")[0]
    written_out = COMMAND.search(name) or "//" in name or scheme in LISTS
    return scheme in SCHEMES and ":" in name and not name.endswith(".toml") and bool(written_out)


def _is_named(part: str) -> bool:
    if part in names() or part.partition(":")[0] in SCHEMES:
        return True
    own = OWN.fullmatch(part)
    return own is not None and _is_module(own[1])


def _is_module(name: str) -> bool:
    try:
        return Path(f"{name.replace('.', '/')}.py").exists() or find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def split_task(text: str, ids: Iterable[str] = ()) -> tuple[str, str]:
    """SUITE/INDEX or SUITE/ID as (suite, index or id); a suite alone has index 0.

    ids  known ones, such as those of a tasks file: the longest that stands behind a slash at the end is meant
    A name without a colon, or MODULE:THING, ends at the first slash, since ids may hold slashes. In any other the last
    slash is meant: a number after it is an index; anything else is an id only where it cannot be part of a path, a URL
    or a command.
    Of `harbor:` a folder is the suite, and what is none an id in the folder above.
    """
    if known := [one for one in ids if text.endswith(f"/{one}")]:
        which = max(known, key=len)
        return text[: -len(which) - 1], which
    scheme, colon, _ = text.partition(":")
    if not colon or "/" in scheme:
        suite, _, which = text.partition("/")
        return suite, which or "0"
    if scheme not in SCHEMES and scheme != "agent" and (own := THING.fullmatch(text)) is not None:
        return own[1], own[2] or "0"
    suite, slash, which = text.rpartition("/")
    if not slash or (scheme == "harbor" and ("?" in which or Path(text.removeprefix("harbor:")).is_dir())):
        return text, "0"  # a Harbor folder, which may be that of one task
    if scheme == "harbor":
        return suite, which or "0"
    if which.isdigit() or not which:
        return suite, which or "0"
    if suite.endswith(".toml"):
        return suite, which
    if scheme == "mcp":
        return (suite, which) if which in ("train-explore", "test-explore") else (text, "0")
    environment = scheme == "gym" and re.search(r"-v\d+(\?.*)?$", which)
    return (text, "0") if environment or "/" in suite else (suite, which)
