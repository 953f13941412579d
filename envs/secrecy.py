"""Secrets that this process was told: learned where they enter, so that the store, logs and errors can leave them out.

The environment tells many by the names of its variables; `envs/redact.py` reads those itself. What comes in by
another door is learned here: passwords in addresses, headers, cookies of a login, variables of a server's own, settings
whose key names a secret. Values are kept in memory only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

__all__ = [
    "MASK",
    "SHORTEST",
    "hidden_url",
    "in_login",
    "in_settings",
    "in_url",
    "keep_secret",
    "learned",
    "learned_count",
    "named_secret",
    "secret_headers",
]

SHORTEST = 8
"""Characters; shorter values stand in too many texts by chance."""

MASK = "[redacted]"

VARIABLE = re.compile(r"KEY|TOKEN(?!IZER)|SECRET|PASSW(OR)?D|CREDENTIAL|COOKIE|AUTHORIZATION", re.IGNORECASE)
SETTING = re.compile(
    r"(^|[_\-.])(api_?key|key|token|secret|passw(or)?d|credentials?|cookie|authorization|bearer)$", re.IGNORECASE
)
SCHEME = re.compile(r"^(Bearer|Basic|Token|Digest)\s+", re.IGNORECASE)
ADDRESS = re.compile(r"\w[\w+.\-]*://[^\s\"'<>]+")

PLAIN_HEADERS = frozenset(
    {"accept", "accept-encoding", "accept-language", "cache-control", "content-type", "dnt", "origin", "pragma",
     "referer", "user-agent"}
)  # fmt: skip

_learned: dict[str, None] = {}


def keep_secret(*values: str | None) -> None:
    """From now on these are left out of what is stored, logged and said; a scheme (`Bearer `) is no part of it."""
    for value in values:
        bare = SCHEME.sub("", value or "").strip()
        if len(bare) >= SHORTEST:
            _learned[bare] = None


def learned() -> tuple[str, ...]:
    """What was learned so far, in order; only ever longer."""
    return tuple(_learned)


def learned_count() -> int:
    """How much that is: asked for every text that is stored."""
    return len(_learned)


def secret_headers(headers: Mapping[str, str]) -> list[str]:
    """Values of headers that are not known to be harmless."""
    return [value for name, value in headers.items() if name.lower() not in PLAIN_HEADERS]


def named_secret(name: str) -> bool:
    """Whether a variable or header of this name holds a secret."""
    return VARIABLE.search(name) is not None


def in_url(text: str) -> list[str]:
    """The secrets of every address in a text: the password, and values of a query whose names tell of one."""
    found: list[str] = []
    for address in ADDRESS.findall(text):
        try:
            parts = urlsplit(address)
            password = parts.password
        except ValueError:  # no address after all
            continue
        if password:
            found += [unquote(password), password]
        found += [value for name, value in parse_qsl(parts.query) if SETTING.search(name) or named_secret(name)]
    return [value for value in found if len(value) >= SHORTEST]


def hidden_url(text: str) -> str:
    """The text with what `in_url` finds taken out: passwords vanish with their colon, values of a query are masked."""
    for secret in in_url(text):
        text = text.replace(f":{secret}@", "@").replace(secret, MASK)
    return text


def in_settings(value: Any, key: str = "") -> list[str]:
    """The secrets of nested settings: texts under a key that names one, and those of addresses."""
    if isinstance(value, Mapping):
        return [secret for name, inner in value.items() for secret in in_settings(inner, str(name))]
    if isinstance(value, list | tuple):
        return [secret for inner in value for secret in in_settings(inner, key)]
    if not isinstance(value, str):
        return []
    return [*([value] if SETTING.search(key) and len(value) >= SHORTEST else []), *in_url(value)]


def in_login(state: Any) -> list[str]:
    """The secrets of a browser's `storage_state`: values of its cookies and local storage that could be a session's.

    A cookie that scripts may read is often a preference: it counts from 16 characters on, as local storage does.
    """
    found: list[str] = []
    for cookie in _rows(state, "cookies"):
        value = str(cookie.get("value", ""))
        if len(value) >= (SHORTEST if cookie.get("httpOnly") else 2 * SHORTEST):
            found.append(value)
    for origin in _rows(state, "origins"):
        found += [v for item in _rows(origin, "localStorage") if len(v := str(item.get("value", ""))) >= 2 * SHORTEST]
    return found


def _rows(value: Any, name: str) -> Iterable[Mapping[str, Any]]:
    rows = value.get(name, ()) if isinstance(value, Mapping) else ()
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list | tuple) else []
