"""Who sums up rows while they are written: a thread beside the writer's.

Hashing is most of it, and hashing lets other threads run; so does the writing.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from treewright.search.store.sums import Job, sums

__all__ = ["WAITING", "Summing"]

WAITING = 8
"""Jobs at most that wait: their rows are in memory as long."""


class Summing:
    """Sums up jobs in the order they are given."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checksums")
        self._waiting: deque[Future[list[str]]] = deque()

    def submit(self, job: Job) -> Future[list[str]]:
        """The checksums of a job's expansions, when they are done. Waits for others where too many are under way."""
        if len(self._waiting) >= WAITING:
            self._waiting.popleft().exception()  # an error is for whoever asks for the result
        future = self._thread.submit(sums, job)
        self._waiting.append(future)
        return future

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
