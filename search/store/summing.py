"""Who sums up rows while they are written: a thread, or for many rows a process of its own; see `sums`."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Thread

from treewright.search.store import sums
from treewright.search.store.errors import StoreError

__all__ = ["Summing"]

PIPE_BYTES = 1 << 20


class Summing:
    """Begins in a thread. `hurry` moves it to a process where there are processors for two."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checksums")
        self._process: _Process | None = None

    def submit(self, job: sums.Job) -> Future[list[str]]:
        """The checksums of a job's expansions, when they are done."""
        return self._process.submit(job) if self._process is not None else self._thread.submit(sums.sums, job)

    def hurry(self) -> None:
        """There are many rows: from now on they are summed up in a process."""
        if self._process is None and sys.executable and (os.cpu_count() or 1) > 1:
            with suppress(OSError):  # no process is to be had: the thread does as well
                self._process = _Process()

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        if self._process is not None:
            self._process.close()


class _Process:
    """A child that answers in the order it was asked. It ends with its standard input, so never outlives us."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", sums.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C is for us alone
        )
        assert self._child.stdin is not None
        with suppress(OSError, AttributeError):  # only Linux knows how; a small pipe makes us wait more often
            fcntl.fcntl(self._child.stdin, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._waiting: deque[Future[list[str]]] = deque()
        self._reader = Thread(target=self._read, name="checksums", daemon=True)
        self._reader.start()

    def submit(self, job: sums.Job) -> Future[list[str]]:
        assert self._child.stdin is not None
        future: Future[list[str]] = Future()
        self._waiting.append(future)
        try:
            sums.send(self._child.stdin, tuple(job))
        except OSError as error:
            raise self._ended() from error
        return future

    def _read(self) -> None:
        assert self._child.stdout is not None
        try:
            while True:
                result = sums.receive(self._child.stdout)
                self._waiting.popleft().set_result(result)
        except (EOFError, OSError, ValueError):
            while self._waiting:
                self._waiting.popleft().set_exception(self._ended())

    def _ended(self) -> StoreError:
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(5)
        return StoreError(f"the process that sums up rows ended with {self._child.returncode}; load the trees again")

    def close(self) -> None:
        assert self._child.stdin is not None and self._child.stdout is not None
        with suppress(OSError):
            self._child.stdin.close()
        self._reader.join()
        self._child.stdout.close()
        self._child.wait()
