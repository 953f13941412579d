"""Deadlines that wait longer where the machine is slower or busier: they must only tell a hang from work."""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treewright.envs.types import Environment


USUAL = 0.06  # seconds that the work below takes on an idle core
MOST = 20.0
HOLDS = 30.0  # seconds for which a measurement is believed


def slowness() -> float:
    """How many times longer than usual this machine takes now, at least 1; measured again after a while."""
    return _slowness(int(time.monotonic() / HOLDS))


@functools.lru_cache(maxsize=1)
def _slowness(_: int) -> float:
    took = []
    for _ in range(3):
        began = time.monotonic()
        subprocess.run([sys.executable, "-I", "-S", "-c", "sum(i * i for i in range(300_000))"], check=True)
        took.append(time.monotonic() - began)
    return min(max(1.0, max(took) / USUAL), MOST)


def patient(seconds: float) -> float:
    """A deadline of so many seconds on an idle machine."""
    return seconds * slowness()


def patiently(open_session: Callable[[], Awaitable[Environment]]) -> Callable[[], Coroutine[Any, Any, Any]]:
    """Opens sessions whose own deadlines, where they have any, wait longer here."""

    async def opened() -> Environment:
        session = await open_session()
        for name in ("deadline", "patience"):
            if isinstance(getattr(session, name, None), float):
                setattr(session, name, patient(getattr(session, name)))
        return session

    return opened
