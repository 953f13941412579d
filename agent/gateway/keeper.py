"""Runs one command and outlives nobody: `python -I -S keeper.py FD COMMAND …`.

FD is the reading end of a pipe that the parent holds open. When the parent closes it, or dies, however it dies, the
command and everything it started are killed. When the command ends, what it left running is killed. The exit code is
the command's; 128 + n where signal n ended it. This file imports nothing of the package, so that it starts in
milliseconds.

Processes that the command detached (a session of their own, a double fork) are found too, on Linux: the keeper is the
one that orphans below it are given to. If the keeper itself is killed, the kernel kills the command, but not what the
command started.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
from collections.abc import Callable

DEATH_SIGNAL, SUBREAPER = 1, 36  # of prctl
CANNOT = 127


def prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    return found


def kill_all(first: int) -> None:
    """Kills until nothing below this process is left; a killed parent's children become ours and are met again."""
    with contextlib.suppress(OSError):
        os.killpg(first, signal.SIGKILL)
    while below := children(os.getpid()):
        for pid in below:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for pid in below:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def code_of(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def keep(line: int, begin: Callable[[], int]) -> int:
    """Runs `begin` in a child with a session of its own until it ends or `line` is closed; the child's exit code."""
    prctl(SUBREAPER, 1)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it closes the pipe
    keeper, pid = os.getpid(), os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        os.setsid()
        prctl(DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(CANNOT)
        for one in (signal.SIGINT, signal.SIGCHLD):
            signal.signal(one, signal.SIG_DFL)
        for fd in (line, woken, wake):
            os.close(fd)
        os._exit(begin())
    while True:
        ready, _, _ = select.select([line, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            kill_all(pid)
            return code_of(status)
        for other in children(keeper):  # orphans that were given to us, and ended
            if other != pid:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(other, os.WNOHANG)
        if line in ready:
            kill_all(pid)
            return 128 + signal.SIGKILL


def run(command: list[str]) -> int:
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    return CANNOT


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), lambda: run(sys.argv[2:])))
