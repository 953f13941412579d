"""Stands for a server that was forked elsewhere: `python -I -S relay.py SOCKET MODULE ARGUMENT …`, see forked.py.

Its standard files, environment and working directory are handed over and become the server's. It ends when the server
does, with its exit code; SIGTERM is passed on, and the server is killed when this process is gone. Where nobody listens
at SOCKET any more, this process becomes the server itself. It imports nothing of the package.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

__all__ = ["main"]

TERMINATE = b"t"
FDS = (0, 1, 2)


def main(address: str, module: str, *arguments: str) -> int:
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = [os.getcwd(), module, str(len(arguments)), *arguments, *(f"{k}={v}" for k, v in os.environ.items())]
    try:
        line.connect(address)
        socket.send_fds(line, [os.fsencode("\0".join(words))], FDS)
    except OSError:
        os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
    signal.signal(signal.SIGTERM, lambda *_: line.send(TERMINATE))
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in FDS[:2]:  # the ends of the pipes are the server's alone
        os.dup2(nothing, fd)
    code = line.recv(16)
    return int(code) if code else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
