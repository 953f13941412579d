"""How long a server wants to be left alone, as the header Retry-After says it: seconds, or a date."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

__all__ = ["LONGEST", "seconds_until"]

LONGEST = 3600.0


def seconds_until(said: str | None, now: str | None = None) -> float:
    """Seconds, from 0 to LONGEST; 0 for nothing and for nonsense.

    said  "120", or "Wed, 21 Oct 2015 07:28:00 GMT" (RFC 9110, 10.2.3)
    now   the server's own clock as its header Date has it, so that a clock that is wrong here does no harm
    """
    if not said:
        return 0.0
    try:
        seconds = float(said)
    except ValueError:
        then = _date(said)
        seconds = (then - (_date(now or "") or datetime.now(UTC))).total_seconds() if then else 0.0
    return min(max(seconds, 0.0), LONGEST) if not math.isnan(seconds) else 0.0


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
