"""What a site's file names, looked at before a browser is asked to take it: addresses, and files of logins."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from treewright.envs.lines import json_value

__all__ = ["host_of", "storage_trouble"]

SAVE = "save one with Playwright's context.storage_state(path=…)"


def storage_trouble(path: Path) -> str:
    """Why a file is no storage state, with what makes one; '' where it is one."""
    try:
        found = json_value(path.read_bytes())
    except (OSError, ValueError) as error:
        return f"{path} holds no storage state: {error}; {SAVE}"
    if not isinstance(found, dict) or not isinstance(found.get("cookies"), list):
        return f"{path} holds no storage state: it has no list 'cookies'; {SAVE}"
    for i, cookie in enumerate(found["cookies"]):
        if not (isinstance(cookie, dict) and all(isinstance(cookie.get(key), str) for key in ("name", "value"))):
            return f"{path}: cookies[{i}] has no name and value that are texts; {SAVE}"
    for i, origin in enumerate(_list(found.get("origins"))):
        if not (isinstance(origin, dict) and isinstance(origin.get("origin"), str)):
            return f"{path}: origins[{i}] has no address 'origin'; {SAVE}"
    return ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def host_of(url: str) -> str:
    """The host of an address, with its port; '' for what is no address."""
    try:
        parts = urlsplit(url)
        return parts.netloc if parts.port != 0 and parts.hostname else ""
    except ValueError:  # a port that cannot be, half an address of version 6
        return ""
