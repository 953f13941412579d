"""Which requests of those that wait are run in one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from treewright.agent.policies.sampling import Request
from treewright.search.types import Completion

__all__ = ["Waiting", "all_have_asked", "fitting"]

QUIET = 32  # turns of the event loop without a request, after which nobody else is about to ask


@dataclass(slots=True)
class Waiting:
    request: Request
    future: asyncio.Future[list[Completion]]


async def all_have_asked(queue: Sequence[Waiting], room: int, shares: bool) -> None:
    """Returns once nobody has joined the queue for some turns of the event loop, or it holds more than a batch.

    Who is in a batch, and so how its sums round, then depends on what callers of this process do, not on how soon.
    """
    still, known = 0, len(queue)
    while still < QUIET:
        await asyncio.sleep(0)
        still += 1
        if len(queue) != known:
            still, known = 0, len(queue)
            if sum(waiting.request.cost(shares) for waiting in queue) > room:
                return


def fitting(queue: Sequence[Waiting], room: int, shares: bool) -> list[Waiting]:
    """The front of the queue as far as it fits together: prompt and new tokens of at most `room`, one kind of draw.

    The first is taken however large it is.
    """
    batch = list(queue[:1])
    room -= batch[0].request.cost(shares) if batch else 0
    for waiting in queue[1:]:
        cost = waiting.request.cost(shares)
        apart = (waiting.request.temperature == 0) != (batch[0].request.temperature == 0)
        if cost > room or apart:
            break
        room -= cost
        batch.append(waiting)
    return batch
