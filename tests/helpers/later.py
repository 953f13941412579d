"""Modules that take a second or more to import and that one file of tests needs: each process of tests collects every
file, but runs few of them."""

from __future__ import annotations

import importlib
from typing import Any


class Later:
    """The module `name`, which is imported when something of it is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, wanted: str) -> Any:
        if wanted.startswith("_"):  # pytest looks for marks of its own in all that it collects
            raise AttributeError(wanted)
        return getattr(importlib.import_module(self._name), wanted)


def later(name: str) -> Any:
    return Later(name)
