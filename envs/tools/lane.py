"""A thread for one session: its calls run there in turn, and the event loop goes on meanwhile."""

from __future__ import annotations

import asyncio
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Lane"]

T = TypeVar("T")
Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


class Lane:
    """Runs functions one after another, always in the same thread, since many libraries are bound to one.

    The thread is a daemon: a call that never returns keeps neither the loop nor the end of the program waiting.
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._name, self._thread = name, None

    _thread: threading.Thread | None

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """What the function returns, or raises."""
        if self._thread is None:
            self._thread = threading.Thread(target=_work, args=(self._jobs,), name=self._name, daemon=True)
            self._thread.start()
            weakref.finalize(self, self._jobs.put, None)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._jobs.put((loop, done, function, arguments))
        return await done


def _work(jobs: queue.SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        loop, done, function, arguments = job
        value: Any = None
        error: BaseException | None = None
        try:
            value = function(*arguments)
        except StopIteration as stopped:  # which a future cannot hold
            error = RuntimeError(f"StopIteration: {stopped}")
            error.__cause__ = stopped
        except BaseException as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(_tell, done, value, error)
        except RuntimeError:
            return  # the loop was closed; nobody waits
        del job, done, function, arguments, value, error  # a waiting thread keeps nothing alive


def _tell(done: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if done.done():
        return  # whoever waited gave up
    if error is None:
        done.set_result(value)
    else:
        done.set_exception(error)
