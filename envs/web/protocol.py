"""Long answers of Chromium's protocol, as they are.

Playwright looks through every value of an answer for objects of its own, though none can stand in an answer of the
protocol: for an accessibility tree that is a quarter of the time that Python spends on a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from playwright.async_api import CDPSession

__all__ = ["send_plainly"]


async def send_plainly(session: CDPSession, method: str, params: Mapping[str, Any] | None = None) -> Any:
    """What `session.send` answers, without a look through it where this version of Playwright allows that."""
    given = dict(params or {})
    inner = getattr(session, "_impl_obj", None)
    try:
        sent = inner.send(method=method, params=given, timeout=0) if inner is not None else session.send(method, given)
    except TypeError:  # other versions take no timeout
        sent = session.send(method, given)
    return await sent
