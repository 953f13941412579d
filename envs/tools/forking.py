"""Forks servers from a process that has imported what they need: `python -P forking.py LISTENER LIFELINE ROOM`.

LISTENER is a listening socket to which relays connect (relay.py), one for each server; LIFELINE the reading end of a
pipe. It ends when that pipe is closed; servers then run on until their stdin ends. A server whose relay is gone is
killed before the next one begins. ROOM is of no meaning but its length: there stands what `ps` shows of a server.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from typing import Any

__all__ = ["main"]

LONGEST = 1 << 20  # bytes of a server's arguments and environment


def main(listener: int, lifeline: int) -> None:
    """Serves relays until the lifeline is closed."""
    asked = socket.socket(fileno=listener)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then closes its servers
    with contextlib.suppress(ImportError):
        importlib.import_module("mcp.server.mcpserver")
    servers: dict[socket.socket, int] = {}
    while True:
        watched: list[Any] = [asked, lifeline, woken, *servers]
        ready = select.select(watched, [], [])[0]
        if woken in ready:
            os.read(woken, 4096)
        for line, pid in list(servers.items()):
            if line in ready:
                _told(line, pid)
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del servers[line]
                code = os.waitstatus_to_exitcode(status)
                with contextlib.suppress(OSError):
                    line.send(str(code if code >= 0 else 128 - code).encode())
                line.close()
        if lifeline in ready:
            with contextlib.suppress(OSError):
                os.unlink(asked.getsockname())
                os.rmdir(os.path.dirname(asked.getsockname()))
            return
        if asked in ready:
            line = asked.accept()[0]
            if (begun := _begun(line, [asked, *servers], [lifeline, woken, wake])) is None:
                line.close()
            else:
                servers[line] = begun


def _told(line: socket.socket, pid: int) -> None:
    """What a relay says: terminate the server; or nothing any more, and then the server is killed."""
    with contextlib.suppress(OSError):
        if line.recv(16):
            os.killpg(pid, signal.SIGTERM)
            return
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def _begun(line: socket.socket, sockets: list[socket.socket], fds: list[int]) -> int | None:
    """The process id of a new server; None where its relay was gone before it had asked."""
    try:
        message, standard, _, _ = socket.recv_fds(line, LONGEST, 3)
    except OSError:
        return None
    if not message:
        return None
    folder, module, count, *words = os.fsdecode(message).split("\0")
    arguments, environment = words[: int(count)], dict(word.split("=", 1) for word in words[int(count) :])
    with contextlib.suppress(Exception, SystemExit):  # the server says itself why it cannot be imported
        importlib.import_module(module)
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for one in (signal.SIGCHLD, signal.SIGINT):
            signal.signal(one, signal.SIG_DFL)
        for other in (line, *sockets):
            other.close()
        for number, fd in enumerate(standard):
            os.dup2(fd, number)
        for fd in (*standard, *fds):
            os.close(fd)
        os._exit(_become(folder, module, arguments, environment))
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)  # whoever is first: the group is there before anybody may want to end it
    for fd in standard:
        os.close(fd)
    return pid


def _become(folder: str, module: str, arguments: list[str], environment: dict[str, str]) -> int:
    code: object = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        _show([module, *arguments])
    try:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = [module, *arguments]
        importlib.import_module(module).main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) or ended.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    return code if isinstance(code, int) else 0


def _show(words: list[str]) -> None:
    """Writes the words over those that this process was started with, for whoever lists processes."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rsplit(b")", 1)[1].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end of proc(5)
    text = os.fsencode("\0".join(words))[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
